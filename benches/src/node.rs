//! A node with Clipper on it, and what an accelerated image is made of.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clipper_format::index::{ANNOTATION_INDEX, Index};
use clipper_tests::clipper::{Snapshotter, clipper_ok};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::registry::Registry;
use clipper_tests::walk::{self, Tree};

use crate::system::Driver;

/// A containerd with Clipper, empty at its start.
#[derive(Debug)]
pub struct Node {
    // In the order in which they have to end.
    /// containerd.
    pub containerd: Containerd,
    /// The snapshotter.
    pub snapshotter: Snapshotter,
}

impl Node {
    /// Starts one.
    pub fn start(driver: Driver) -> Result<Self> {
        let snapshotter = Snapshotter::start_over(driver.option())?;
        let containerd = Containerd::start(Settings::clipper(snapshotter.socket())?)?;
        Ok(Self { containerd, snapshotter })
    }

    /// `clipper pull`.
    pub fn pull(&self, reference: &str) -> Result<()> {
        let socket = self.containerd.socket().display().to_string();
        let line = ["pull", "--address", &socket, "--namespace", self.containerd.namespace(), reference];
        clipper_ok(&line).context("clipper pull").map(drop)
    }

    /// Waits until so many layers have been filled; `meanwhile` is called again and again.
    pub fn filled(&self, layers: usize, patience: Duration, mut meanwhile: impl FnMut() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        while self.snapshotter.log().matches("the layer is complete").count() < layers {
            if begun.elapsed() > patience {
                bail!("{layers} layers are not filled after {patience:?}; the log:\n{}", self.snapshotter.log());
            }
            meanwhile()?;
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// What the index of an accelerated image says, for the first platform.
pub fn index_of(registry: &Registry, reference: &str) -> Result<Index> {
    let (set, _) = registry.manifest(reference)?;
    let (repository, _) = reference.rsplit_once(':').context("a reference without a tag")?;
    let digest = set["manifests"][0]["digest"].as_str().context("no manifest")?;
    let (manifest, _) = registry.manifest(&format!("{repository}@{digest}"))?;
    let index = manifest["layers"][0]["annotations"][ANNOTATION_INDEX].as_str().context("no index")?;
    Ok(Index::decode(&fs::read(registry.blob_file(index))?)?)
}

/// How many devices an image has.
pub fn devices(index: &Index) -> usize {
    index.layers.iter().map(|layer| layer.digest).collect::<BTreeSet<_>>().len()
}

/// Reads a whole tree; the root itself, which is its mount's own, is left out.
pub fn tree(root: &Path) -> Result<Tree> {
    let mut tree = walk::read(root)?;
    tree.remove(Path::new(""));
    Ok(tree)
}

/// Fails, saying what differs, unless both trees are the same and hold something.
pub fn must_be_same(expected: &Tree, actual: &Tree, what: impl fmt::Display) -> Result<()> {
    let differences = walk::differences(expected, actual, 5);
    ensure!(differences.is_empty() && !expected.is_empty(), "{what}: wrong content:\n{}", differences.join("\n"));
    Ok(())
}
