//! Extended attributes that an image may set, as containerd passes them on and Linux takes them.
use super::error::Problem;
use crate::tree::{Content, Inode};

/// Longest name, and largest value: Linux's `XATTR_NAME_MAX` and `XATTR_SIZE_MAX`.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 65536;

/// File capabilities, which changing a file's owner removes (kernel, `security/commoncap.c`).
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// Sets `name` on `inode`; false if containerd would ignore it with a warning.
pub(crate) fn set(inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<bool, Problem> {
    let refused = |reason| Err(Problem::Xattr { name: name.to_vec(), reason });
    let (is_file, is_dir) = (matches!(inode.content, Content::File(_)), matches!(inode.content, Content::Directory(_)));
    // containerd never lets an image set trusted attributes.
    if name.starts_with(b"trusted.") {
        return Ok(false);
    }
    if name.is_empty() || name.len() > NAME_MAX {
        return refused("its name is empty or longer than 255 bytes");
    }
    if value.len() > VALUE_MAX {
        return refused("its value is larger than 64 KiB");
    }
    match name {
        b"user." | b"security." => return refused("nothing after the dot"),
        CAPABILITY if !is_capability(value) => return refused("its value is no file capability"),
        ACL_ACCESS | ACL_DEFAULT if matches!(inode.content, Content::Symlink(_)) => return Ok(false),
        ACL_ACCESS | ACL_DEFAULT => {
            if name == ACL_DEFAULT && !is_dir {
                return refused("only directories have default ACLs");
            }
            match Acl::parse(value) {
                None => return refused("its value is no POSIX ACL"),
                Some(acl) if acl.0.is_empty() || name == ACL_ACCESS && acl.is_plain() => {
                    inode.xattrs.remove(name);
                }
                Some(_) => {
                    inode.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
            return Ok(true);
        }
        _ if name.starts_with(b"user.") => {
            if !is_file && !is_dir {
                return Ok(false);
            }
        }
        _ if name.starts_with(b"security.") => {}
        _ => return Ok(false),
    }
    inode.xattrs.insert(name.to_vec(), value.to_vec());
    Ok(true)
}

/// `chmod`: the permission bits, and with them the base entries of an access ACL (acl(5), "Correspondence").
pub(crate) fn chmod(inode: &mut Inode, perm: u16) {
    inode.perm = perm;
    let Some(value) = inode.xattrs.get_mut(ACL_ACCESS) else { return };
    let Some(mut acl) = Acl::parse(value) else { return };
    let has_mask = acl.0.iter().any(|entry| entry.tag == Acl::MASK);
    for entry in &mut acl.0 {
        match entry.tag {
            Acl::USER_OBJ => entry.perm = perm >> 6 & 7,
            Acl::GROUP_OBJ if !has_mask => entry.perm = perm >> 3 & 7,
            Acl::MASK => entry.perm = perm >> 3 & 7,
            Acl::OTHER => entry.perm = perm & 7,
            _ => {}
        }
    }
    *value = acl.bytes();
}

/// Whether `value` is a `vfs_cap_data` of revision 2 or 3 (include/uapi/linux/capability.h).
fn is_capability(value: &[u8]) -> bool {
    let revision = value.get(..4).map(|magic| magic[3]);
    matches!((revision, value.len()), (Some(2), 20) | (Some(3), 24))
}

/// A POSIX ACL as its xattr holds it (include/uapi/linux/posix_acl_xattr.h).
struct Acl(Vec<AclEntry>);

struct AclEntry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Acl {
    const USER_OBJ: u16 = 0x01;
    const USER: u16 = 0x02;
    const GROUP_OBJ: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;

    /// Parses and checks as the kernel does (fs/posix_acl.c, `posix_acl_valid`).
    fn parse(value: &[u8]) -> Option<Self> {
        let entries = value.strip_prefix(&[2, 0, 0, 0])?.chunks_exact(8);
        if !entries.remainder().is_empty() {
            return None;
        }
        let acl = Self(
            entries
                .map(|e| AclEntry {
                    tag: u16::from_le_bytes([e[0], e[1]]),
                    perm: u16::from_le_bytes([e[2], e[3]]),
                    id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
                })
                .collect(),
        );
        let mut allowed = Self::USER_OBJ;
        let mut needs_mask = false;
        for entry in &acl.0 {
            if entry.perm & !7 != 0 || entry.tag & allowed == 0 || !entry.tag.is_power_of_two() {
                return None;
            }
            allowed = match entry.tag {
                Self::USER_OBJ => Self::USER | Self::GROUP_OBJ,
                Self::USER => {
                    needs_mask = true;
                    Self::USER | Self::GROUP_OBJ
                }
                Self::GROUP_OBJ => Self::GROUP | Self::MASK | if needs_mask { 0 } else { Self::OTHER },
                Self::GROUP => {
                    needs_mask = true;
                    Self::GROUP | Self::MASK
                }
                Self::MASK => Self::OTHER,
                _ => 0,
            };
        }
        (allowed == 0 || acl.0.is_empty()).then_some(acl)
    }

    /// Whether it says no more than the permission bits can.
    fn is_plain(&self) -> bool {
        self.0.iter().all(|entry| matches!(entry.tag, Self::USER_OBJ | Self::GROUP_OBJ | Self::OTHER))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0];
        for entry in &self.0 {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.perm.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FileData;

    fn file() -> Inode {
        Inode { content: Content::File(FileData::default()), ..Inode::empty_directory() }
    }

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        Acl(entries.iter().map(|&(tag, perm)| AclEntry { tag, perm, id: u32::MAX }).collect()).bytes()
    }

    #[test]
    fn only_what_linux_takes_is_kept() {
        let cap = [&[1, 0, 0, 2][..], &[0; 16]].concat();
        for (inode, name, value, outcome) in [
            (file(), &b"user.a"[..], &b"\0\xff"[..], Ok(true)),
            (file(), b"security.selinux", b"", Ok(true)),
            (file(), b"security.capability", &cap, Ok(true)),
            (file(), b"trusted.overlay.opaque", b"y", Ok(false)),
            (file(), b"os2.ea", b"y", Ok(false)),
            (Inode { content: Content::Fifo, ..file() }, b"user.a", b"1", Ok(false)),
            (Inode { content: Content::Fifo, ..file() }, b"security.capability", &cap, Ok(true)),
        ] {
            let mut inode = inode;
            assert_eq!(set(&mut inode, name, value), outcome);
            assert_eq!(
                inode.xattrs.get(name).is_some_and(|v| v == value),
                outcome == Ok(true),
                "{}",
                name.escape_ascii()
            );
        }
        for (name, value) in [
            (b"".to_vec(), b"".to_vec()),
            (b"user.".to_vec(), b"".to_vec()),
            ([b"user.".to_vec(), vec![b'x'; 251]].concat(), b"".to_vec()),
            (b"user.a".to_vec(), vec![0; 65537]),
            (b"security.capability".to_vec(), cap[..19].to_vec()),
            (b"system.posix_acl_default".to_vec(), acl(&[])),
            (b"system.posix_acl_access".to_vec(), acl(&[(1, 7)])),
            (b"system.posix_acl_access".to_vec(), acl(&[(1, 7), (2, 7), (4, 5), (0x20, 5)])),
        ] {
            assert!(set(&mut file(), &name, &value).is_err(), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn chmod_rewrites_the_acls_base_entries() {
        let mut inode = file();
        let full = [(1, 7), (2, 6), (4, 5), (0x10, 7), (0x20, 5)];
        assert_eq!(set(&mut inode, ACL_ACCESS, &acl(&full)), Ok(true));
        chmod(&mut inode, 0o640);
        assert_eq!(inode.xattrs[ACL_ACCESS], acl(&[(1, 6), (2, 6), (4, 5), (0x10, 4), (0x20, 0)]));
        assert_eq!(set(&mut inode, ACL_ACCESS, &acl(&[(1, 7), (4, 5), (0x20, 5)])), Ok(true));
        assert!(inode.xattrs.is_empty());
    }
}
