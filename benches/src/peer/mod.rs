//! Everything that can run images on a node, by one interface: an image is prepared for it once, and then it is started on
//! empty nodes.

mod clipper;
mod containerd_erofs;
mod nydus;
mod overlayfs;
mod soci;
mod stargz;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clipper_tests::containerd::Containerd;
use clipper_tests::daemon::workspace;

use crate::cold_start::FarRegistry;
use crate::system::System;

/// The container's name on its node.
const CONTAINER: &str = "app";

/// A way to run images.
pub trait Peer {
    /// What stands behind the tag of the image that nodes pull. Peers with the same share the image.
    fn suffix(&self) -> String {
        String::new()
    }

    /// Makes what nodes pull, once for all of them.
    fn prepare(&self, _subject: &Subject<'_>) -> Result<()> {
        Ok(())
    }

    /// A new node with nothing on it, whose daemons are up, where this registry is far away from.
    fn node(&self, far: &FarRegistry) -> Result<Box<dyn Node>>;
}

/// An image to be prepared.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Where it is.
    pub far: &'a FarRegistry,
    /// The image as nodes know it.
    pub image: &'a str,
    /// What a start was seen to read.
    pub trace: &'a Path,
    /// Further options of `clipper convert`.
    pub convert: &'a [&'a str],
}

/// A node, gone with all that is on it when dropped.
pub trait Node {
    /// Its containerd.
    fn containerd(&self) -> &Containerd;

    /// The snapshotter's name in that.
    fn snapshotter(&self) -> &str;

    /// Gets an image so far that a container can be started from it.
    fn pull(&mut self, reference: &str) -> Result<()>;

    /// What containerd calls an image that was pulled.
    fn reference(&self, reference: &str) -> String {
        reference.into()
    }

    /// Starts the image's own command with one more environment variable, `NAME=VALUE`.
    fn start(&mut self, reference: &str, variable: &str) -> Result<()> {
        let image = ["--snapshotter", self.snapshotter(), &self.reference(reference), CONTAINER];
        let line = [&["run", "--detach", "--net-host", "--env", variable][..], &image].concat();
        self.containerd().ctr(&line).map(|_| ())
    }

    /// Removes the container; the image stays.
    fn remove(&mut self) -> Result<()> {
        self.containerd().remove_container(CONTAINER)
    }

    /// The processes that show the image to the container: the snapshotter's, or containerd itself where that is one.
    fn daemons(&self) -> Vec<u32>;

    /// What these logged.
    fn log(&self) -> String {
        String::new()
    }
}

impl System {
    /// How it works.
    pub fn peer(self) -> Box<dyn Peer> {
        match self {
            Self::Overlayfs => Box::new(overlayfs::Overlayfs),
            Self::ContainerdErofs => Box::new(containerd_erofs::ContainerdErofs),
            Self::Stargz => Box::new(stargz::Stargz),
            Self::NydusReference => Box::new(nydus::Nydus { layers: nydus::Layers::Referred, prefetch: true }),
            Self::Nydus => Box::new(nydus::Nydus { layers: nydus::Layers::Repacked, prefetch: true }),
            Self::NydusLazy => Box::new(nydus::Nydus { layers: nydus::Layers::Repacked, prefetch: false }),
            Self::Soci => Box::new(soci::Soci),
            Self::Clipper(conversion, driver) => Box::new(clipper::Clipper { conversion, driver }),
        }
    }

    /// What it pulls instead of `image`.
    pub fn reference(self, image: &str) -> String {
        format!("{image}{}", self.peer().suffix())
    }
}

/// A program of a peer: below `.cache/tools`, where `scripts/peers` puts it, or in `PATH`.
fn tool(place: &str, name: &str) -> Result<PathBuf> {
    let own = workspace().join(".cache/tools").join(place).join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::iter::once(own).chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    candidates
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not there; scripts/peers tells how to get it"))
}

fn pid_of(containerd: &Containerd) -> Vec<u32> {
    containerd.daemon().map(|daemon| daemon.pid()).into_iter().collect()
}
