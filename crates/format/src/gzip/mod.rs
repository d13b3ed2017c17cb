//! gzip layers: an inflate that can stop and resume at any Deflate symbol, the index that says where, and checkpoints.
//!
//! A gzip layer is one member (RFC 1952) or several, each a Deflate stream (RFC 1951). [`Indexer`] inflates it once
//! and cuts what comes out into spans that start on blocks of the device. A span that begins inside a short member, or
//! soon after the start of a long one, is decoded from the member's start. Any other has a [`Checkpoint`]: the state of
//! the Deflate decoder, and those bytes of the 32 KiB window that the span refers to.
//! [`SpanDecoder`] turns the source bytes of a span back into its device bytes.

mod bits;
mod checkpoint;
mod cut;
mod decoder;
mod group;
mod header;
mod huffman;
mod indexer;
mod inflate;
mod member;
mod symbol;

pub use checkpoint::Checkpoint;
pub use decoder::SpanDecoder;
pub use group::{CHECKPOINT_LEVEL, CHECKPOINTS_PER_GROUP, decode_group, encode_group};
pub use indexer::{IndexOptions, IndexedSpan, Indexer, MAX_SPAN_SOURCE, SpanCheckpoint};
pub use inflate::Fault;

/// Farthest that a Deflate match reaches back, in bytes (RFC 1951, section 2).
pub(crate) const WINDOW: usize = 32768;
/// Longest Deflate match, in bytes (RFC 1951, section 3.2.5).
pub(crate) const LONGEST_MATCH: usize = 258;

/// Why a gzip layer can't be indexed, or a span of one can't be decoded.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GzipError {
    /// The stream doesn't start with a gzip member.
    #[error("not gzip: byte {offset} doesn't start with 1f 8b 08")]
    NotGzip {
        /// Byte of the blob.
        offset: u64,
    },
    /// A member's header can't be understood.
    #[error("gzip member {member}, byte {offset}: {what}")]
    Header {
        /// Number of the member, from 0; counted from the span's start if a span is decoded.
        member: u64,
        /// Byte of the blob.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The Deflate stream is broken.
    #[error("gzip member {member}, byte {offset}: {fault}")]
    Deflate {
        /// Number of the member, from 0; counted from the span's start if a span is decoded.
        member: u64,
        /// Byte of the blob.
        offset: u64,
        /// What is wrong.
        fault: Fault,
    },
    /// A member's bytes don't have the CRC-32 that its trailer says.
    #[error("gzip member {member}, byte {offset}: CRC-32 of the data is {found:08x}, the trailer says {wanted:08x}")]
    Crc {
        /// Number of the member, from 0.
        member: u64,
        /// Byte of the blob at which the trailer starts.
        offset: u64,
        /// CRC-32 of what came out.
        found: u32,
        /// What the trailer says.
        wanted: u32,
    },
    /// A member isn't as long as its trailer says.
    #[error("gzip member {member}, byte {offset}: data length is {found} modulo 2^32, the trailer says {wanted}")]
    Length {
        /// Number of the member, from 0.
        member: u64,
        /// Byte of the blob at which the trailer starts.
        offset: u64,
        /// Bytes that came out, modulo 2^32.
        found: u32,
        /// What the trailer says.
        wanted: u32,
    },
    /// The stream ends inside a member.
    #[error("gzip member {member} is truncated: the stream ends at byte {offset}")]
    Truncated {
        /// Number of the member, from 0; counted from the span's start if a span is decoded.
        member: u64,
        /// Byte of the blob at which it ends.
        offset: u64,
    },
    /// Something that is neither a member nor zero padding follows the last member.
    #[error("garbage after gzip member {member}, at byte {offset}")]
    Garbage {
        /// Number of the last member, from 0.
        member: u64,
        /// Byte of the blob.
        offset: u64,
    },
    /// More than [`MAX_SPAN_SOURCE`] bytes of the blob yield less than a span.
    #[error("gzip member {member}: the span at blob byte {offset} would need more than {MAX_SPAN_SOURCE} source bytes")]
    SpanTooLong {
        /// Number of the member, from 0.
        member: u64,
        /// Byte of the blob at which the span starts.
        offset: u64,
    },
    /// A checkpoint or a group of them isn't well formed.
    #[error("bad gzip checkpoint: {0}")]
    Checkpoint(&'static str),
    /// A span can't be decoded as asked.
    #[error("span at device byte {device_offset} can't be decoded: {what}")]
    Span {
        /// The span's first device byte.
        device_offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}
