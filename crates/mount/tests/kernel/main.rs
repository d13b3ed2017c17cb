//! Images built from layers made here, mounted through the kernel's own FUSE: needs root and `/dev/fuse`.

mod faults;
mod fidelity;
mod fixture;
mod handmade;
mod life;
mod overlay;
mod reads;
mod tarball;
mod walk;
