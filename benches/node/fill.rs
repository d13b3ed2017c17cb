//! Background fill of a whole image, against the link's rate.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clipper_benches::cold_start::FarRegistry;
use clipper_benches::figures::Figures;
use clipper_benches::ideal::Way;
use clipper_benches::node::{Node, devices, index_of, must_be_same, tree};
use clipper_benches::system::Driver;
use clipper_tests::clipper::convert_with;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::registry::Registry;
use clipper_tests::walk::Tree;
use serde::{Deserialize, Serialize};

/// How much longer than the link would take it may be before it counts as stuck.
const PATIENCE: u32 = 5;

/// What was measured, and over which link.
#[derive(Debug, Deserialize, Serialize)]
pub struct Filling {
    /// The image.
    pub image: String,
    /// Mbit/s, and milliseconds of delay each way.
    pub link: Way,
    /// Bytes of its layers in the registry.
    pub bytes: u64,
    /// Every run.
    pub runs: Vec<Run>,
}

/// One image filled.
#[derive(Debug, Deserialize, Serialize)]
pub struct Run {
    /// Clipper's driver.
    pub driver: Driver,
    /// Seconds from the mount until everything was on disk.
    pub from_mount: f64,
    /// Seconds from the first request for a layer until then.
    pub from_request: f64,
    /// Bytes that crossed the link.
    pub wire_bytes: u64,
}

impl Filling {
    /// Fills `image` so many times with each driver, in turns.
    pub fn measure(image: &str, rounds: usize, link: Way) -> Result<Self> {
        let expected = unpacked(image)?;
        let far = FarRegistry::new(link.0, link.delay())?;
        let base = far.registry.push_cached(image)?;
        convert_with(&far.near(&base), &["--no-guess"])?;
        let accelerated = format!("{base}_accelerated");
        let index = index_of(&far.registry, &accelerated)?;
        let bytes = index.layers.iter().map(|layer| layer.source_size).sum();
        let mut measured = Self { image: image.into(), link, bytes, runs: Vec::new() };
        for round in 1..=rounds {
            for driver in Driver::ALL {
                let run = measured.run(driver, &far, &accelerated, devices(&index), &expected)?;
                let (mount, request) = (run.from_mount / measured.limit(), run.from_request / measured.limit());
                eprintln!(
                    "fill {round}/{rounds} over {driver}: {request:.3} from the first request, {mount:.3} from the mount"
                );
                measured.runs.push(run);
            }
        }
        Ok(measured)
    }

    fn run(
        &self,
        driver: Driver,
        far: &FarRegistry,
        accelerated: &str,
        devices: usize,
        expected: &Tree,
    ) -> Result<Run> {
        let (node, reference) = (Node::start(driver)?, far.near(accelerated));
        node.pull(&reference)?;
        far.proxy.take_log();
        let (before, begun) = (far.received()?, Instant::now());
        let root = node.containerd.root_of_container("clipper", &reference)?;
        let mut first = None;
        let patience = Duration::from_secs_f64(self.limit()) * PATIENCE;
        node.filled(devices, patience, || {
            if first.is_none() && far.proxy.bytes_of("/blobs/") > 0 {
                first = Some(Instant::now());
            }
            Ok(())
        })?;
        let first = first.context("nothing was fetched")?;
        let run = Run {
            driver,
            from_mount: begun.elapsed().as_secs_f64(),
            from_request: first.elapsed().as_secs_f64(),
            wire_bytes: far.received()? - before,
        };
        far.proxy.down(true);
        let found = tree(root.path());
        far.proxy.down(false);
        must_be_same(expected, &found?, format!("{} filled over {driver}", self.image))?;
        Ok(run)
    }

    /// Seconds that the image's bytes take on the link.
    pub fn limit(&self) -> f64 {
        self.link.transfer(self.bytes)
    }

    /// A figure of every run of a driver.
    pub fn figures(&self, driver: Driver, of: impl Fn(&Run) -> f64) -> Figures {
        Figures(self.runs.iter().filter(|run| run.driver == driver).map(of).collect())
    }
}

/// What containerd's own overlayfs makes of the image.
fn unpacked(image: &str) -> Result<Tree> {
    let registry = Registry::start()?;
    let (base, containerd) = (registry.push_cached(image)?, Containerd::start(Settings::overlayfs())?);
    containerd.pull("overlayfs", &base)?;
    tree(containerd.view("overlayfs", &base)?.path())
}
