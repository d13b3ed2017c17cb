//! The snapshotter's memory with ten images of about 1 GB mounted, all filled and read.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clipper_benches::node::{Node, devices, index_of};
use clipper_benches::system::Driver;
use clipper_tests::clipper::convert_with;
use clipper_tests::filler::Filler;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::registry::{Registry, cached_image};
use clipper_tests::scratch::Scratch;
use serde::{Deserialize, Serialize};

/// The images: what each is based on, and how many generated files lie above.
const IMAGES: [(&str, usize); 10] = [
    ("node-red", 0),
    ("python", 0),
    ("postgres", 5_000),
    ("java", 7_000),
    ("small", 12_000),
    ("busybox", 16_000),
    ("busybox", 16_000),
    ("busybox", 16_000),
    ("busybox", 16_000),
    ("busybox", 16_000),
];
/// Bytes of a generated file.
const FILE: usize = 64 << 10;
/// Longest that filling all may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the daemon is left alone before it counts as idle.
const QUIET: Duration = Duration::from_secs(15);

/// What was measured.
#[derive(Debug, Deserialize, Serialize)]
pub struct Memory {
    /// Images that were mounted.
    pub images: usize,
    /// Bytes of their layers, unpacked; shared ones once.
    pub unpacked: u64,
    /// Inodes of all images.
    pub inodes: u64,
    /// One for each driver.
    pub daemons: Vec<Daemon>,
}

/// A daemon's memory in KiB.
#[derive(Debug, Deserialize, Serialize)]
pub struct Daemon {
    /// Clipper's driver.
    pub driver: Driver,
    /// `VmHWM`: the most it ever had.
    pub peak: u64,
    /// `VmRSS` once all was filled and read.
    pub filled: u64,
    /// `VmRSS` 15 s later.
    pub idle: u64,
}

/// An image in the registry.
struct Subject {
    reference: String,
    filler: Filler,
}

impl Memory {
    /// Makes the images, and measures with each of `drivers`.
    pub fn measure(drivers: &[Driver]) -> Result<Self> {
        let registry = Registry::start()?;
        let subjects = subjects(&registry)?;
        let mut layers = std::collections::BTreeMap::new();
        let mut inodes = 0;
        for subject in &subjects {
            let index = index_of(&registry, &subject.reference)?;
            ensure!(devices(&index) > 0, "{} has no layers", subject.reference);
            inodes += index.layers.iter().map(|layer| layer.tree.inode_count()).sum::<u64>();
            layers.extend(index.layers.iter().map(|layer| (layer.digest, layer.spans.device_size())));
        }
        let (unpacked, devices) = (layers.values().sum(), layers.len());
        let mut measured = Self { images: subjects.len(), unpacked, inodes, daemons: Vec::new() };
        for driver in drivers {
            let daemon = run(*driver, &subjects, devices)?;
            let [peak, filled, idle] = [daemon.peak, daemon.filled, daemon.idle].map(|kib| kib >> 10);
            eprintln!("memory over {driver}: {peak} MiB at most, {filled} MiB filled, {idle} MiB idle");
            measured.daemons.push(daemon);
        }
        Ok(measured)
    }
}

fn subjects(registry: &Registry) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for (number, (base, count)) in IMAGES.into_iter().enumerate() {
        eprintln!("image {number}: {base} with {count} generated files");
        let filler = Filler::new(number as u64, count, FILE);
        // One at a time: the disk needn't hold them twice.
        let scratch = Scratch::new("subject")?;
        let layout = Layout::create(scratch.path())?;
        let (mut layers, config) = layout.adopt(&cached_image(base)?)?;
        if count > 0 {
            layers.push(filler.layer(&layout, &Compression::Gzip("pigz -1nc".into()))?);
        }
        layout.tag("1", &layout.image(&Image { layers, config, ..Image::default() })?)?;
        let source = format!("oci:{}:1", scratch.path().display());
        let image = registry.push(&source, &format!("memory/{number}:1"))?;
        let (reference, _) = convert_with(&image, &["--no-guess"])?;
        subjects.push(Subject { reference, filler });
    }
    Ok(subjects)
}

fn run(driver: Driver, subjects: &[Subject], devices: usize) -> Result<Daemon> {
    let node = Node::start(driver)?;
    let mut roots = Vec::new();
    for subject in subjects {
        node.pull(&subject.reference)?;
        roots.push(node.containerd.root_of_container("clipper", &subject.reference)?);
    }
    node.filled(devices, PATIENCE, || Ok(()))?;
    for (subject, root) in subjects.iter().zip(&roots) {
        for number in 0..subject.filler.count() {
            let path = subject.filler.path(number);
            let found = fs::read(root.path().join(&path)).with_context(|| path.clone())?;
            ensure!(found == subject.filler.content(number), "{path} of {} is wrong over {driver}", subject.reference);
        }
    }
    let snapshotter = &node.snapshotter;
    let filled = snapshotter.memory_kib("VmRSS")?;
    thread::sleep(QUIET);
    Ok(Daemon { driver, peak: snapshotter.memory_kib("VmHWM")?, filled, idle: snapshotter.memory_kib("VmRSS")? })
}
