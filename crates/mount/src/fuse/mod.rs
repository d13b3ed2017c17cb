//! The FUSE driver: a thin translation of kernel requests into questions to a [`LazyImage`](crate::LazyImage).
mod attributes;
mod buffers;
mod filesystem;
mod mount_point;
mod session;

pub(crate) use mount_point::detach_all;
pub(crate) use session::{FuseSession, mount};
