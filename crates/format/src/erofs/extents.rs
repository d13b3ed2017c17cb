//! Where the bytes of an image's files are.
use super::inode::Data;
use super::ondisk::{BLOCK, BLOCK_BITS, CHUNK_INDEX, NULL_BLOCK, u16_at, u32_at};
use super::{ErofsError, FileKind, Image, ImageInode};
use std::ops::Range;

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageExtent {
    /// First byte within the file.
    pub file_offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// Where they are.
    pub source: ImageSource,
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// Nowhere: they read as zeros.
    Hole,
    /// In a device.
    Device {
        /// Device number, from 1, within the image's devices.
        device: u16,
        /// First byte within the device.
        offset: u64,
    },
    /// In the image itself.
    Image {
        /// First byte within the image.
        offset: u64,
    },
}

impl Image {
    /// Where the bytes `range` of a file are, in file order, holes included; as much of `range` as lies within the file.
    ///
    /// # Errors
    /// `inode` isn't a regular file, or its bytes would lie outside the image or outside its device.
    pub fn extents(&self, inode: &ImageInode, range: Range<u64>) -> Result<Vec<ImageExtent>, ErofsError> {
        let mut extents = Vec::new();
        let end = range.end.min(inode.size);
        let mut position = range.start;
        while position < end {
            let mut extent = self.extent_at(inode, position)?;
            extent.len = extent.len.min(end - position);
            position += extent.len;
            match extents.last_mut() {
                Some(last) if follows(last, &extent) => last.len += extent.len,
                _ => extents.push(extent),
            }
        }
        Ok(extents)
    }

    /// What is at byte `position` of a file, which must be below its size, and how far it goes on.
    fn extent_at(&self, inode: &ImageInode, position: u64) -> Result<ImageExtent, ErofsError> {
        let corrupt = |what| ErofsError::Corrupt { nid: inode.nid.0, what };
        if inode.kind != FileKind::File {
            return Err(corrupt("not a regular file"));
        }
        let Data::Chunks(bits) = inode.data else {
            let offset = self.flat_offset(inode, position).ok_or(corrupt("data of an unexpected layout"))?;
            let end = match inode.data {
                Data::Inline(_) if position / BLOCK < inode.size / BLOCK => inode.size / BLOCK * BLOCK,
                _ => inode.size,
            };
            let len = end - position;
            self.must_hold(inode, offset, len)?;
            return Ok(ImageExtent { file_offset: position, len, source: ImageSource::Image { offset } });
        };
        let start = position >> bits << bits;
        let within = position - start;
        let len = (inode.size - start).min(1 << bits) - within;
        let index = (inode.end() as u64).next_multiple_of(CHUNK_INDEX) + (position >> bits).saturating_mul(CHUNK_INDEX);
        let index = usize::try_from(index).ok();
        let entry = index.and_then(|index| self.bytes().get(index..index.checked_add(CHUNK_INDEX as usize)?));
        let entry = entry.ok_or(corrupt("a chunk index outside the image"))?;
        let device = u16_at(entry, 2).unwrap_or_default();
        let block = u32_at(entry, 4).unwrap_or_default();
        let offset = (u64::from(block) << BLOCK_BITS) + within;
        let source = match (block, device) {
            (NULL_BLOCK, _) => ImageSource::Hole,
            (_, 0) => {
                self.must_hold(inode, offset, len)?;
                ImageSource::Image { offset }
            }
            _ => {
                let size = self.devices().get(usize::from(device) - 1).map(|device| device.size);
                if size.is_none_or(|size| offset + len > size) {
                    return Err(corrupt("data outside its device"));
                }
                ImageSource::Device { device, offset }
            }
        };
        Ok(ImageExtent { file_offset: position, len, source })
    }

    /// Byte of the image that holds byte `position` of data that is in the image itself.
    pub(super) fn flat_offset(&self, inode: &ImageInode, position: u64) -> Option<u64> {
        match inode.data {
            Data::Plain(start) => start.checked_add(position),
            Data::Inline(start) if position / BLOCK < inode.size / BLOCK => start.checked_add(position),
            Data::Inline(_) => Some(inode.end() as u64 + position % BLOCK),
            Data::Chunks(_) | Data::None => None,
        }
    }

    fn must_hold(&self, inode: &ImageInode, offset: u64, len: u64) -> Result<(), ErofsError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.bytes().len() as u64 => Ok(()),
            _ => Err(ErofsError::Corrupt { nid: inode.nid.0, what: "data outside the image" }),
        }
    }
}

/// Whether `next`, which begins where `last` ends in the file, also goes on where `last` ends in its source.
fn follows(last: &ImageExtent, next: &ImageExtent) -> bool {
    match (last.source, next.source) {
        (ImageSource::Hole, ImageSource::Hole) => true,
        (ImageSource::Device { device: a, offset: x }, ImageSource::Device { device: b, offset: y }) => {
            a == b && x + last.len == y
        }
        (ImageSource::Image { offset: x }, ImageSource::Image { offset: y }) => x + last.len == y,
        _ => false,
    }
}
