//! The index blob: the trees and span tables of all layers of an image, and the constants of the artifact around it.
//!
//! ```text
//! "clipidx\0" | version u16 | header | for each layer: tree, span table, checkpoint groups | start-up
//! ```
//!
//! `docs/format.md` describes every byte. Numbers are little-endian or LEB128; what is large is stored in columns, each
//! compressed alone, see [`columns`].
mod columns;
mod pack;
mod packed;
mod spans;
mod startup;
mod unpack;
mod wire;

pub use packed::{PackError, PackedTree};
pub use startup::{HOT_FRAME_MAX, Hot, HotFrame, HotFrameError, HotLevel, HotPiece, pack_hot_frame, unpack_hot_frame};

use crate::Digest;
use crate::span::{BLOCK, MAX_SKIP, SpanTable, SpanTableError, Start};
use crate::zstd::MAX_SPAN;
use std::ops::Range;
use wire::{Malformed, Reader, put_varint};

/// `artifactType` of an index manifest.
pub const MEDIA_TYPE_INDEX_ARTIFACT: &str = "application/vnd.clipper.index.v1";
/// Media type of the index blob.
pub const MEDIA_TYPE_INDEX_LAYER: &str = "application/vnd.clipper.index.layer.v1";
/// Media type of the checkpoints blob.
pub const MEDIA_TYPE_CHECKPOINTS: &str = "application/vnd.clipper.checkpoints.v1";
/// Media type of the hot blob.
pub const MEDIA_TYPE_HOT: &str = "application/vnd.clipper.hot.v1";
/// Annotation of each layer of an image manifest: digest of the index blob.
pub const ANNOTATION_INDEX: &str = "containerd.io/snapshot/clipper.index";
/// Annotation of each layer of an image manifest: the layer's own digest.
pub const ANNOTATION_LAYER: &str = "containerd.io/snapshot/clipper.layer";

/// Largest index blob that is written or read, bytes.
pub const INDEX_MAX: u64 = 256 << 20;

/// Most memory that the trees of an index may take together, bytes.
const TREES_MAX: u64 = 2 << 30;

/// Most layers: no image that can be mounted has more.
const LAYERS_MAX: usize = 4096;

/// Most spans of all layers together: those of 128 GiB in spans of 64 KiB.
const SPANS_MAX: usize = 1 << 21;

const MAGIC: &[u8; 8] = b"clipidx\0";
const VERSION: u16 = 4;

/// A blob by digest and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// Digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What an index blob says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Most device bytes of a span, a multiple of 4096; a span that is as long as a zstd frame may have more.
    pub span_size: u32,
    /// The checkpoints of all layers; `None` if no span needs one.
    pub checkpoints: Option<BlobRef>,
    /// The layers, bottom first. A layer that is in the image twice may be here twice.
    pub layers: Vec<LayerIndex>,
    /// The prefetch list: absolute paths in order, those of directories with a trailing `/`.
    pub prefetch: Vec<Vec<u8>>,
    /// What a start-up touches.
    pub hot: Option<Hot>,
}

/// What an index says of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// Digest of the layer's blob.
    pub digest: Digest,
    /// Digest of the uncompressed layer, which is the device.
    pub diff_id: Digest,
    /// Bytes of the layer's blob.
    pub source_size: u64,
    /// The layer's own tree, compressed. [`PackedTree::unpack`] gives the tree.
    pub tree: PackedTree,
    /// The spans.
    pub spans: SpanTable,
    /// Byte ranges of the checkpoints blob. Group `g` holds this layer's checkpoints from `g * CHECKPOINTS_PER_GROUP`.
    pub checkpoint_groups: Vec<Range<u64>>,
}

/// Why an index can't be encoded or decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    /// It doesn't begin as an index does.
    #[error("not a Clipper index")]
    NotAnIndex,
    /// It was written by another version of Clipper.
    #[error(
        "a Clipper index of version {0}; this Clipper reads version {VERSION}: convert the image again, or upgrade"
    )]
    Version(u16),
    /// It is damaged.
    #[error("corrupt Clipper index: {0}")]
    Corrupt(&'static str),
    /// Its bounds are passed.
    #[error("a Clipper index of {0} bytes, more than {INDEX_MAX}")]
    TooLarge(u64),
    /// What it says of a layer doesn't hold together.
    #[error("Clipper index, layer {layer}: {what}")]
    Layer {
        /// Digest of the layer.
        layer: Digest,
        /// What is wrong.
        what: &'static str,
    },
    /// A layer's spans don't make a table.
    #[error("Clipper index, layer {layer}: {source}")]
    Spans {
        /// Digest of the layer.
        layer: Digest,
        /// What is wrong.
        source: SpanTableError,
    },
    /// A layer's tree is damaged.
    #[error("Clipper index, layer {layer}: {source}")]
    Tree {
        /// Digest of the layer.
        layer: Digest,
        /// What is wrong.
        source: PackError,
    },
}

impl From<Malformed> for IndexError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::Corrupt(what)
    }
}

impl Index {
    /// The blob. Equal indexes give equal blobs.
    ///
    /// # Errors
    /// The index doesn't hold together (see [`decode`](Self::decode)), or the blob would be larger than [`INDEX_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, IndexError> {
        self.check()?;
        let mut header = Vec::new();
        let mut sections = Vec::new();
        put_varint(&mut header, self.span_size.into());
        put_blob(&mut header, self.checkpoints.as_ref());
        put_blob(&mut header, self.hot.as_ref().map(|hot| &hot.blob));
        put_varint(&mut header, self.layers.len() as u64);
        for layer in &self.layers {
            let parts = [
                layer.tree.as_bytes().to_vec(),
                spans::encode(&layer.spans),
                spans::encode_groups(&layer.checkpoint_groups),
            ];
            header.extend_from_slice(layer.digest.as_bytes());
            header.extend_from_slice(layer.diff_id.as_bytes());
            put_varint(&mut header, layer.source_size);
            for part in parts {
                put_varint(&mut header, part.len() as u64);
                sections.extend_from_slice(&part);
            }
        }
        let startup = startup::encode(&self.prefetch, self.hot.as_ref().map_or(&[], |hot| &hot.frames));
        put_varint(&mut header, startup.len() as u64);
        sections.extend_from_slice(&startup);
        let mut blob = MAGIC.to_vec();
        blob.extend_from_slice(&VERSION.to_le_bytes());
        put_varint(&mut blob, header.len() as u64);
        blob.extend_from_slice(&header);
        blob.extend_from_slice(&sections);
        must_fit(blob.len())?;
        Ok(blob)
    }

    /// Reads a blob and checks all of it: trees unpack, spans follow on, every checkpoint that a span names has a
    /// group, every group is within the checkpoints blob. The trees are kept compressed.
    ///
    /// # Errors
    /// The bytes aren't an index of this version, or are damaged anywhere.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        must_fit(bytes.len())?;
        let rest = bytes.strip_prefix(MAGIC).ok_or(IndexError::NotAnIndex)?;
        let mut reader = Reader::new(rest);
        let version = u16::from_le_bytes(reader.array()?);
        if version != VERSION {
            return Err(IndexError::Version(version));
        }
        let header_len = reader.len()?;
        let mut header = Reader::new(reader.take(header_len)?);
        let span_size = u32::try_from(header.varint()?).map_err(|_| IndexError::Corrupt("its span size"))?;
        let (checkpoints, hot) = (blob(&mut header)?, blob(&mut header)?);
        let (mut layers, mut memory, mut spans) = (Vec::new(), 0, 0);
        for _ in 0..header.varint()? {
            let layer = decode_layer(&mut header, &mut reader, SPANS_MAX - spans)?;
            memory += layer.tree.memory();
            spans += layer.spans.spans().len();
            must_have_room(memory)?;
            must_be_few(layers.len() + 1, spans)?;
            layers.push(layer);
        }
        let startup_len = header.len()?;
        let (prefetch, frames) = startup::decode(reader.take(startup_len)?)?;
        if !header.is_empty() || !reader.is_empty() {
            return Err(IndexError::Corrupt("it goes on after its end"));
        }
        let hot = match hot {
            Some(blob) => Some(Hot { blob, frames }),
            None if frames.is_empty() => None,
            None => return Err(IndexError::Corrupt("it has frames of a hot blob, but no hot blob")),
        };
        let index = Self { span_size, checkpoints, layers, prefetch, hot };
        index.check()?;
        Ok(index)
    }

    /// What the index says of the layer with this digest.
    pub fn layer(&self, digest: &Digest) -> Option<&LayerIndex> {
        self.layers.iter().find(|layer| layer.digest == *digest)
    }

    fn check(&self) -> Result<(), IndexError> {
        must_have_room(self.layers.iter().map(|layer| layer.tree.memory()).sum())?;
        startup::check_list(&self.prefetch).map_err(IndexError::Corrupt)?;
        must_be_few(self.layers.len(), self.layers.iter().map(|layer| layer.spans.spans().len()).sum())?;
        let checkpoints_size = self.checkpoints.map_or(0, |blob| blob.size);
        self.hot.as_ref().map_or(Ok(()), |hot| hot.check(&self.layers)).map_err(IndexError::Corrupt)?;
        self.layers.iter().try_for_each(|layer| layer.check(self.span_size, checkpoints_size))
    }
}

impl LayerIndex {
    /// Bytes that it takes in an index: of its tree, span table and checkpoint groups.
    pub fn encoded_len(&self) -> usize {
        self.tree.len() + spans::encode(&self.spans).len() + spans::encode_groups(&self.checkpoint_groups).len()
    }

    fn check(&self, span_size: u32, checkpoints_size: u64) -> Result<(), IndexError> {
        let wrong = |what| Err(IndexError::Layer { layer: self.digest, what });
        // A table of its own size again, in case the fields were put together by hand.
        if let Err(source) = SpanTable::new(self.spans.spans().to_vec(), self.source_size) {
            return Err(IndexError::Spans { layer: self.digest, source });
        }
        if self.checkpoint_groups.len() > self.spans.spans().len() {
            return wrong("it has more groups of checkpoints than spans");
        }
        let groups = self.checkpoint_groups.len();
        for span in self.spans.spans() {
            let longest = match span.start {
                Start::ZstdFrame { .. } | Start::ZstdBlock { .. } => span_size.max(MAX_SPAN),
                _ => span_size,
            };
            if span.device_len > longest {
                return wrong("a span is longer than spans may be");
            }
            match span.start {
                Start::Gzip { bit, skip, .. } if bit > 7 || skip > 257 => {
                    return wrong("a span starts at an impossible place of a Deflate stream");
                }
                Start::GzipMember { skip } | Start::ZstdFrame { skip } if skip > MAX_SKIP => {
                    return wrong("a span starts too far inside a gzip member or zstd frame");
                }
                Start::ZstdBlock { skip, .. } if u64::from(skip) >= BLOCK => {
                    return wrong("a span starts too far after its first zstd block");
                }
                _ => {}
            }
            if span.start.checkpoint_group().is_some_and(|(group, _)| group >= groups) {
                return wrong("a span names a checkpoint that doesn't exist");
            }
        }
        if self.checkpoint_groups.iter().any(|group| group.start > group.end || group.end > checkpoints_size) {
            return wrong("a group of checkpoints lies outside the checkpoints blob");
        }
        match self.tree.device_sizes() {
            [] => Ok(()),
            [size] if *size == self.spans.device_size() => Ok(()),
            _ => wrong("its tree is not over the device that its spans make up"),
        }
    }
}

fn put_blob(header: &mut Vec<u8>, blob: Option<&BlobRef>) {
    header.push(blob.is_some().into());
    if let Some(BlobRef { digest, size }) = blob {
        header.extend_from_slice(digest.as_bytes());
        put_varint(header, *size);
    }
}

fn blob(header: &mut Reader<'_>) -> Result<Option<BlobRef>, IndexError> {
    match header.byte()? {
        0 => Ok(None),
        1 => Ok(Some(BlobRef { digest: Digest::from_bytes(header.array()?), size: header.varint()? })),
        _ => Err(IndexError::Corrupt("its header")),
    }
}

/// A layer, which may have as many spans.
fn decode_layer(header: &mut Reader<'_>, reader: &mut Reader<'_>, spans_max: usize) -> Result<LayerIndex, IndexError> {
    let layer = Digest::from_bytes(header.array()?);
    let diff_id = Digest::from_bytes(header.array()?);
    let source_size = header.varint()?;
    let mut part = || -> Result<&[u8], Malformed> {
        let len = header.len()?;
        reader.take(len)
    };
    let (tree, spans, groups) = (part()?, part()?, part()?);
    let corrupt = |Malformed(what)| IndexError::Layer { layer, what };
    let tree = PackedTree::from_bytes(tree).map_err(|source| IndexError::Tree { layer, source })?;
    let spans = SpanTable::new(spans::decode(spans, spans_max).map_err(corrupt)?, source_size);
    let spans = spans.map_err(|source| IndexError::Spans { layer, source })?;
    let checkpoint_groups = spans::decode_groups(groups, spans.spans().len()).map_err(corrupt)?;
    Ok(LayerIndex { digest: layer, diff_id, source_size, tree, spans, checkpoint_groups })
}

fn must_fit(len: usize) -> Result<(), IndexError> {
    match u64::try_from(len) {
        Ok(len) if len <= INDEX_MAX => Ok(()),
        _ => Err(IndexError::TooLarge(len as u64)),
    }
}

fn must_be_few(layers: usize, spans: usize) -> Result<(), IndexError> {
    if layers > LAYERS_MAX {
        return Err(IndexError::Corrupt("it has more than 4096 layers"));
    }
    if spans > SPANS_MAX {
        return Err(IndexError::Corrupt(spans::TOO_MANY));
    }
    Ok(())
}

fn must_have_room(memory: u64) -> Result<(), IndexError> {
    if memory > TREES_MAX {
        return Err(IndexError::Corrupt("its trees would take more than 2 GiB of memory"));
    }
    Ok(())
}
