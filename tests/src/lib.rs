//! What the end-to-end tests, the benches and the demo stand on: real registries, containerds and snapshotters, each
//! private to its user and gone when it is dropped, and the means to make images and to compare file trees.

pub mod clipper;
pub mod containerd;
pub mod corpus;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod fetched;
pub mod filler;
pub mod kubernetes;
pub mod layout;
pub mod link;
pub mod metrics;
mod passing;
pub mod podman;
pub mod power;
pub mod proxy;
pub mod registry;
pub mod scratch;
pub mod small_disk;
pub mod tarball;
pub mod walk;
