//! An EROFS image in memory.
use super::ondisk::{BLOCK, BLOCK_BITS, DEVICE_SLOT, NID_BITS, SUPER_OFFSET, Superblock, u32_at, u64_at};
use super::{ErofsError, FileKind, ImageInode};
use std::{fmt, sync::Arc};

/// Node number: an inode's position in its image, in units of 32 bytes. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device that the files of an image lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDevice {
    /// Bytes.
    pub size: u64,
}

/// An EROFS image as [`write`](super::write) makes it. Cheap to clone.
///
/// Whatever its bytes, no method panics, loops or reads outside it: damage is an [`ErofsError`]. What is read is
/// checked when it is read; [`to_tree`](Self::to_tree) reads everything.
#[derive(Clone)]
pub struct Image {
    bytes: Arc<[u8]>,
    superblock: Superblock,
    devices: Arc<[ImageDevice]>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Superblock { inodes, .. } = self.superblock;
        write!(f, "Image({} bytes, {inodes} inodes, {} devices)", self.bytes.len(), self.devices.len())
    }
}

impl Image {
    /// Checks the superblock, the device table and that the root is a directory.
    ///
    /// # Errors
    /// The bytes aren't an EROFS image, are damaged, or use features that Clipper's writer doesn't.
    pub fn parse(bytes: Arc<[u8]>) -> Result<Self, ErofsError> {
        let superblock = Superblock::decode(bytes.get(SUPER_OFFSET..).unwrap_or_default())?;
        if (bytes.len() as u64) != u64::from(superblock.blocks) << BLOCK_BITS {
            return Err(ErofsError::Superblock("the image is not as long as its superblock says"));
        }
        if superblock.time_nsec >= 1_000_000_000 {
            return Err(ErofsError::Superblock("nanoseconds of more than a second"));
        }
        let mut devices = Vec::new();
        for n in 0..usize::from(superblock.devices) {
            let start = (usize::from(superblock.device_slot) + n) * DEVICE_SLOT;
            let slot = bytes
                .get(start..start + DEVICE_SLOT)
                .ok_or(ErofsError::Superblock("the device table lies outside the image"))?;
            let blocks = u64::from(u32_at(slot, 64).unwrap_or_default());
            let size = u64_at(slot, DEVICE_SLOT - 8).unwrap_or_default();
            if size.div_ceil(BLOCK) != blocks {
                return Err(ErofsError::Superblock("a device's size in bytes and that in blocks disagree"));
            }
            devices.push(ImageDevice { size });
        }
        let image = Self { bytes, superblock, devices: devices.into() };
        if image.inode(image.root())?.kind != FileKind::Directory {
            return Err(ErofsError::Corrupt { nid: image.root().0, what: "the root is not a directory" });
        }
        Ok(image)
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        Nid(self.superblock.root.into())
    }

    /// How many inodes the image says it has.
    pub fn inode_count(&self) -> u64 {
        self.superblock.inodes
    }

    /// The devices, the first of which is device 1.
    pub fn devices(&self) -> &[ImageDevice] {
        &self.devices
    }

    /// The whole image.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `inode` isn't a symlink, or its target lies outside the image or is longer than Linux allows.
    pub fn symlink(&self, inode: &ImageInode) -> Result<Vec<u8>, ErofsError> {
        let corrupt = |what| ErofsError::Corrupt { nid: inode.nid.0, what };
        if inode.kind != FileKind::Symlink {
            return Err(corrupt("not a symlink"));
        }
        if inode.size == 0 || inode.size > super::ondisk::SYMLINK_MAX {
            return Err(corrupt("a symlink's target of no or too many bytes"));
        }
        let mut target = Vec::with_capacity(inode.size as usize);
        for block in 0..inode.size.div_ceil(BLOCK) {
            target.extend_from_slice(self.flat_block(inode, block)?);
        }
        if target.contains(&0) {
            return Err(corrupt("a NUL in a symlink's target"));
        }
        Ok(target)
    }

    /// Modification time of compact inodes.
    pub(super) fn time(&self) -> (i64, u32) {
        (self.superblock.time, self.superblock.time_nsec)
    }

    /// Byte offset of an inode, if it begins within the image.
    pub(super) fn inode_offset(&self, nid: Nid) -> Option<usize> {
        let offset = (u64::from(self.superblock.meta_block) << BLOCK_BITS)
            .checked_add(nid.0.checked_mul(1 << NID_BITS)?)
            .and_then(|offset| usize::try_from(offset).ok())?;
        (nid.0 != 0 && offset < self.bytes.len()).then_some(offset)
    }

    /// Byte offset of the shared xattr `id`.
    pub(super) fn shared_xattr_offset(&self, id: u32) -> usize {
        ((u64::from(self.superblock.xattr_block) << BLOCK_BITS) + 4 * u64::from(id)) as usize
    }
}
