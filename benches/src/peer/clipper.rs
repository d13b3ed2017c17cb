//! Clipper: the image is converted, and `clipper-snapshotter` mounts it.

use anyhow::Result;
use clipper_tests::clipper::convert_with;
use clipper_tests::containerd::Containerd;

use super::{Node, Peer, Subject};
use crate::cold_start::FarRegistry;
use crate::node;
use crate::system::{Conversion, Driver};

/// An image converted in some way, shown in some way.
#[derive(Debug)]
pub struct Clipper {
    /// What the converter is told.
    pub conversion: Conversion,
    /// What the snapshotter is told.
    pub driver: Driver,
}

impl Peer for Clipper {
    fn suffix(&self) -> String {
        let suffix = match self.conversion {
            Conversion::IndexUnlisted => "_unlisted_accelerated",
            Conversion::Index => "_accelerated",
            Conversion::IndexRecorded => "_recorded_accelerated",
            Conversion::Full => "_full_accelerated",
            Conversion::FullRecorded => "_recorded_full_accelerated",
        };
        suffix.into()
    }

    fn prepare(&self, subject: &Subject<'_>) -> Result<()> {
        let (suffix, trace) = (self.suffix(), subject.trace.display().to_string());
        let mut more = [&["--tag-suffix", suffix.as_str()], subject.convert].concat();
        match self.conversion {
            Conversion::IndexUnlisted => more.push("--no-guess"),
            Conversion::Index | Conversion::IndexRecorded => {}
            Conversion::Full | Conversion::FullRecorded => more.extend(["--mode", "full"]),
        }
        if matches!(self.conversion, Conversion::IndexRecorded | Conversion::FullRecorded) {
            more.extend(["--trace", &trace]);
        }
        convert_with(subject.image, &more).map(|_| ())
    }

    fn node(&self, _far: &FarRegistry) -> Result<Box<dyn Node>> {
        Ok(Box::new(node::Node::start(self.driver)?))
    }
}

impl Node for node::Node {
    fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    fn snapshotter(&self) -> &str {
        "clipper"
    }

    fn pull(&mut self, reference: &str) -> Result<()> {
        node::Node::pull(self, reference)
    }

    fn daemons(&self) -> Vec<u32> {
        // The supervisor; the serving process is its child, and so counted with it.
        self.snapshotter.daemon().iter().map(|daemon| daemon.pid()).collect()
    }

    fn log(&self) -> String {
        self.snapshotter.log()
    }
}
