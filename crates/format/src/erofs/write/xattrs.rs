//! Which xattrs inodes share, and how an inode's own are stored.
use crate::erofs::ondisk::XATTR_HEADER;
use crate::erofs::xattrs::{entry_len, put_entry, split_name};
use crate::tree::Inode;
use std::collections::HashMap;

/// Most xattrs that one inode can share with others.
const SHARED_MAX: usize = 255;

/// An xattr's name and value.
type Named<'t> = (&'t [u8], &'t [u8]);

/// Numbers of shared xattrs by name and value, and their bytes.
#[derive(Debug, Default)]
pub struct Shared<'t> {
    ids: HashMap<Named<'t>, u32>,
    bytes: Vec<u8>,
}

/// The size of an inode's xattr area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrArea {
    len: usize,
}

impl<'t> Shared<'t> {
    /// Shares whatever more than one of `inodes` have.
    pub fn new(inodes: impl Iterator<Item = &'t Inode> + Clone) -> Self {
        let all = inodes.flat_map(|inode| inode.xattrs.iter()).map(|(name, value)| (name.as_slice(), value.as_slice()));
        let mut uses: HashMap<_, u32> = HashMap::new();
        for xattr in all.clone() {
            *uses.entry(xattr).or_default() += 1;
        }
        let mut shared = Self::default();
        for xattr in all {
            if uses.get(&xattr).is_some_and(|uses| *uses > 1) && !shared.ids.contains_key(&xattr) {
                let (Some((number, rest)), Ok(id)) = (split_name(xattr.0), u32::try_from(shared.bytes.len() / 4))
                else {
                    continue;
                };
                shared.ids.insert(xattr, id);
                put_entry(&mut shared.bytes, number, rest, xattr.1);
            }
        }
        shared
    }

    /// The area of shared xattrs.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// An inode's shared xattrs, and those that it has for itself.
    fn split<'i>(&self, inode: &'i Inode) -> (Vec<u32>, Vec<Named<'i>>) {
        let (mut ids, mut own) = (Vec::new(), Vec::new());
        for (name, value) in &inode.xattrs {
            match self.ids.get(&(name.as_slice(), value.as_slice())) {
                Some(id) if ids.len() < SHARED_MAX => ids.push(*id),
                _ => own.push((name.as_slice(), value.as_slice())),
            }
        }
        (ids, own)
    }
}

impl XattrArea {
    /// Measures an inode's xattrs.
    pub fn of(inode: &Inode, shared: &Shared<'_>) -> Result<Self, String> {
        if inode.xattrs.is_empty() {
            return Ok(Self::default());
        }
        let (ids, own) = shared.split(inode);
        let mut len = XATTR_HEADER + 4 * ids.len();
        for (name, value) in &inode.xattrs {
            let show = || String::from_utf8_lossy(name).into_owned();
            if split_name(name).is_none() {
                return Err(format!("extended attribute {:?} is in no namespace that EROFS knows", show()));
            }
            if u16::try_from(value.len()).is_err() {
                return Err(format!("extended attribute {:?} has more than 65535 bytes", show()));
            }
        }
        for (name, value) in own {
            len += split_name(name).map_or(0, |(_, rest)| entry_len(rest, value));
        }
        if u16::try_from((len - XATTR_HEADER) / 4 + 1).is_err() {
            return Err("more than 256 KiB of extended attributes".to_owned());
        }
        Ok(Self { len })
    }

    /// Bytes.
    pub fn len(self) -> u64 {
        self.len as u64
    }

    /// The size as inodes tell it.
    pub fn count(self) -> u16 {
        if self.len == 0 { 0 } else { ((self.len - XATTR_HEADER) / 4 + 1) as u16 }
    }

    /// Appends the area.
    pub fn put(self, inode: &Inode, shared: &Shared<'_>, out: &mut Vec<u8>) {
        if self.len == 0 {
            return;
        }
        let (ids, own) = shared.split(inode);
        out.extend_from_slice(&[0, 0, 0, 0, ids.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        for (name, value) in own {
            if let Some((number, rest)) = split_name(name) {
                put_entry(out, number, rest, value);
            }
        }
    }
}
