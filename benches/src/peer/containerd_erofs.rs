//! containerd 2.1's own EROFS snapshotter: downloads all layers, makes an EROFS image of each by `mkfs.erofs`, and mounts
//! these and an overlay over them.

use std::path::Path;

use anyhow::{Context, Result};
use clipper_tests::containerd::{Containerd, Settings};

use super::{Node, Peer, pid_of, tool};
use crate::cold_start::FarRegistry;

/// As containerd's documents say: its differ for EROFS comes first, and the transfer service unpacks with it. The options
/// of `mkfs.erofs` are those that are recommended for its versions from 1.8.2 on.
const SETTINGS: &str = r#"[plugins."io.containerd.service.v1.diff-service"]
  default = ["erofs", "walking"]
[plugins."io.containerd.differ.v1.erofs"]
  mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "erofs"
  differ = "erofs"
"#;

/// The base image on containerd 2.1 with EROFS.
#[derive(Debug)]
pub struct ContainerdErofs;

impl Peer for ContainerdErofs {
    fn node(&self, _far: &FarRegistry) -> Result<Box<dyn Node>> {
        let containerd = tool("forky/bin", "mkfs.erofs").and_then(|_| tool("forky/bin", "containerd"))?;
        let programs = containerd.parent().map(Path::to_owned);
        let settings = Settings { programs, more: SETTINGS.into(), ..Settings::overlayfs() };
        let containerd = Containerd::start(settings).context("starting containerd 2.1")?;
        Ok(Box::new(Running(containerd)))
    }
}

struct Running(Containerd);

impl Node for Running {
    fn containerd(&self) -> &Containerd {
        &self.0
    }

    fn snapshotter(&self) -> &str {
        "erofs"
    }

    fn pull(&mut self, reference: &str) -> Result<()> {
        self.0.pull("erofs", reference)
    }

    fn daemons(&self) -> Vec<u32> {
        pid_of(&self.0)
    }
}
