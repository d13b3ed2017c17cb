//! Tar layers: the walker that makes a layer's tree.
//!
//! The tree is what containerd's overlayfs snapshotter has in a layer's upper directory after it unpacked the layer:
//! containerd 1.6's `archive/tar.go` and Go's `archive/tar` are followed to the letter wherever they accept a layer.
//! Where they fail (a file next to its own whiteout, old GNU sparse files, directories replaced by files) the walker
//! does what Docker and OCI's layer specification make of it.
//!
//! One difference is left: new files don't inherit the default ACLs of their directories.
mod bottom;
mod error;
mod header;
mod limits;
mod listing;
mod pax;
mod reader;
pub(crate) mod rootpath;
mod sparse;
mod unpack;
pub(crate) mod xattrs;

pub use error::{Dropped, Problem, TarError, Warning};
pub(crate) use header::kind;
pub use limits::Limits;
pub use listing::Listed;
pub use reader::LayerWalker;
