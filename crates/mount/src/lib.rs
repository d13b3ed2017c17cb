//! Clipper's mounts: a node's store of indexes, devices and trees, the lazy image that joins a tree to its devices,
//! and the drivers that show it as a directory.
//!
//! The edges only translate: [`LazyImage`] knows neither FUSE nor containerd, and answers where every byte of a file
//! comes from; the `fuse` room turns kernel requests into its questions, the `erofs` room lets the kernel read the tree itself
//! and asks for no more than devices' bytes. [`Store`] is what programs hold: it turns
//! [`LayerRef`]s into lazy images and mounts them.

pub mod accelerated;
mod beneath;
mod drivers;
mod erofs;
mod fuse;
mod handover;
mod idmap;
mod layer;
mod lazy_image;
mod mount_point;
mod mounted;
mod notes;
mod options;
mod session;
mod store;

pub use accelerated::{AcceleratedError, AcceleratedImage, AcceleratedLayer};
pub use beneath::Beneath;
pub use drivers::Drivers;
pub use erofs::NoErofs;
pub use handover::{Keeper, Kept, free_threads_of};
pub use idmap::{BadIdMap, IdMap, NoIdMap, mount_idmapped, shows};
pub use layer::LayerRef;
pub use lazy_image::{ImageWatch, LazyDevice, LazyError, LazyImage};
pub use mounted::{MountError, Mounted, detach_stale};
pub use notes::Touches;
pub use options::{Driver, MountOptions, UnknownDriver};
pub use store::{DiskUsage, LayerProgress, LayerUsage, OpenLayers, Store, StoreError, StoreOptions};
