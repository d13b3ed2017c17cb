//! From a tree to its columns.
//!
//! The tree is walked depth first, names in ascending order: the order in which Docker, BuildKit and containerd write
//! layers. So where a file's data begin in the tar can mostly be told from where the last file's ended.
use super::columns::{Planes, put_column};
use super::wire::{put_signed, put_varint};
use crate::tree::{self, Content, Directory, ExtentSource, FileData, Inode, ROOT, Tree};
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Most memory that a tree may take, bytes, by [`Room`]'s reckoning.
const MEMORY_MAX: u64 = 1 << 30;
/// Unit of addresses in devices, bytes.
pub const UNIT: u64 = 512;

/// Extended attributes of an inode, by name.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Numbers for values in the order in which they come up.
struct Dictionary<T> {
    numbers: HashMap<T, u64>,
    values: Vec<T>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: Vec::new() }
    }
}

impl<T: Hash + Eq + Clone> Dictionary<T> {
    fn number(&mut self, value: T) -> u64 {
        let next = self.values.len() as u64;
        *self.numbers.entry(value).or_insert_with_key(|value| {
            self.values.push(value.clone());
            next
        })
    }
}

/// Where the data of the next file should begin in its tar.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The device in which the last data were.
    pub device: u16,
    /// Unit in which they would go on.
    end: u64,
    /// Names since then: each has a header in the tar.
    headers: u64,
}

impl Place {
    /// Before all files.
    pub const START: Self = Self { device: 1, end: 0, headers: 0 };

    /// Takes note of a name.
    pub fn pass_name(&mut self) {
        self.headers += 1;
    }

    /// Takes note of data at `offset`; what to write so that [`offset`](Self::offset) finds it.
    fn pass_data(&mut self, device: u16, offset: u64, len: u64) -> i64 {
        let surprise = (offset / UNIT).wrapping_sub(self.guess()) as i64;
        *self = Self { device, end: offset.saturating_add(len).div_ceil(UNIT), headers: 0 };
        surprise
    }

    /// Takes note of data of `len` bytes that begin where `surprise` says; the offset, if it is a possible one.
    pub fn offset(&mut self, device: u16, surprise: i64, len: u64) -> Option<u64> {
        let offset = self.guess().wrapping_add(surprise as u64).checked_mul(UNIT)?;
        self.pass_data(device, offset, len);
        Some(offset)
    }

    fn guess(&self) -> u64 {
        self.end.wrapping_add(self.headers)
    }
}

/// Memory that is left for a tree, reckoned coarsely: it keeps hostile bytes from becoming a tree that is out of all
/// proportion to them.
#[derive(Clone, Copy, Debug)]
pub struct Room(u64);

impl Room {
    /// Bytes that a name, an extent or an xattr takes besides its text.
    const PART: u64 = 64;
    /// Parts that an inode counts for.
    pub const INODE: u64 = 4;
    /// Parts that a set of xattrs counts for: a map's smallest node has room for eleven.
    const SET: u64 = 8;
    /// Most inodes that there is room for.
    pub const INODES: u64 = MEMORY_MAX / (Self::INODE * Self::PART);

    /// What every tree gets.
    pub const WHOLE: Self = Self(MEMORY_MAX);

    /// Bytes that have been taken.
    pub fn taken(self) -> u64 {
        MEMORY_MAX.saturating_sub(self.0)
    }

    /// Takes room for so many parts and their text of `bytes` bytes.
    pub fn take(&mut self, parts: u64, bytes: usize) -> Result<(), &'static str> {
        let left = self.0.checked_sub(parts * Self::PART + bytes as u64);
        self.0 = left.ok_or("the tree would take more than 1 GiB of memory")?;
        Ok(())
    }

    /// Takes room for a set of xattrs, without those in it.
    pub fn take_set(&mut self) -> Result<(), &'static str> {
        self.take(Self::SET, 0)
    }

    /// Takes room for xattrs.
    pub fn take_xattrs(&mut self, xattrs: &Xattrs) -> Result<(), &'static str> {
        if !xattrs.is_empty() {
            self.take_set()?;
        }
        xattrs.iter().try_for_each(|(name, value)| self.take(1, name.len() + value.len()))
    }
}

/// The columns in the making.
#[derive(Default)]
struct Columns<'t> {
    modes: Dictionary<u16>,
    owners: Dictionary<(u32, u32)>,
    times: Dictionary<(i64, u32)>,
    xattrs: Dictionary<&'t Xattrs>,
    names: Vec<u8>,
    counts: Vec<u8>,
    kinds: Vec<u8>,
    links: Vec<u8>,
    inode_owners: Vec<u8>,
    inode_times: Vec<u8>,
    inode_xattrs: Vec<u8>,
    targets: Vec<u8>,
    device_numbers: Vec<u8>,
    shapes: Vec<u8>,
    parts: Vec<u8>,
    positions: Vec<u8>,
    inline: Vec<u8>,
    sizes: Planes,
}

/// No number yet.
const UNSEEN: u32 = u32::MAX;

/// A tree being walked.
struct Packer<'t, 'r> {
    tree: &'t Tree,
    /// The number that each inode got; [`UNSEEN`] before.
    numbers: Vec<u32>,
    inodes: u64,
    place: Place,
    room: &'r mut Room,
    columns: Columns<'t>,
}

/// Packs a tree that EROFS can hold, if there is room for it.
pub fn pack(tree: &Tree, room: &mut Room) -> Result<Vec<u8>, &'static str> {
    if tree.inodes.len() >= UNSEEN as usize {
        return Err("more inodes than a tree may have");
    }
    let numbers = vec![UNSEEN; tree.inodes.len()];
    let mut packer = Packer { tree, numbers, inodes: 0, place: Place::START, room, columns: Columns::default() };
    packer.walk()?;
    Ok(packer.finish())
}

impl<'t> Packer<'t, '_> {
    fn walk(&mut self) -> Result<(), &'static str> {
        let tree = self.tree;
        self.numbers[ROOT] = 0;
        self.inode(tree.inode(ROOT))?;
        let mut open: Vec<tree::Iter<'_>> = tree.entries(ROOT).map(Directory::iter).into_iter().collect();
        while let Some(entries) = open.last_mut() {
            let Some((name, id)) = entries.next() else {
                open.pop();
                continue;
            };
            self.room.take(1, name.len())?;
            self.columns.names.extend_from_slice(name);
            self.columns.names.push(0);
            self.place.pass_name();
            if self.numbers[id] != UNSEEN {
                put_varint(&mut self.columns.kinds, 0);
                put_varint(&mut self.columns.links, self.inodes - u64::from(self.numbers[id]));
                continue;
            }
            // At most as many as the tree has.
            self.numbers[id] = self.inodes as u32;
            self.inode(tree.inode(id))?;
            open.extend(tree.entries(id).map(Directory::iter));
        }
        Ok(())
    }

    fn inode(&mut self, inode: &'t Inode) -> Result<(), &'static str> {
        self.inodes += 1;
        self.room.take(Room::INODE, 0)?;
        self.room.take_xattrs(&inode.xattrs)?;
        let columns = &mut self.columns;
        let mode = columns.modes.number(kind(&inode.content) << 12 | inode.perm & 0o7777);
        put_varint(&mut columns.kinds, mode + 1);
        put_varint(&mut columns.inode_owners, columns.owners.number((inode.uid, inode.gid)));
        put_varint(&mut columns.inode_times, columns.times.number((inode.mtime, inode.mtime_nsec)));
        let known = columns.xattrs.values.len();
        let xattrs = if inode.xattrs.is_empty() { 0 } else { columns.xattrs.number(&inode.xattrs) + 1 };
        if columns.xattrs.values.len() > known {
            self.room.take_xattrs(&inode.xattrs)?;
        }
        put_varint(&mut columns.inode_xattrs, xattrs);
        match &inode.content {
            Content::Directory(entries) => put_varint(&mut columns.counts, entries.len() as u64),
            Content::File(file) => self.file(file)?,
            Content::Symlink(target) => {
                self.room.take(0, target.len())?;
                columns.targets.extend_from_slice(target);
                columns.targets.push(0);
            }
            Content::CharDevice(number) | Content::BlockDevice(number) => {
                put_varint(&mut columns.device_numbers, number.major.into());
                put_varint(&mut columns.device_numbers, number.minor.into());
            }
            Content::Fifo | Content::Socket => {}
        }
        Ok(())
    }

    fn file(&mut self, file: &FileData) -> Result<(), &'static str> {
        let columns = &mut self.columns;
        columns.sizes.push(file.size());
        if file.size() == 0 {
            return Ok(());
        }
        self.room.take(file.extent_count() as u64, 0)?;
        if let Some((device, offset)) = file.place().filter(|(device, _)| *device == self.place.device) {
            put_varint(&mut columns.shapes, 0);
            put_signed(&mut columns.positions, self.place.pass_data(device, offset, file.size()));
            return Ok(());
        }
        put_varint(&mut columns.shapes, file.extent_count() as u64 + 1);
        let mut end = 0;
        for extent in file.extents() {
            put_varint(&mut columns.parts, extent.file_offset - end);
            put_varint(&mut columns.parts, extent.len);
            end = extent.file_offset + extent.len;
            match &extent.source {
                ExtentSource::Device { device, offset } => {
                    put_varint(&mut columns.parts, (*device).into());
                    put_signed(&mut columns.positions, self.place.pass_data(*device, *offset, extent.len));
                }
                ExtentSource::Inline(bytes) => {
                    self.room.take(0, bytes.len())?;
                    put_varint(&mut columns.parts, 0);
                    columns.inline.extend_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.inodes);
        put_varint(&mut out, self.tree.device_sizes.len() as u64);
        self.tree.device_sizes.iter().for_each(|size| put_varint(&mut out, *size));
        let c = self.columns;
        let [mut modes, mut owners, mut times, mut xattrs] = <[Vec<u8>; 4]>::default();
        c.modes.values.iter().for_each(|mode| put_varint(&mut modes, (*mode).into()));
        for (uid, gid) in &c.owners.values {
            put_varint(&mut owners, (*uid).into());
            put_varint(&mut owners, (*gid).into());
        }
        let mut last = 0;
        for (seconds, nanoseconds) in &c.times.values {
            put_signed(&mut times, seconds.wrapping_sub(last));
            put_varint(&mut times, (*nanoseconds).into());
            last = *seconds;
        }
        for set in &c.xattrs.values {
            put_varint(&mut xattrs, set.len() as u64);
            for bytes in set.iter().flat_map(|(name, value)| [name, value]) {
                put_varint(&mut xattrs, bytes.len() as u64);
                xattrs.extend_from_slice(bytes);
            }
        }
        let dictionaries = [&modes, &owners, &times, &xattrs];
        let names = [&c.names, &c.counts, &c.kinds, &c.links];
        let inodes = [&c.inode_owners, &c.inode_times, &c.inode_xattrs, &c.targets, &c.device_numbers];
        let files = [&c.shapes, &c.parts, &c.positions, &c.inline];
        let columns = dictionaries.into_iter().chain(names).chain(inodes).chain(files);
        columns.for_each(|column| put_column(&mut out, column));
        c.sizes.put(&mut out);
        out
    }
}

/// The number of a type, which stands above the permission bits: the one that `st_mode` has.
fn kind(content: &Content) -> u16 {
    match content {
        Content::Fifo => 1,
        Content::CharDevice(_) => 2,
        Content::Directory(_) => 4,
        Content::BlockDevice(_) => 6,
        Content::File(_) => 8,
        Content::Symlink(_) => 10,
        Content::Socket => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::unpack::unpack;

    #[test]
    fn room_is_taken_alike_by_packing_and_unpacking() {
        let mut inodes = vec![Inode::empty_directory(); 6];
        inodes[1].xattrs.insert(b"user.a".to_vec(), vec![1; 100]);
        inodes[2].xattrs = inodes[1].xattrs.clone();
        inodes[3].content = Content::Symlink(vec![b'x'; 500]);
        let source = ExtentSource::Inline(vec![7; 700]);
        let extents = vec![crate::tree::Extent { file_offset: 0, len: 700, source }];
        inodes[4].content = Content::File(FileData::new(700, extents));
        let source = ExtentSource::Device { device: 1, offset: 0 };
        let extents = vec![crate::tree::Extent { file_offset: 0, len: 50, source }];
        inodes[5].content = Content::File(FileData::new(50, extents));
        let names = ["a", "bb", "ccc", "dddd", "eeeee", "fff"].into_iter().zip([1, 2, 3, 4, 5, 5]);
        let entries = names.map(|(name, id)| (name.as_bytes().to_vec(), id)).collect();
        inodes[ROOT].content = Content::Directory(entries);
        let tree = Tree { inodes, device_sizes: vec![512] };
        // Inodes, names, xattrs and their sets, once more in the dictionary, extents; the text of names, xattrs, the symlink
        // and the file.
        let enough = (4 * 6 + 6 + 3 + 3 * 8 + 2) * 64 + 18 + 3 * 106 + 500 + 700;
        let mut room = Room(enough);
        let packed = pack(&tree, &mut room).unwrap();
        assert_eq!(room.0, 0);
        assert!(pack(&tree, &mut Room(enough - 1)).is_err());
        room = Room(enough);
        assert_eq!(unpack(&packed, &mut room), Ok(tree));
        assert_eq!(room.0, 0);
        assert!(unpack(&packed, &mut Room(enough - 1)).is_err());
    }
}
