//! From a [`Tree`] to an EROFS image.
//!
//! ```text
//! 0      1024         1152                                                                      blocks * 512
//! +------+------------+--------------+--------------------------------+---------------+---------------+
//! | zero | superblock | device table | inodes, each with its xattrs   | shared xattrs | whole blocks  |
//! |      |            | 128 B a slot | and its tail or chunk indexes  |               | of data       |
//! +------+------------+--------------+--------------------------------+---------------+---------------+
//! ```
//!
//! Inodes stand in breadth-first order, so that those of one directory are neighbours and the root is first: its node
//! number has but 16 bits.
mod data;
mod plan;
mod xattrs;

use super::ondisk::{BLOCK, DEVICE_SLOT, NID_BITS, NULL_BLOCK, SUPER_OFFSET, SUPER_SIZE, Superblock, checksum, layout};
use super::{ErofsError, FileKind};
use crate::tree::{Content, DeviceNumber, Tree};
use data::{Data, dirent_blocks, entries_of};
use plan::{Plan, Planned};

/// Most devices of an image. Layers of an image are far fewer; the table stands before the root's inode.
const DEVICES_MAX: usize = 4096;

/// Writes `tree` as an EROFS image: deterministic, whole 512-byte blocks, without the inodes that no name leads to.
///
/// # Errors
/// A file that EROFS can't express (an xattr outside the known namespaces, a device number beyond Linux's bits, an
/// extent that isn't on 512-byte boundaries or lies outside its device, a name that no file can have, two names for
/// one directory), or a bound: directories deeper than [`MAX_DEPTH`](super::MAX_DEPTH), chunk tables over 64 MiB for
/// one file, an image of over 1 GiB.
pub fn write(tree: &Tree) -> Result<Vec<u8>, ErofsError> {
    let plan = Plan::new(tree, meta_start(tree)?)?;
    let mut image = vec![0; plan.image_size() as usize];
    for (n, size) in tree.device_sizes.iter().enumerate() {
        put_device(&mut image, SUPER_OFFSET + SUPER_SIZE + n * DEVICE_SLOT, *size);
    }
    put(&mut image, plan.shared_xattrs_offset() as usize, plan.shared_xattrs());
    for (number, planned) in plan.inodes().iter().enumerate() {
        put_inode(&mut image, tree, &plan, number as u32 + 1, planned);
    }
    let mut superblock = Superblock {
        root: (plan.inodes()[0].offset >> NID_BITS) as u16,
        inodes: plan.inodes().len() as u64,
        time: plan.time().0,
        time_nsec: plan.time().1,
        blocks: (image.len() as u64 / BLOCK) as u32,
        meta_block: 0,
        xattr_block: (plan.shared_xattrs_offset() / BLOCK) as u32,
        uuid: [0; 16],
        devices: tree.device_sizes.len() as u16,
        device_slot: ((SUPER_OFFSET + SUPER_SIZE) / DEVICE_SLOT) as u16,
    };
    put(&mut image, SUPER_OFFSET, &superblock.encode());
    // The identifier follows from everything else, marked as a custom UUID (RFC 9562, section 5.8).
    superblock.uuid.copy_from_slice(&blake3::hash(&image).as_bytes()[..16]);
    superblock.uuid[6] = superblock.uuid[6] & 0x0f | 0x80;
    superblock.uuid[8] = superblock.uuid[8] & 0x3f | 0x80;
    put(&mut image, SUPER_OFFSET, &superblock.encode());
    let sum = checksum(&image[SUPER_OFFSET..SUPER_OFFSET + BLOCK as usize]);
    put(&mut image, SUPER_OFFSET + 4, &sum.to_le_bytes());
    Ok(image)
}

/// Checks that [`write`] would take `tree`.
///
/// # Errors
/// As [`write`].
pub fn check(tree: &Tree) -> Result<(), ErofsError> {
    plan::outline(tree, meta_start(tree)?, drop).map(|_| ())
}

/// Where the inodes start, behind the table of devices.
fn meta_start(tree: &Tree) -> Result<u64, ErofsError> {
    let devices = &tree.device_sizes;
    if devices.len() > DEVICES_MAX {
        return Err(ErofsError::Tree(format!("it has {} devices, more than {DEVICES_MAX}", devices.len())));
    }
    if let Some(size) = devices.iter().find(|size| size.div_ceil(BLOCK) >= u64::from(NULL_BLOCK)) {
        return Err(ErofsError::Tree(format!("a device of {size} bytes is larger than 2 TiB")));
    }
    Ok((SUPER_OFFSET + SUPER_SIZE + DEVICE_SLOT * devices.len()) as u64)
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A slot of the device table. Its size in bytes, which the kernel doesn't ask for, is in the reserved bytes.
fn put_device(image: &mut [u8], at: usize, size: u64) {
    put(image, at + 64, &(size.div_ceil(BLOCK) as u32).to_le_bytes());
    put(image, at + DEVICE_SLOT - 8, &size.to_le_bytes());
}

fn put_inode(image: &mut [u8], tree: &Tree, plan: &Plan<'_>, number: u32, planned: &Planned) {
    let inode = tree.inode(planned.id);
    let kind = FileKind::of_content(&inode.content);
    let (data_layout, value) = match &planned.data {
        Data::Flat { tail, .. } => {
            let start = planned.blocks.map_or(NULL_BLOCK, |block| block as u32);
            (if *tail { layout::INLINE } else { layout::PLAIN }, start)
        }
        Data::Chunks(chunks) => (layout::CHUNKS, chunks.format()),
        Data::None => (layout::PLAIN, special_value(&inode.content)),
    };
    let mut record = Vec::with_capacity(64);
    let mode = kind.mode() | inode.perm & 0o7777;
    record.extend_from_slice(&(data_layout << 1 | u16::from(planned.extended)).to_le_bytes());
    record.extend_from_slice(&planned.xattrs.count().to_le_bytes());
    record.extend_from_slice(&mode.to_le_bytes());
    if planned.extended {
        record.extend_from_slice(&[0; 2]);
        record.extend_from_slice(&planned.size.to_le_bytes());
        record.extend_from_slice(&value.to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&inode.uid.to_le_bytes());
        record.extend_from_slice(&inode.gid.to_le_bytes());
        record.extend_from_slice(&inode.mtime.to_le_bytes());
        record.extend_from_slice(&inode.mtime_nsec.to_le_bytes());
        record.extend_from_slice(&planned.nlink.to_le_bytes());
        record.extend_from_slice(&[0; 16]);
    } else {
        record.extend_from_slice(&(planned.nlink as u16).to_le_bytes());
        record.extend_from_slice(&(planned.size as u32).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        record.extend_from_slice(&value.to_le_bytes());
        record.extend_from_slice(&number.to_le_bytes());
        record.extend_from_slice(&(inode.uid as u16).to_le_bytes());
        record.extend_from_slice(&(inode.gid as u16).to_le_bytes());
        record.extend_from_slice(&[0; 4]);
    }
    planned.xattrs.put(inode, plan.shared_ids(), &mut record);
    let start = planned.offset as usize;
    put(image, start, &record);
    let end = start + record.len();
    let blocks = planned.blocks.unwrap_or_default() * BLOCK;
    match &planned.data {
        Data::Flat { tail, .. } => {
            let bytes = match &inode.content {
                Content::Directory(entries) => {
                    let entries = entries_of(entries, planned.id, planned.parent);
                    dirent_blocks(&entries, |id| plan.nid(id), |id| FileKind::of_content(&tree.inode(id).content))
                }
                Content::Symlink(target) => target.clone(),
                Content::File(file) => data::inline_bytes(file),
                _ => Vec::new(),
            };
            let whole = if *tail { bytes.len() / BLOCK as usize * BLOCK as usize } else { bytes.len() };
            put(image, blocks as usize, &bytes[..whole]);
            put(image, end, &bytes[whole..]);
        }
        Data::Chunks(chunks) => {
            let first = planned.blocks.unwrap_or_default();
            put(image, end.next_multiple_of(8), &chunks.indexes(first));
            if let Content::File(file) = &inode.content {
                chunks.put_inline(file, &mut image[blocks as usize..]);
            }
        }
        Data::None => {}
    }
}

/// What stands in place of a block address in an inode without data. The plan has checked device numbers.
fn special_value(content: &Content) -> u32 {
    let number = match content {
        Content::CharDevice(number) | Content::BlockDevice(number) => *number,
        _ => DeviceNumber::default(),
    };
    super::ondisk::encode_device(number).unwrap_or_default()
}
