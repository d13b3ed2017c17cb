//! A regular file's data: its size, and where its bytes are.
use std::borrow::Cow;

/// Where a regular file's bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileData {
    size: u64,
    parts: Parts,
}

/// Nearly every file is one run of a device: such a one takes no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Parts {
    #[default]
    None,
    Whole {
        device: u16,
        offset: u64,
    },
    Several(Box<Several>),
}

/// Behind a thin pointer, to keep [`FileData`] small.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Several {
    extents: Vec<Extent>,
}

/// A run of a file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte within the file.
    pub file_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where they come from.
    pub source: ExtentSource,
}

/// Where the bytes of an extent come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentSource {
    /// Device `device` (from 1), at byte `offset`, a multiple of 512.
    Device {
        /// Device number, from 1.
        device: u16,
        /// Byte offset in the device; a multiple of 512.
        offset: u64,
    },
    /// Kept in the tree itself: the few files whose tar data can't be addressed in 512-byte blocks
    /// (sparse files with odd segment lengths).
    Inline(Vec<u8>),
}

impl FileData {
    /// A file of `size` bytes. `extents` are its parts that aren't holes, in file order, not overlapping, all within
    /// `size`. Each starts at a multiple of 512 and ends at one or at `size`, so that no 512-byte block of the file has
    /// two sources. None of this is checked here, but by whoever stores the tree.
    pub fn new(size: u64, extents: Vec<Extent>) -> Self {
        match extents.as_slice() {
            [Extent { file_offset: 0, len, source: ExtentSource::Device { device, offset } }] if *len == size => {
                Self::whole(size, *device, *offset)
            }
            [] => Self { size, parts: Parts::None },
            _ => Self { size, parts: Parts::Several(Box::new(Several { extents })) },
        }
    }

    /// A file of `size` bytes, all of which are at `offset` of `device`.
    pub fn whole(size: u64, device: u16, offset: u64) -> Self {
        Self { size, parts: Parts::Whole { device, offset } }
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The parts that aren't holes, in file order.
    pub fn extents(&self) -> impl Iterator<Item = Cow<'_, Extent>> {
        let whole = self.place().map(|(device, offset)| {
            let source = ExtentSource::Device { device, offset };
            Cow::Owned(Extent { file_offset: 0, len: self.size, source })
        });
        let several = match &self.parts {
            Parts::Several(several) => several.extents.as_slice(),
            _ => &[],
        };
        whole.into_iter().chain(several.iter().map(Cow::Borrowed))
    }

    /// Device and offset, if the whole file is one run of a device.
    pub fn place(&self) -> Option<(u16, u64)> {
        match self.parts {
            Parts::Whole { device, offset } => Some((device, offset)),
            _ => None,
        }
    }

    /// How many parts aren't holes.
    pub fn extent_count(&self) -> usize {
        match &self.parts {
            Parts::None => 0,
            Parts::Whole { .. } => 1,
            Parts::Several(several) => several.extents.len(),
        }
    }

    /// Gives every part on a device a new place: `place` gets its bytes, its device and its offset.
    ///
    /// # Errors
    /// What `place` says.
    pub fn move_extents<E>(&mut self, mut place: impl FnMut(u64, u16, u64) -> Result<(u16, u64), E>) -> Result<(), E> {
        match &mut self.parts {
            Parts::None => {}
            Parts::Whole { device, offset } => (*device, *offset) = place(self.size, *device, *offset)?,
            Parts::Several(several) => {
                for Extent { len, source, .. } in &mut several.extents {
                    if let ExtentSource::Device { device, offset } = source {
                        (*device, *offset) = place(*len, *device, *offset)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The bytes of part `extent` that are kept in the tree; `None` if they lie on a device.
    pub fn inline_mut(&mut self, extent: usize) -> Option<&mut [u8]> {
        match &mut self.parts {
            Parts::Several(several) => match &mut several.extents.get_mut(extent)?.source {
                ExtentSource::Inline(bytes) => Some(bytes),
                ExtentSource::Device { .. } => None,
            },
            _ => None,
        }
    }
}
