//! zstd layers: where frames and blocks lie, the spans they make up, checkpoints inside frames, and decoding spans.
//!
//! A zstd stream (RFC 8878, section 3) is frames one after another, each of which decodes alone. zstd:chunked, seekable
//! zstd and pzstd write many small ones, so that their layers need no checkpoints: [`Indexer`] notes where frames begin
//! and end, cuts the layer into spans between blocks of the device, and [`SpanDecoder`] decodes the frames that a span
//! touches.
//!
//! docker, BuildKit, podman and skopeo write a layer as one frame. Spans of such start between blocks of the frame, at
//! [`Checkpoint`]s. A checkpoint is a dictionary (section 5): Huffman and FSE tables, the three offsets that may be
//! repeated, and as its content the window, of which only those bytes are kept that the span refers to. To know which,
//! the sequences of all blocks are gone through; literals are not. [`resume`] gives libzstd a frame of the span's blocks
//! and that dictionary. What is in frames is libzstd's business always, at conversion as on a node.
//!
//! # Limits
//!
//! A frame of up to [`MAX_WHOLE_FRAME`] is decoded whole or not at all. Larger ones have spans of at most [`MAX_SPAN`]
//! device bytes and 64 MiB of source bytes, and windows of at most [`MAX_WINDOW`].

mod blocks;
mod checkpoint;
mod chooser;
mod cut;
mod decoder;
mod encoder;
mod frame;
mod fse;
mod indexer;
mod literals;
mod parser;
mod pieces;
mod planned;
mod planner;
mod replay;
mod resume;
mod sequences;
mod sink;
mod view;
mod walker;
mod window;
mod xxh64;

pub use checkpoint::Checkpoint;
pub use decoder::SpanDecoder;
pub use encoder::{Encoder, Sequence};
pub use indexer::Indexer;
pub use resume::resume;
pub use sequences::Match;
pub use sink::Sink;
pub use view::{BlockView, blocks};

use crate::gzip::MAX_SPAN_SOURCE;

/// Most decoded bytes of a frame that is never entered anywhere but at its start. `pzstd -3` writes frames of 8 MiB.
pub const MAX_WHOLE_FRAME: u32 = 8 << 20;

/// Most device bytes of a span of a zstd layer. No more than a window ever depends on one place of the stream, so spans
/// that are as long as the largest window are long enough for checkpoints to be worth their bytes.
pub const MAX_SPAN: u32 = 128 << 20;

/// Largest window that is decoded, bytes: what libzstd takes unless it is told otherwise, and `zstd --ultra -22` writes
/// (RFC 8878, section 3.1.1.1.2, asks for no more than 8 MiB).
pub const MAX_WINDOW: u64 = 128 << 20;

/// Why a zstd layer can't be indexed, or a span of one can't be decoded. Frames are counted from 0, skippable ones
/// included; from the span's first if a span is decoded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ZstdError {
    /// The stream doesn't start with a frame.
    #[error("not zstd: byte {offset} starts neither a frame nor a skippable frame")]
    NotZstd {
        /// Byte of the blob.
        offset: u64,
    },
    /// A frame's header or that of one of its blocks can't be understood.
    #[error("zstd frame {frame}, byte {offset}: {what}")]
    Header {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which the header starts.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A frame was compressed with a dictionary, which isn't part of the layer.
    #[error("zstd frame {frame}, byte {offset}: it needs the dictionary {id}, which a layer can't have")]
    Dictionary {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which the frame starts.
        offset: u64,
        /// The dictionary's ID.
        id: u32,
    },
    /// A frame's window is too large.
    #[error("zstd frame {frame}, byte {offset}: it needs a window of {window} bytes, more than {MAX_WINDOW}")]
    Window {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which the frame starts.
        offset: u64,
        /// Bytes of its window.
        window: u64,
    },
    /// A checkpoint isn't well formed.
    #[error("bad zstd checkpoint: {0}")]
    Checkpoint(&'static str),
    /// A frame is broken.
    #[error("zstd frame {frame}, byte {offset}: {what}")]
    Frame {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which the frame starts.
        offset: u64,
        /// What libzstd says.
        what: &'static str,
    },
    /// The stream ends inside a frame, or before the first.
    #[error("zstd frame {frame} is truncated: the stream ends at byte {offset}")]
    Truncated {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which it ends.
        offset: u64,
    },
    /// Something that isn't a frame follows the last one.
    #[error("garbage after zstd frame {frame}, at byte {offset}")]
    Garbage {
        /// Number of the last frame.
        frame: u64,
        /// Byte of the blob.
        offset: u64,
    },
    /// Frames are so far apart, or so badly compressed, that a span needs more than [`MAX_SPAN_SOURCE`] bytes; or none
    /// of so many bytes is a place to start another.
    #[error("the span at blob byte {offset} would need more than {MAX_SPAN_SOURCE} source bytes")]
    SpanTooLong {
        /// Byte of the blob at which the span starts.
        offset: u64,
    },
    /// A span can't be decoded as asked.
    #[error("span at device byte {device_offset} can't be decoded: {what}")]
    Span {
        /// The span's first device byte.
        device_offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}
