//! Where everything goes in an image.
use super::data::{Data, directory_size, entries_of};
use super::xattrs::{Shared, XattrArea};
use crate::erofs::ondisk::{BLOCK, NAME_MAX, NID_BITS, SYMLINK_MAX, encode_device};
use crate::erofs::{ErofsError, MAX_DEPTH};
use crate::tree::{Content, Inode, InodeId, ROOT, Tree};
use std::collections::HashMap;

/// Largest image, bytes.
const IMAGE_MAX: u64 = 1 << 30;

/// All decisions about an image of a tree.
#[derive(Debug)]
pub struct Plan<'t> {
    inodes: Vec<Planned>,
    /// Byte offset of every inode of the tree; 0 for those that no name leads to.
    offsets: Vec<u64>,
    shared: Shared<'t>,
    shared_offset: u64,
    size: u64,
    time: (i64, u32),
}

/// Where an inode goes.
#[derive(Debug)]
pub struct Planned {
    /// Its number in the tree.
    pub id: InodeId,
    /// The directory that holds its first name.
    pub parent: InodeId,
    /// Link count.
    pub nlink: u32,
    /// Bytes of its data.
    pub size: u64,
    /// Whether it takes 64 bytes.
    pub extended: bool,
    /// Its xattrs.
    pub xattrs: XattrArea,
    /// Its data.
    pub data: Data,
    /// Its byte offset in the image.
    pub offset: u64,
    /// First of its whole blocks, if it has any.
    pub blocks: Option<u64>,
}

/// An inode that a name leads to. There may be millions, so they are small.
struct Named {
    id: u32,
    parent: u32,
    nlink: u32,
}

impl<'t> Plan<'t> {
    /// Plans an image whose inodes start at byte `meta_start`.
    pub fn new(tree: &'t Tree, meta_start: u64) -> Result<Self, ErofsError> {
        let (mut inodes, mut offsets) = (Vec::new(), vec![0; tree.inodes.len()]);
        let Outline { shared, shared_offset, first_block, size, time } = outline(tree, meta_start, |planned| {
            offsets[planned.id] = planned.offset;
            inodes.push(planned);
        })?;
        let mut block = first_block;
        for planned in &mut inodes {
            let count = planned.data.blocks();
            planned.blocks = (count > 0).then_some(block);
            block += count;
        }
        Ok(Self { inodes, offsets, shared, shared_offset, size, time })
    }

    /// The inodes, in the order of their offsets; the root first.
    pub fn inodes(&self) -> &[Planned] {
        &self.inodes
    }

    /// Node number of an inode of the tree.
    pub fn nid(&self, id: InodeId) -> u64 {
        self.offsets[id] >> NID_BITS
    }

    /// Bytes of the image.
    pub fn image_size(&self) -> u64 {
        self.size
    }

    /// Byte offset of the shared xattrs.
    pub fn shared_xattrs_offset(&self) -> u64 {
        self.shared_offset
    }

    /// The shared xattrs.
    pub fn shared_xattrs(&self) -> &[u8] {
        self.shared.bytes()
    }

    /// The numbers of the shared xattrs.
    pub fn shared_ids(&self) -> &Shared<'t> {
        &self.shared
    }

    /// Modification time of compact inodes: seconds, nanoseconds.
    pub fn time(&self) -> (i64, u32) {
        self.time
    }
}

/// What an image is made of besides its inodes.
pub struct Outline<'t> {
    shared: Shared<'t>,
    shared_offset: u64,
    first_block: u64,
    size: u64,
    time: (i64, u32),
}

/// Places all inodes, in their order in the image, and hands each to `each`, but for the address of its blocks.
pub fn outline(tree: &Tree, meta_start: u64, mut each: impl FnMut(Planned)) -> Result<Outline<'_>, ErofsError> {
    let named = walk(tree)?;
    let inodes = || named.iter().map(|named| tree.inode(named.id as InodeId));
    let time = commonest_time(inodes());
    let shared = Shared::new(inodes());
    let (mut end, mut blocks) = (meta_start, 0u64);
    for named in &named {
        let planned = plan_inode(tree, named, &shared, time);
        let mut planned = planned.map_err(|problem| at(tree, named.id as InodeId, problem))?;
        end = place(&mut planned, end);
        blocks = blocks.saturating_add(planned.data.blocks());
        each(planned);
    }
    let shared_offset = end.next_multiple_of(BLOCK);
    let first_block = (shared_offset + shared.bytes().len() as u64).div_ceil(BLOCK);
    let size = first_block.saturating_add(blocks).saturating_mul(BLOCK);
    if size > IMAGE_MAX {
        return Err(ErofsError::Tree(format!("the image would have {size} bytes, more than {IMAGE_MAX}")));
    }
    Ok(Outline { shared, shared_offset, first_block, size, time })
}

/// All inodes that names lead to, breadth first.
fn walk(tree: &Tree) -> Result<Vec<Named>, ErofsError> {
    if tree.inodes.is_empty() || tree.entries(ROOT).is_none() {
        return Err(ErofsError::Tree("its root is not a directory".to_owned()));
    }
    const UNSEEN: u32 = u32::MAX;
    if tree.inodes.len() >= UNSEEN as usize {
        return Err(ErofsError::Tree("it has more inodes than EROFS can number".to_owned()));
    }
    let mut positions = vec![UNSEEN; tree.inodes.len()];
    positions[ROOT] = 0;
    let mut named = vec![Named { id: ROOT as u32, parent: ROOT as u32, nlink: 2 }];
    let (mut depth, mut level_end, mut next) = (0, 1, 0);
    while next < named.len() {
        if next == level_end {
            depth += 1;
            level_end = named.len();
        }
        let parent = named[next].id as InodeId;
        for (name, id) in tree.entries(parent).into_iter().flatten() {
            let bad = |problem: &str| {
                let name = format!("/{}", String::from_utf8_lossy(name));
                ErofsError::File { path: path(tree, parent) + &name, problem: problem.to_owned() }
            };
            if name.is_empty() || name.len() > NAME_MAX || matches!(name, b"." | b"..") {
                return Err(bad("a name that no file can have"));
            }
            if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                return Err(bad("a name that no file can have"));
            }
            let inode = tree.inodes.get(id).ok_or_else(|| bad("a name that leads to no inode"))?;
            let is_directory = matches!(inode.content, Content::Directory(_));
            match positions[id] {
                UNSEEN => {
                    if is_directory && depth >= MAX_DEPTH {
                        return Err(bad("directories are nested too deep"));
                    }
                    // Both are less than the number of inodes.
                    positions[id] = named.len() as u32;
                    named.push(Named { id: id as u32, parent: parent as u32, nlink: if is_directory { 2 } else { 1 } });
                    if is_directory {
                        named[next].nlink += 1;
                    }
                }
                _ if is_directory => return Err(bad("a directory with two names")),
                position => named[position as usize].nlink += 1,
            }
        }
        next += 1;
    }
    Ok(named)
}

fn plan_inode(tree: &Tree, named: &Named, shared: &Shared<'_>, time: (i64, u32)) -> Result<Planned, String> {
    let Named { nlink, .. } = *named;
    let (id, parent) = (named.id as InodeId, named.parent as InodeId);
    let inode = tree.inode(id);
    if inode.mtime_nsec >= 1_000_000_000 {
        return Err("nanoseconds of more than a second".to_owned());
    }
    let xattrs = XattrArea::of(inode, shared)?;
    let (size, data) = match &inode.content {
        Content::Directory(entries) => {
            let size = directory_size(&entries_of(entries, id, parent));
            (size, Data::Flat { tail: false, size })
        }
        Content::File(file) => (file.size(), Data::of_file(file, &tree.device_sizes)?),
        Content::Symlink(target) => {
            let size = target.len() as u64;
            if size == 0 || size > SYMLINK_MAX || target.contains(&0) {
                return Err("a symlink's target that no link can have".to_owned());
            }
            (size, Data::Flat { tail: false, size })
        }
        Content::CharDevice(number) | Content::BlockDevice(number) => {
            let (major, minor) = (number.major, number.minor);
            encode_device(*number).ok_or_else(|| format!("device number {major}:{minor} is beyond Linux's range"))?;
            (0, Data::None)
        }
        Content::Fifo | Content::Socket => (0, Data::None),
    };
    let extended = (inode.mtime, inode.mtime_nsec) != time
        || inode.uid > u32::from(u16::MAX)
        || inode.gid > u32::from(u16::MAX)
        || nlink > u32::from(u16::MAX)
        || u32::try_from(size).is_err();
    Ok(Planned { id, parent, nlink, size, extended, xattrs, data, offset: 0, blocks: None })
}

/// Places an inode at or after `end`; returns where it ends.
fn place(planned: &mut Planned, end: u64) -> u64 {
    let unit = 1 << NID_BITS;
    let start = end.next_multiple_of(unit);
    let head = if planned.extended { 64 } else { 32 } + planned.xattrs.len();
    if let Data::Flat { tail, size } = &mut planned.data {
        let len = *size % BLOCK;
        // The kernel wants a tail to lie in one block, and Linux before 6.13 wants a symlink's inode there too.
        let fits = |start: u64| start % BLOCK + head + len <= BLOCK;
        let candidate = (0..BLOCK / unit).map(|n| start + n * unit).find(|start| fits(*start));
        // Skipping costs what is skipped, not skipping the unused rest of a block.
        if let Some(candidate) = candidate.filter(|candidate| len > 0 && candidate - start < BLOCK - len) {
            *tail = true;
            planned.offset = candidate;
            return candidate + head + len;
        }
    }
    planned.offset = start;
    start + head + planned.data.behind(start + head)
}

/// The modification time that most inodes have, of several the earliest: it goes without saying in compact inodes.
fn commonest_time<'t>(inodes: impl Iterator<Item = &'t Inode>) -> (i64, u32) {
    let mut counts: HashMap<(i64, u32), u32> = HashMap::new();
    for inode in inodes {
        *counts.entry((inode.mtime, inode.mtime_nsec)).or_default() += 1;
    }
    let best = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    best.map_or((0, 0), |(time, _)| time)
}

fn at(tree: &Tree, id: InodeId, problem: String) -> ErofsError {
    let path = if id == ROOT { "/".to_owned() } else { path(tree, id) };
    ErofsError::File { path, problem }
}

/// Path of an inode for messages, empty for the root; only made when something is wrong.
fn path(tree: &Tree, wanted: InodeId) -> String {
    let mut parents: HashMap<InodeId, (InodeId, &[u8])> = HashMap::new();
    let mut queue = vec![ROOT];
    while let Some(directory) = queue.pop() {
        for (name, id) in tree.inodes.get(directory).and_then(|_| tree.entries(directory)).into_iter().flatten() {
            if id != ROOT && !parents.contains_key(&id) {
                parents.insert(id, (directory, name));
                queue.push(id);
            }
        }
    }
    let mut names = Vec::new();
    let mut id = wanted;
    while let Some((parent, name)) = parents.get(&id) {
        names.push(format!("/{}", String::from_utf8_lossy(name)));
        id = *parent;
    }
    names.reverse();
    names.concat()
}
