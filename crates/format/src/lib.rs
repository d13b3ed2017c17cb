//! Clipper's formats, bytes ⇄ types: digests, trees (EROFS), spans, checkpoints, repacked layers, the index blob. No
//! I/O.
#![deny(unsafe_code)]

pub mod checkpoints;
pub mod chunked;
mod columns;
pub mod digest;
pub mod erofs;
pub mod gzip;
pub mod index;
pub mod merge;
pub mod parse;
pub mod span;
pub mod stored;
pub mod tar;
pub mod trace;
pub mod tree;
pub mod zstd;

pub use digest::Digest;
