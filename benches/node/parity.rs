//! Warm images: Clipper's against the same ones unpacked under containerd's own overlayfs, both on ext4.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clipper_benches::figures::Figures;
use clipper_benches::node::{Node, devices, index_of, must_be_same, tree};
use clipper_benches::system::Driver;
use clipper_tests::clipper::convert;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::registry::Registry;
use serde::{Deserialize, Serialize};

use crate::ground::Ground;
use crate::works::{Work, Workload};

/// Longest that filling an image from loopback may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// An image's figures.
#[derive(Debug, Deserialize, Serialize)]
pub struct Parity {
    /// The image.
    pub image: String,
    /// Its paths, small files and MB of large files.
    pub extent: (usize, usize, u64),
    /// Every run.
    pub runs: Vec<Run>,
}

/// One kind of work, once.
#[derive(Debug, Deserialize, Serialize)]
pub struct Run {
    /// Clipper's driver; overlayfs if there is none.
    pub driver: Option<Driver>,
    /// What was done.
    pub work: Work,
    /// Which round of all.
    pub round: usize,
    /// How long it took.
    pub seconds: f64,
}

impl Parity {
    /// Measures `rounds` times each, in turns.
    pub fn measure(image: &str, rounds: usize) -> Result<Self> {
        let ground = Ground::ext4()?;
        let mut registry = Registry::start()?;
        let base = registry.push_cached(image)?;
        let (accelerated, _) = convert(&base)?;
        let plain = Containerd::start(Settings::overlayfs())?;
        plain.pull("overlayfs", &base)?;
        let expected_root = plain.root_of_container("overlayfs", &base)?;
        let expected = tree(expected_root.path())?;
        let mut places = vec![(None, Workload::new(expected_root.path(), &expected))];
        let mut nodes = Vec::new();
        for driver in Driver::ALL {
            let node = Node::start(driver)?;
            node.pull(&accelerated)?;
            nodes.push((driver, node));
        }
        let count = devices(&index_of(&registry, &accelerated)?);
        let mut roots = Vec::new();
        for (driver, node) in &nodes {
            let root = node.containerd.root_of_container("clipper", &accelerated)?;
            node.filled(count, PATIENCE, || Ok(()))?;
            roots.push((*driver, root));
        }
        // What is read from now on comes from these nodes alone.
        registry.stop()?;
        for (driver, root) in &roots {
            must_be_same(&expected, &tree(root.path())?, format!("{image} over {driver}"))?;
            places.push((Some(*driver), Workload::new(root.path(), &expected)));
        }
        let mut runs = Vec::new();
        // The first round only warms what reading the trees has left cold.
        for round in 0..=rounds {
            for work in Work::ALL {
                let turn = (round + work as usize) % places.len();
                for (driver, workload) in places[turn..].iter().chain(&places[..turn]) {
                    let seconds = workload.run(work).with_context(|| format!("{} over {driver:?}", work.name()))?;
                    if round > 0 {
                        runs.push(Run { driver: *driver, work, round, seconds });
                    }
                }
            }
        }
        drop(roots);
        drop(ground);
        let parity = Self { image: image.into(), extent: places[0].1.extent(), runs };
        for driver in Driver::ALL {
            eprintln!("{image} over {driver}: {:.3} of overlayfs", parity.mean(driver));
        }
        ensure!(!parity.runs.is_empty(), "no runs, no figures");
        Ok(parity)
    }

    /// Times of a kind of work over a driver, as multiples of overlayfs's in the same round.
    pub fn ratios(&self, driver: Driver, work: Work) -> Figures {
        let of = |driver, round| {
            let run = |run: &&Run| run.driver == driver && run.work == work && run.round == round;
            self.runs.iter().find(run).map(|run| run.seconds)
        };
        let rounds = 1..=self.runs.iter().map(|run| run.round).max().unwrap_or_default();
        Figures(rounds.filter_map(|round| Some(of(Some(driver), round)? / of(None, round)?)).collect())
    }

    /// Seconds that overlayfs takes.
    pub fn plain(&self, work: Work) -> Figures {
        let runs = self.runs.iter().filter(|run| run.driver.is_none() && run.work == work);
        Figures(runs.map(|run| run.seconds).collect())
    }

    /// The geometric mean of all kinds of work.
    pub fn mean(&self, driver: Driver) -> f64 {
        Figures(Work::ALL.iter().map(|work| self.ratios(driver, *work).median()).collect()).geometric_mean()
    }
}
