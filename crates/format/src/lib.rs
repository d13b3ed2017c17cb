//! Clipper's formats, bytes ⇄ types: digests, trees (EROFS), spans, checkpoints, repacked layers, the index blob. No
//! I/O.
#![forbid(unsafe_code)]

pub mod chunked;
pub mod digest;
pub mod erofs;
pub mod gzip;
pub mod index;
pub mod merge;
pub mod span;
pub mod stored;
pub mod tar;
pub mod trace;
pub mod tree;
pub mod zstd;

pub use digest::Digest;
