//! containerd as it comes: downloads all layers, unpacks them into directories, and mounts these by overlayfs.

use anyhow::Result;
use clipper_tests::containerd::{Containerd, Settings};

use super::{Node, Peer, pid_of};
use crate::cold_start::FarRegistry;

/// The base image on the machine's containerd.
#[derive(Debug)]
pub struct Overlayfs;

impl Peer for Overlayfs {
    fn node(&self, _far: &FarRegistry) -> Result<Box<dyn Node>> {
        Ok(Box::new(Running(Containerd::start(Settings::overlayfs())?)))
    }
}

struct Running(Containerd);

impl Node for Running {
    fn containerd(&self) -> &Containerd {
        &self.0
    }

    fn snapshotter(&self) -> &str {
        "overlayfs"
    }

    fn pull(&mut self, reference: &str) -> Result<()> {
        self.0.pull("overlayfs", reference)
    }

    fn daemons(&self) -> Vec<u32> {
        pid_of(&self.0)
    }
}
