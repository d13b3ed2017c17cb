//! A merged tree joined to the devices its files lie on: any byte of any file, verified, fetched when it is missing.
//! Knows no FUSE: drivers and `clipper check` ask the same questions.
use crate::{
    notes::{Notes, Touches},
    store::{Lease, Origin},
};
use clipper_device::{Device, DeviceError};
use clipper_format::{
    Digest,
    erofs::{ErofsError, Image, ImageInode, ImageSource, Nid},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes of a file looked at in one step when looking for a hole.
const SEEK_STEP: u64 = 64 << 20;

/// A tree and the devices that hold its files' data. Cheap to clone.
#[derive(Clone)]
pub struct LazyImage {
    inner: Arc<Inner>,
}

struct Inner {
    tree: Image,
    tree_file: Option<PathBuf>,
    devices: Vec<LazyDevice>,
    notes: Arc<Notes>,
    /// What it was made from, and what keeps the store from reclaiming that.
    origin: Option<(Origin, Lease)>,
}

/// One device of an image, and the layer it holds.
#[derive(Clone)]
pub struct LazyDevice {
    /// The layer's own digest.
    pub layer: Digest,
    /// Its uncompressed bytes.
    pub device: Arc<Device>,
}

/// What there is to see of an image. It keeps the image neither mounted nor leased; but the space of a device that is
/// removed comes back only when the last of these is gone: to be looked at and dropped.
#[derive(Clone)]
pub struct ImageWatch {
    devices: Vec<LazyDevice>,
    notes: Arc<Notes>,
}

/// Why an image or bytes of a file can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// The tree names other devices than the layers it was given.
    #[error("the tree was made for {expected} devices, but the image has {found} layers")]
    DeviceCount {
        /// Devices the tree names.
        expected: usize,
        /// Layers given.
        found: usize,
    },
    /// A device is shorter or longer than the tree says.
    #[error("layer {layer} has {found} uncompressed bytes, but the tree was made for {expected}")]
    DeviceSize {
        /// The layer.
        layer: Digest,
        /// Bytes the tree expects.
        expected: u64,
        /// Bytes the index lists.
        found: u64,
    },
    /// The tree itself is damaged.
    #[error("the image's tree is damaged")]
    Tree(#[from] ErofsError),
    /// A tree names bytes outside itself or a device it doesn't have.
    #[error("the image's tree is damaged: inode {nid} lies outside its data")]
    Outside {
        /// The inode.
        nid: Nid,
    },
    /// A layer's bytes can't be fetched, or aren't what the index says.
    #[error("layer {layer}: device bytes {offset}+{len} can't be read")]
    Device {
        /// The layer.
        layer: Digest,
        /// First device byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: usize,
        /// What went wrong.
        source: Box<DeviceError>,
    },
    /// The cached bytes of a layer can't be read from the local disk.
    #[error("layer {layer}: cached bytes can't be read")]
    Cache {
        /// The layer.
        layer: Digest,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl LazyError {
    /// The layer that it is about, if it is about one.
    pub(crate) fn layer(&self) -> Option<Digest> {
        match self {
            Self::DeviceSize { layer, .. } | Self::Device { layer, .. } | Self::Cache { layer, .. } => Some(*layer),
            _ => None,
        }
    }
}

/// A run of file bytes as it lies in a caller's buffer.
struct Piece {
    buffer: Range<usize>,
    source: Source,
}

enum Source {
    Hole,
    Device { number: usize, offset: u64 },
    Tree { offset: u64 },
}

impl LazyDevice {
    /// Fills `buffer` from `offset` if all of that is at hand; doesn't wait.
    pub(crate) fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, LazyError> {
        let read = self.device.try_read(offset, buffer);
        read.map_err(|source| LazyError::Cache { layer: self.layer, source })
    }

    /// Fills `buffer` from `offset`, fetching what isn't at hand.
    pub(crate) async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), LazyError> {
        let (layer, len) = (self.layer, buffer.len());
        let read = self.device.read(offset, buffer).await;
        read.map_err(|error| LazyError::Device { layer, offset, len, source: Box::new(error) })
    }
}

impl ImageWatch {
    /// The image's devices.
    pub fn devices(&self) -> &[LazyDevice] {
        &self.devices
    }

    /// Which bytes of its files were read so far, in the order of first touch; what the kernel has cached isn't read again.
    /// Goes through the whole tree, and so blocks for a moment.
    ///
    /// # Errors
    /// If the tree is damaged.
    pub fn touches(&self) -> Result<Touches, ErofsError> {
        self.notes.touches()
    }
}

impl LazyImage {
    /// Joins `tree` to `devices`: its device `n` is `devices[n - 1]`.
    ///
    /// # Errors
    /// If their number or sizes aren't those that the tree was made for.
    pub fn new(tree: Image, devices: Vec<LazyDevice>) -> Result<Self, LazyError> {
        Self::join("".into(), tree, None, devices, None)
    }

    /// An image called `name` whose tree is also at the start of `tree_file`, which stays there for as long as the lease is
    /// held.
    pub(crate) fn leased(
        name: Arc<str>,
        tree: Image,
        tree_file: Option<PathBuf>,
        devices: Vec<LazyDevice>,
        lease: Lease,
        origin: Origin,
    ) -> Result<Self, LazyError> {
        Self::join(name, tree, tree_file, devices, Some((origin, lease)))
    }

    fn join(
        name: Arc<str>,
        tree: Image,
        tree_file: Option<PathBuf>,
        devices: Vec<LazyDevice>,
        origin: Option<(Origin, Lease)>,
    ) -> Result<Self, LazyError> {
        let expected = tree.devices();
        if expected.len() != devices.len() {
            return Err(LazyError::DeviceCount { expected: expected.len(), found: devices.len() });
        }
        for (expected, LazyDevice { layer, device }) in expected.iter().zip(&devices) {
            if expected.size != device.size() {
                return Err(LazyError::DeviceSize { layer: *layer, expected: expected.size, found: device.size() });
            }
        }
        let notes = Arc::new(Notes::new(name, tree.clone()));
        Ok(Self { inner: Arc::new(Inner { tree, tree_file, devices, notes, origin }) })
    }

    /// The merged tree: names, attributes, xattrs, link targets.
    pub fn tree(&self) -> &Image {
        &self.inner.tree
    }

    /// What the store made it from, if it did.
    pub(crate) fn origin(&self) -> Option<&Origin> {
        self.inner.origin.as_ref().map(|(origin, _)| origin)
    }

    /// What the image is called in logs and figures; empty if nobody has told.
    pub fn name(&self) -> &Arc<str> {
        self.inner.notes.image()
    }

    /// What can be looked at without keeping the image.
    pub fn watch(&self) -> ImageWatch {
        ImageWatch { devices: self.inner.devices.clone(), notes: Arc::clone(&self.inner.notes) }
    }

    /// What notes the reads of this image.
    pub(crate) fn notes(&self) -> &Arc<Notes> {
        &self.inner.notes
    }

    /// A file that begins with the tree, if there is one.
    pub(crate) fn tree_file(&self) -> Option<&Path> {
        self.inner.tree_file.as_deref()
    }

    /// The devices, in the order of the tree's device table.
    pub fn devices(&self) -> &[LazyDevice] {
        &self.inner.devices
    }

    /// Fills `buffer` with the bytes of regular file `file` from `offset`, if all of them are at hand; `false` if some
    /// must be fetched first, and then `buffer` holds nothing of use. Doesn't wait. The caller clips to the file's size.
    ///
    /// # Errors
    /// If the tree is damaged or the local disk fails.
    pub fn try_read(&self, file: &ImageInode, offset: u64, buffer: &mut [u8]) -> Result<bool, LazyError> {
        for piece in self.pieces(file, offset, buffer.len())? {
            let out = &mut buffer[piece.buffer];
            match piece.source {
                Source::Device { number, offset } => {
                    if !self.inner.notes.try_read(number, &self.inner.devices[number], offset, out)? {
                        return Ok(false);
                    }
                }
                Source::Hole => out.fill(0),
                Source::Tree { offset } => self.copy_from_tree(file.nid, offset, out)?,
            }
        }
        Ok(true)
    }

    /// Fills `buffer` with the bytes of regular file `file` from `offset`, fetching what isn't at hand. The caller
    /// clips to the file's size.
    ///
    /// # Errors
    /// If the tree is damaged, or a layer's bytes can't be fetched or verified; then `buffer` holds nothing of use.
    pub async fn read(&self, file: &ImageInode, offset: u64, buffer: &mut [u8]) -> Result<(), LazyError> {
        for piece in self.pieces(file, offset, buffer.len())? {
            let out = &mut buffer[piece.buffer];
            match piece.source {
                Source::Device { number, offset } => {
                    self.inner.notes.read(number, &self.inner.devices[number], offset, out).await?;
                }
                Source::Hole => out.fill(0),
                Source::Tree { offset } => self.copy_from_tree(file.nid, offset, out)?,
            }
        }
        Ok(())
    }

    /// The bytes `range` of regular file `nid`, clipped to its size.
    ///
    /// # Errors
    /// As [`LazyImage::read`].
    pub async fn read_file(&self, nid: Nid, range: Range<u64>) -> Result<Vec<u8>, LazyError> {
        let file = self.inner.tree.inode(nid)?;
        let range = range.start.min(file.size)..range.end.min(file.size);
        let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| LazyError::Outside { nid })?;
        let mut buffer = vec![0; len];
        self.read(&file, range.start, &mut buffer).await?;
        Ok(buffer)
    }

    /// The first byte of regular file `file` from `from` that lies in a hole, if `hole`, or else that doesn't. The end of
    /// the file counts as a hole; `None` if there is no such byte before it.
    ///
    /// # Errors
    /// If the tree is damaged.
    pub fn next_hole_or_data(&self, file: &ImageInode, from: u64, hole: bool) -> Result<Option<u64>, LazyError> {
        let mut at = from;
        while at < file.size {
            // A bounded part at a time: a file may have many extents, and the first is mostly the one.
            let end = at.saturating_add(SEEK_STEP).min(file.size);
            for extent in self.inner.tree.extents(file, at..end)? {
                if (extent.source == ImageSource::Hole) == hole {
                    return Ok(Some(extent.file_offset));
                }
            }
            at = end;
        }
        Ok(hole.then_some(file.size))
    }

    /// Where the `len` bytes of `file` from `offset` come from, in order and without a gap.
    fn pieces(&self, file: &ImageInode, offset: u64, len: usize) -> Result<Vec<Piece>, LazyError> {
        let outside = || LazyError::Outside { nid: file.nid };
        let end = offset.checked_add(len as u64).filter(|end| *end <= file.size).ok_or_else(outside)?;
        let mut pieces = Vec::new();
        let mut at = 0usize;
        for extent in self.inner.tree.extents(file, offset..end)? {
            let from = usize::try_from(extent.file_offset.checked_sub(offset).ok_or_else(outside)?);
            let from = from.map_err(|_| outside())?;
            let to = usize::try_from(extent.len).ok().and_then(|len| from.checked_add(len)).ok_or_else(outside)?;
            if from != at || to > len {
                return Err(outside());
            }
            let source = match extent.source {
                ImageSource::Hole => Source::Hole,
                ImageSource::Device { device, offset } => {
                    let number = usize::from(device).checked_sub(1).ok_or_else(outside)?;
                    let device = self.inner.devices.get(number).ok_or_else(outside)?;
                    if offset.checked_add(extent.len).is_none_or(|end| end > device.device.size()) {
                        return Err(outside());
                    }
                    Source::Device { number, offset }
                }
                ImageSource::Image { offset } => Source::Tree { offset },
            };
            pieces.push(Piece { buffer: from..to, source });
            at = to;
        }
        if at != len {
            return Err(outside());
        }
        Ok(pieces)
    }

    fn copy_from_tree(&self, nid: Nid, offset: u64, out: &mut [u8]) -> Result<(), LazyError> {
        let bytes = self.inner.tree.bytes();
        let from = usize::try_from(offset).ok();
        let range = from.and_then(|from| Some(from..from.checked_add(out.len())?));
        let found = range.and_then(|range| bytes.get(range)).ok_or(LazyError::Outside { nid })?;
        out.copy_from_slice(found);
        Ok(())
    }
}
