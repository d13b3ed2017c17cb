//! From an image back to a [`Tree`].
use super::{ErofsError, FileKind, Image, ImageInode, ImageSource, MAX_DEPTH, Nid};
use crate::tree::{Content, Directory, Extent, ExtentSource, FileData, Inode, InodeId, ROOT, Tree};
use std::collections::HashMap;

/// Bytes of xattrs that a tree may have for each byte of its image (inodes share them), and in any case.
const XATTR_BYTES: (u64, u64) = (64, 16 << 20);

/// What is left of the bounds that keep a hostile image from becoming a tree much larger than itself: nothing but
/// xattrs is shared in the images that Clipper writes.
struct Budget {
    entries: u64,
    inline: u64,
    extents: u64,
    xattrs: u64,
}

impl Image {
    /// Reads the whole tree. Inodes are numbered in breadth-first order of their first name.
    ///
    /// # Errors
    /// Any damage; a directory that is reachable twice or is more than [`MAX_DEPTH`] deep; contents that are out of
    /// proportion to the image's size.
    pub fn to_tree(&self) -> Result<Tree, ErofsError> {
        let len = self.bytes().len() as u64;
        let xattrs = len.saturating_mul(XATTR_BYTES.0).saturating_add(XATTR_BYTES.1);
        let mut budget = Budget { entries: len / 12, inline: len, extents: len / 8, xattrs };
        let mut numbers = HashMap::from([(self.root(), ROOT)]);
        let mut inodes = vec![self.tree_inode(&self.inode(self.root())?, &mut budget)?];
        // Directories whose entries are yet to be read, with their depth.
        let mut level = vec![(self.root(), ROOT)];
        for depth in 0.. {
            let mut next = Vec::new();
            for (nid, id) in level {
                let entries = self.tree_entries(nid, &mut inodes, &mut numbers, &mut next, &mut budget)?;
                if let Some(Inode { content: Content::Directory(own), .. }) = inodes.get_mut(id) {
                    *own = entries;
                }
            }
            if next.is_empty() {
                break;
            }
            if depth == MAX_DEPTH {
                return Err(ErofsError::Corrupt { nid: next[0].0.0, what: "directories are nested too deep" });
            }
            level = next;
        }
        let device_sizes = self.devices().iter().map(|device| device.size).collect();
        Ok(Tree { inodes, device_sizes })
    }

    fn tree_entries(
        &self,
        nid: Nid,
        inodes: &mut Vec<Inode>,
        numbers: &mut HashMap<Nid, InodeId>,
        directories: &mut Vec<(Nid, InodeId)>,
        budget: &mut Budget,
    ) -> Result<Directory, ErofsError> {
        let corrupt = |what| ErofsError::Corrupt { nid: nid.0, what };
        let mut own = Directory::default();
        let mut last: &[u8] = b"";
        for entry in self.entries(&self.inode(nid)?, 0)? {
            let entry = entry?;
            budget.entries.spend(1, nid)?;
            // Without the order, lookups would miss names.
            if entry.name <= last {
                return Err(corrupt("names out of order"));
            }
            last = entry.name;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let id = match numbers.get(&entry.nid) {
                Some(id) => {
                    let known = inodes.get(*id).map(|inode| FileKind::of_content(&inode.content));
                    if known == Some(FileKind::Directory) {
                        return Err(corrupt("it holds a directory that has another name"));
                    }
                    if known != Some(entry.kind) {
                        return Err(corrupt("an entry's type is not that of its inode"));
                    }
                    *id
                }
                None => {
                    let inode = self.inode(entry.nid)?;
                    if inode.kind != entry.kind {
                        return Err(corrupt("an entry's type is not that of its inode"));
                    }
                    let id = inodes.len();
                    inodes.push(self.tree_inode(&inode, budget)?);
                    numbers.insert(entry.nid, id);
                    if inode.kind == FileKind::Directory {
                        directories.push((entry.nid, id));
                    }
                    id
                }
            };
            own.insert(entry.name, id);
        }
        Ok(own)
    }

    /// An inode, without entries if it is a directory.
    fn tree_inode(&self, inode: &ImageInode, budget: &mut Budget) -> Result<Inode, ErofsError> {
        budget.xattrs.spend(self.xattr_bytes(inode)?, inode.nid)?;
        let content = match inode.kind {
            FileKind::File => Content::File(self.tree_file(inode, budget)?),
            FileKind::Directory => Content::Directory(Directory::default()),
            FileKind::Symlink => {
                budget.inline.spend(inode.size, inode.nid)?;
                Content::Symlink(self.symlink(inode)?)
            }
            FileKind::CharDevice => Content::CharDevice(inode.rdev),
            FileKind::BlockDevice => Content::BlockDevice(inode.rdev),
            FileKind::Fifo => Content::Fifo,
            FileKind::Socket => Content::Socket,
        };
        Ok(Inode {
            perm: (inode.mode & 0o7777) as u16,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            xattrs: self.xattrs(inode)?.into_iter().collect(),
            content,
        })
    }

    fn tree_file(&self, inode: &ImageInode, budget: &mut Budget) -> Result<FileData, ErofsError> {
        let mut extents: Vec<Extent> = Vec::new();
        budget.extents.spend(inode.chunks(), inode.nid)?;
        for run in self.extents(inode, 0..inode.size)? {
            let source = match run.source {
                ImageSource::Hole => continue,
                ImageSource::Device { device, offset } => ExtentSource::Device { device, offset },
                ImageSource::Image { offset } => {
                    budget.inline.spend(run.len, inode.nid)?;
                    let range = offset as usize..(offset + run.len) as usize;
                    let bytes = self.bytes().get(range).unwrap_or_default();
                    // The whole blocks of a file and its tail are apart.
                    if let Some(Extent { file_offset, len, source: ExtentSource::Inline(last) }) = extents.last_mut()
                        && *file_offset + *len == run.file_offset
                    {
                        last.extend_from_slice(bytes);
                        *len += run.len;
                        continue;
                    }
                    ExtentSource::Inline(bytes.to_vec())
                }
            };
            extents.push(Extent { file_offset: run.file_offset, len: run.len, source });
        }
        Ok(FileData::new(inode.size, extents))
    }
}

/// A bound that shrinks.
trait Spend {
    fn spend(&mut self, amount: u64, nid: Nid) -> Result<(), ErofsError>;
}

impl Spend for u64 {
    fn spend(&mut self, amount: u64, nid: Nid) -> Result<(), ErofsError> {
        let what = "more content than an image of this size can have";
        *self = self.checked_sub(amount).ok_or(ErofsError::Corrupt { nid: nid.0, what })?;
        Ok(())
    }
}
