//! zstd layers of many frames: where each frame lies, the spans they make up, and decoding those.
//!
//! A zstd stream (RFC 8878, section 3) is frames one after another, each of which decodes alone. zstd:chunked, seekable
//! zstd and pzstd write many, so that their layers need no checkpoints: [`Indexer`] notes where frames begin and end,
//! cuts the layer into spans between blocks of the device, and [`SpanDecoder`] decodes the frames that a span touches.
//! Frames are told apart here, by their headers and those of their blocks; what is in them is libzstd's business.
//!
//! # Limits
//!
//! A frame is decoded whole or not at all, so it must be small enough to be fetched for one byte of it, and to be kept
//! in memory: [`MAX_FRAME`]. Larger ones, as of layers that are a single frame, need checkpoints.

mod cut;
mod decoder;
mod frame;
mod indexer;
mod walker;

pub use decoder::SpanDecoder;
pub use indexer::Indexer;

use crate::gzip::MAX_SPAN_SOURCE;

/// Most decoded bytes of a frame that is indexed. `pzstd -19` writes frames of 32 MiB, at level 3 of 8 MiB; the other
/// writers of many frames stay below 4 MiB. A span may be as long as a frame.
pub const MAX_FRAME: u32 = 32 << 20;

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
    /// A frame decodes to more bytes than a span may have, so that spans would have to start inside it.
    #[error("zstd frame {frame}, byte {offset}: it has more than {MAX_FRAME} bytes")]
    FrameTooLarge {
        /// Number of the frame.
        frame: u64,
        /// Byte of the blob at which the frame starts.
        offset: u64,
    },
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
    /// Frames are so far apart, or so badly compressed, that a span needs more than [`MAX_SPAN_SOURCE`] bytes.
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
