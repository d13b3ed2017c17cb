//! Extended attributes of an image's inodes.
//!
//! Behind an inode: a header, the numbers of xattrs that several inodes share, then the inode's own. Names are stored
//! without their well-known prefix, which is a number.
use super::ondisk::{XATTR_HEADER, u16_at, u32_at};
use super::{ErofsError, Image, ImageInode};

/// The prefixes that the format knows (kernel, `EROFS_XATTR_INDEX_*`). The two of ACLs are whole names.
const PREFIXES: [(u8, &[u8]); 6] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (5, b"lustre."),
    (6, b"security."),
];

/// An extended attribute: full name and value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Bytes of an entry before its name.
const ENTRY: usize = 4;

/// Splits a full name into the number of its prefix and the rest; `None` if the format can't hold the name.
pub(super) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (number, rest) = PREFIXES.iter().find_map(|(n, prefix)| Some((*n, name.strip_prefix(*prefix)?)))?;
    let whole = matches!(number, 2 | 3);
    (rest.is_empty() == whole && name.len() <= 255 && !name.contains(&0)).then_some((number, rest))
}

/// Bytes that an xattr takes, padding included.
pub(super) fn entry_len(rest: &[u8], value: &[u8]) -> usize {
    (ENTRY + rest.len() + value.len()).next_multiple_of(ENTRY)
}

/// Appends an xattr, padded. The value has at most 65 535 bytes.
pub(super) fn put_entry(out: &mut Vec<u8>, number: u8, rest: &[u8], value: &[u8]) {
    out.extend_from_slice(&[rest.len() as u8, number]);
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(ENTRY), 0);
}

/// An xattr where it lies in the image.
struct Raw<'a> {
    prefix: &'static [u8],
    rest: &'a [u8],
    value: &'a [u8],
    len: usize,
}

impl Image {
    /// All extended attributes of an inode, by full name, in no particular order.
    ///
    /// # Errors
    /// They are damaged.
    pub fn xattrs(&self, inode: &ImageInode) -> Result<Vec<Xattr>, ErofsError> {
        let mut all = Vec::new();
        self.each_xattr(inode, |raw| {
            all.push(([raw.prefix, raw.rest].concat(), raw.value.to_vec()));
            true
        })?;
        Ok(all)
    }

    /// The value of the extended attribute `name`.
    ///
    /// # Errors
    /// The attributes before it are damaged.
    pub fn xattr(&self, inode: &ImageInode, name: &[u8]) -> Result<Option<&[u8]>, ErofsError> {
        let mut found = None;
        self.each_xattr(inode, |raw| {
            if name.strip_prefix(raw.prefix) == Some(raw.rest) {
                found = Some(raw.value);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Bytes of all names and values of an inode's extended attributes.
    pub(super) fn xattr_bytes(&self, inode: &ImageInode) -> Result<u64, ErofsError> {
        let mut bytes = 0u64;
        self.each_xattr(inode, |raw| {
            bytes += (raw.prefix.len() + raw.rest.len() + raw.value.len()) as u64;
            true
        })?;
        Ok(bytes)
    }

    /// Calls `visit` with each xattr until it returns false.
    fn each_xattr<'a>(&'a self, inode: &ImageInode, mut visit: impl FnMut(Raw<'a>) -> bool) -> Result<(), ErofsError> {
        if inode.xattrs_len == 0 {
            return Ok(());
        }
        let corrupt = || ErofsError::Corrupt { nid: inode.nid.0, what: "damaged extended attributes" };
        let area = self.bytes().get(inode.xattrs..inode.end()).ok_or_else(corrupt)?;
        let shared = usize::from(*area.get(4).ok_or_else(corrupt)?);
        let ids = area.get(XATTR_HEADER..XATTR_HEADER + 4 * shared).ok_or_else(corrupt)?;
        for n in 0..shared {
            let offset = self.shared_xattr_offset(u32_at(ids, 4 * n).ok_or_else(corrupt)?);
            let raw = self.bytes().get(offset..).and_then(raw_at).ok_or_else(corrupt)?;
            if !visit(raw) {
                return Ok(());
            }
        }
        let mut rest = &area[XATTR_HEADER + 4 * shared..];
        while !rest.is_empty() {
            let raw = raw_at(rest).ok_or_else(corrupt)?;
            rest = rest.get(raw.len..).ok_or_else(corrupt)?;
            if !visit(raw) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn raw_at(bytes: &[u8]) -> Option<Raw<'_>> {
    let (name_len, number) = (usize::from(*bytes.first()?), *bytes.get(1)?);
    let value_len = usize::from(u16_at(bytes, 2)?);
    let (_, prefix) = PREFIXES.iter().find(|(n, _)| *n == number)?;
    let rest = bytes.get(ENTRY..ENTRY + name_len)?;
    let value = bytes.get(ENTRY + name_len..ENTRY + name_len + value_len)?;
    let whole = matches!(number, 2 | 3);
    let fits = rest.is_empty() == whole && prefix.len() + rest.len() <= 255 && !rest.contains(&0);
    fits.then_some(Raw { prefix, rest, value, len: entry_len(rest, value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_known_prefixes_only() {
        assert_eq!(split_name(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split_name(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(split_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        for bad in [&b"user."[..], b"", b"com.apple.x", b"system.posix_acl_accessx", b"user.a\0b", &[b'x'; 300]] {
            assert_eq!(split_name(bad), None);
        }
        assert_eq!(split_name(&[b"user.".to_vec(), vec![b'x'; 251]].concat()), None);
    }
}
