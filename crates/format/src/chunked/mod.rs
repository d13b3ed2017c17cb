//! Repacked layers: the same tar bytes in independent frames, as zstd:chunked or as gzip members.
//!
//! ```text
//! zstd:  | frame | frame | … | skippable frame: TOC (JSON, a zstd frame) | skippable frame: footer, 40 bytes |
//! gzip:  | member | member | …
//! ```
//!
//! A [`Cutter`] cuts a layer's device bytes into [`Group`]s, each of which starts on a block of the device and becomes
//! one span. In zstd, a group is cut into frames again, wherever a file's data begin, since readers of zstd:chunked
//! (containers/storage, `docs/containers-storage-zstd-chunked.md`; stargz-snapshotter, `estargz/zstdchunked`) fetch
//! files by frames of their own; a frame holds the file's data and whatever comes before the next file's. A [`Packer`]
//! compresses a group, anywhere; an [`Assembler`] puts packed groups in a row, with the table of contents at the end.
mod assemble;
mod cut;
mod pack;
mod sequences;
mod toc;

pub use assemble::{Assembled, Assembler};
pub use cut::{Cutter, Group, Piece};
pub use pack::{Compression, PackedGroup, Packer};

/// Annotations of a zstd:chunked layer: SHA-256 of the compressed table of contents. The second name is the one that
/// containers/storage before 1.44 (podman before 4.4) and stargz-snapshotter know.
pub const ANNOTATIONS_TOC_DIGEST: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"];
/// Annotations of a zstd:chunked layer: `offset:compressed length:length:1` of the table of contents.
pub const ANNOTATIONS_TOC_POSITION: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-position"];

/// Why a layer can't be repacked.
#[derive(Debug, thiserror::Error)]
pub enum ChunkedError {
    /// The compressor failed: it ran out of memory.
    #[error("compressing the group at device byte {offset}: {source}")]
    Compress {
        /// First device byte of the group.
        offset: u64,
        /// What it said.
        source: std::io::Error,
    },
    /// Groups or entries don't follow from each other: a mistake of ours.
    #[error("the layer's parts don't fit together at device byte {0}")]
    Order(u64),
}
