//! Directories of an image.
//!
//! A directory's data are blocks. Each holds its own entries and after them their names, so a block can be searched
//! alone; names ascend, by unsigned bytes, through the whole directory.
use super::ondisk::{BLOCK, DIRENT, NAME_MAX, u16_at, u64_at};
use super::{ErofsError, FileKind, Image, ImageInode, Nid};
use std::cmp::Ordering;

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where to go on after this entry.
    pub next_cookie: u64,
    /// The name; `.` and `..` are entries like others.
    pub name: &'a [u8],
    /// The inode.
    pub nid: Nid,
    /// Its type.
    pub kind: FileKind,
}

/// Iterator over a directory's entries in the order of their names; ends after the first error.
#[derive(Debug)]
pub struct Entries<'a> {
    image: &'a Image,
    directory: ImageInode,
    position: u64,
}

/// A block of a directory.
struct DirBlock<'a> {
    bytes: &'a [u8],
    count: usize,
    nid: Nid,
}

impl Image {
    /// The entries of a directory, from `cookie` on: 0, or the `next_cookie` of an entry.
    ///
    /// # Errors
    /// `directory` isn't one. Damage shows as the iterator's last item.
    pub fn entries(&self, directory: &ImageInode, cookie: u64) -> Result<Entries<'_>, ErofsError> {
        must_be_directory(directory)?;
        Ok(Entries { image: self, directory: *directory, position: cookie })
    }

    /// The inode that `name` leads to in `directory`; `.` and `..` are names like others.
    ///
    /// # Errors
    /// `directory` isn't one, or is damaged where the search led.
    pub fn lookup(&self, directory: &ImageInode, name: &[u8]) -> Result<Option<Nid>, ErofsError> {
        must_be_directory(directory)?;
        // The last block whose first name isn't above `name`.
        let (mut low, mut high) = (0, directory.size.div_ceil(BLOCK));
        let mut candidate = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.dir_block(directory, middle)?;
            match block.name(0)?.cmp(name) {
                Ordering::Equal => return block.nid(0).map(Some),
                Ordering::Less => {
                    low = middle + 1;
                    candidate = Some(block);
                }
                Ordering::Greater => high = middle,
            }
        }
        let Some(block) = candidate else { return Ok(None) };
        let (mut low, mut high) = (1, block.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match block.name(middle)?.cmp(name) {
                Ordering::Equal => return block.nid(middle).map(Some),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// Block `number` of data that is in the image itself; the last one is as long as the data there.
    pub(super) fn flat_block(&self, inode: &ImageInode, number: u64) -> Result<&[u8], ErofsError> {
        let corrupt = |what| ErofsError::Corrupt { nid: inode.nid.0, what };
        let start = number.saturating_mul(BLOCK);
        let len = inode.size.saturating_sub(start).min(BLOCK);
        let offset = self.flat_offset(inode, start).ok_or(corrupt("data of an unexpected layout"))?;
        usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes().get(offset..offset.checked_add(len as usize)?))
            .ok_or(corrupt("data outside the image"))
    }

    fn dir_block(&self, directory: &ImageInode, number: u64) -> Result<DirBlock<'_>, ErofsError> {
        let bytes = self.flat_block(directory, number)?;
        let first = u16_at(bytes, 8).map_or(0, usize::from);
        if first < DIRENT || !first.is_multiple_of(DIRENT) || first >= bytes.len() {
            return Err(ErofsError::Corrupt { nid: directory.nid.0, what: "a directory block without entries" });
        }
        Ok(DirBlock { bytes, count: first / DIRENT, nid: directory.nid })
    }
}

impl<'a> DirBlock<'a> {
    fn corrupt(&self, what: &'static str) -> ErofsError {
        ErofsError::Corrupt { nid: self.nid.0, what }
    }

    fn name(&self, index: usize) -> Result<&'a [u8], ErofsError> {
        let offset = |index: usize| u16_at(self.bytes, index * DIRENT + 8).map(usize::from);
        let end = if index + 1 < self.count { offset(index + 1) } else { Some(self.bytes.len()) };
        let name = offset(index)
            .filter(|start| *start >= self.count * DIRENT)
            .and_then(|start| self.bytes.get(start..end?))
            .ok_or(self.corrupt("a name outside its directory block"))?;
        // The last name of a block that isn't full is followed by zeros.
        let name = if index + 1 < self.count { name } else { name.split(|b| *b == 0).next().unwrap_or_default() };
        if name.is_empty() || name.len() > NAME_MAX || name.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(self.corrupt("a name that no file can have"));
        }
        Ok(name)
    }

    fn nid(&self, index: usize) -> Result<Nid, ErofsError> {
        u64_at(self.bytes, index * DIRENT).map(Nid).ok_or(self.corrupt("a directory entry outside its block"))
    }

    fn kind(&self, index: usize) -> Result<FileKind, ErofsError> {
        let number = self.bytes.get(index * DIRENT + 10).copied().unwrap_or_default();
        FileKind::of_dirent(number).ok_or(self.corrupt("a directory entry of an unknown type"))
    }
}

impl<'a> Entries<'a> {
    fn step(&mut self) -> Result<Option<Entry<'a>>, ErofsError> {
        while self.position < self.directory.size {
            let number = self.position / BLOCK;
            let block = self.image.dir_block(&self.directory, number)?;
            let index = ((self.position % BLOCK) as usize).div_ceil(DIRENT);
            if index >= block.count {
                self.position = (number + 1).saturating_mul(BLOCK);
                continue;
            }
            self.position = number * BLOCK + ((index + 1) * DIRENT) as u64;
            return Ok(Some(Entry {
                next_cookie: self.position,
                name: block.name(index)?,
                nid: block.nid(index)?,
                kind: block.kind(index)?,
            }));
        }
        Ok(None)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, ErofsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.step().transpose();
        if matches!(item, Some(Err(_))) {
            self.position = u64::MAX;
        }
        item
    }
}

fn must_be_directory(inode: &ImageInode) -> Result<(), ErofsError> {
    match inode.kind {
        FileKind::Directory => Ok(()),
        _ => Err(ErofsError::Corrupt { nid: inode.nid.0, what: "not a directory" }),
    }
}
