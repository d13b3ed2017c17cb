//! The EROFS driver: the kernel reads the merged tree itself, and layers' bytes from files that FUSE serves.
//!
//! One small FUSE filesystem per process has a file for every device of every mounted image. It is mounted nowhere: files
//! are opened below a descriptor of its root, and the kernel's EROFS then holds them. So a process that dies leaves
//! nothing of it behind, and what is read of its images fails from then on, unless its descriptors were kept for another.
mod context;
mod device_files;
mod filesystem;
mod mount;
mod open_files;
mod probe;
mod read_ahead;

pub(crate) use device_files::{DeviceFiles, KeptFiles, KeptImage};
pub(crate) use mount::mount;
pub use probe::NoErofs;
pub(crate) use probe::probe;
