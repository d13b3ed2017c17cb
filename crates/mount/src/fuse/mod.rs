//! The FUSE driver: a thin translation of kernel requests into questions to a [`LazyImage`](crate::LazyImage). What any
//! filesystem of ours needs to talk with the kernel is here, too.
mod attributes;
mod buffers;
mod connection;
mod filesystem;
mod handshake;
mod reads;
mod session;

pub(crate) use attributes::FOREVER;
pub(crate) use connection::{MAX_READ, detached};
pub(crate) use handshake::{Agreement, resend};
pub(crate) use reads::{Bytes, Reads};
pub(crate) use session::{KeptTree, mount, serve, serve_again, take_over};
