//! A lazily filled device: a layer's decompressed bytes as a sparse local file, fetched, verified and recorded span
//! by span as they are read.
//!
//! [`Devices`] owns a directory of them, one per layer, and what they share: connections, memory, decoding threads.
//! A [`Device`] answers [`try_read`](Device::try_read) from what is here already, and [`read`](Device::read) after
//! fetching what isn't. Where the bytes come from is a [`Source`]'s business.
#![forbid(unsafe_code)]

mod activity;
mod bitmap;
mod blob;
mod board;
mod body;
mod checkpoints;
mod decode;
mod device;
mod devices;
pub mod disk;
mod durable;
mod error;
mod evict;
mod fill;
mod hot;
mod limits;
mod options;
mod presence;
mod readers;
mod room;
mod run;
mod shelf;
mod source;
mod sources;
mod storage;
mod tally;
mod usage;
mod uses;
mod waits;

pub use device::{Device, DeviceSpec, DeviceStats};
pub use devices::Devices;
pub use error::DeviceError;
pub use fill::FillState;
pub use hot::{HotFrameSpec, HotPart, HotSpec, HotStream};
pub use options::{DeviceOptions, MinFree, Priority};
pub use source::{ByteStream, Piece, Source, SourceError};
pub use tally::{Figures, Latencies, Purpose, Traffic};
pub use usage::{CacheUsage, DeviceUsage};
