//! Fifty containers of ten images, started at once on a node that has none of them.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clipper_benches::cold_start::FarRegistry;
use clipper_benches::ideal::Way;
use clipper_benches::node::Node;
use clipper_benches::system::Driver;
use clipper_tests::clipper::convert;
use clipper_tests::fetched::Fetched;
use clipper_tests::filler::Filler;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::registry::cached_image;
use clipper_tests::scratch::Scratch;
use serde::{Deserialize, Serialize};

/// Images, and containers of each.
const IMAGES: u64 = 10;
const CONTAINERS: usize = 5;
/// Generated files of an image, and bytes of each.
const FILES: usize = 200;
const FILE: usize = 100_000;

/// What came of it, once for each driver.
#[derive(Debug, Deserialize, Serialize)]
pub struct Crowd {
    /// Mbit/s, and milliseconds of delay each way.
    pub link: Way,
    /// How many there were of each.
    pub images: u64,
    /// Of all images together.
    pub containers: u64,
    /// One for each driver.
    pub runs: Vec<Run>,
}

/// All containers, over one driver.
#[derive(Debug, Deserialize, Serialize)]
pub struct Run {
    /// Clipper's driver.
    pub driver: Driver,
    /// Containers that didn't print what they should.
    pub failures: usize,
    /// Seconds until the last had ended.
    pub seconds: f64,
    /// Bytes of bodies that arrived.
    pub fetched: u64,
    /// Without what had arrived before.
    pub distinct: u64,
    /// Bytes that crossed the link, frames and all.
    pub wire_bytes: u64,
}

impl Crowd {
    /// Runs them over each driver.
    pub fn measure(link: Way) -> Result<Self> {
        let far = FarRegistry::new(link.0, link.delay())?;
        let images = images(&far)?;
        let mut measured = Self { link, images: IMAGES, containers: IMAGES * CONTAINERS as u64, runs: Vec::new() };
        for driver in Driver::ALL {
            let run = run(driver, &far, &images)?;
            eprintln!(
                "{} containers over {driver}: {} failed, {:.1} s, {} of {} bytes",
                measured.containers, run.failures, run.seconds, run.fetched, run.distinct
            );
            measured.runs.push(run);
        }
        Ok(measured)
    }
}

/// Accelerated images as nodes know them, and what their containers print, forwards and backwards.
fn images(far: &FarRegistry) -> Result<Vec<(String, [String; 2])>> {
    let scratch = Scratch::new("crowd")?;
    let layout = Layout::create(scratch.path())?;
    let (base, config) = layout.adopt(&cached_image("busybox")?)?;
    let mut images = Vec::new();
    for seed in 0..IMAGES {
        let filler = Filler::new(seed, FILES, FILE);
        let mut layers = base.clone();
        layers.push(filler.layer(&layout, &Compression::gzip())?);
        layout.tag("1", &layout.image(&Image { layers, config: config.clone(), ..Image::default() })?)?;
        let source = format!("oci:{}:1", scratch.path().display());
        let image = far.registry.push(&source, &format!("crowd/{seed}:1"))?;
        let (accelerated, _) = convert(&far.near(&image))?;
        images.push((accelerated, [false, true].map(|backwards| filler.sha256(backwards))));
    }
    Ok(images)
}

fn run(driver: Driver, far: &FarRegistry, images: &[(String, [String; 2])]) -> Result<Run> {
    let node = Node::start(driver)?;
    far.proxy.take_log();
    let (before, begun) = (far.received()?, Instant::now());
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let of_image = |(number, (reference, sums)): (usize, &(String, [String; 2]))| {
            let (node, reference, sums) = (&node, reference.clone(), sums.clone());
            scope.spawn(move || containers(node, number, &reference, &sums))
        };
        let threads: Vec<_> = images.iter().enumerate().map(of_image).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|_| vec![Err(anyhow!("it panicked"))]))
            .collect()
    });
    let (seconds, wire_bytes) = (begun.elapsed().as_secs_f64(), far.received()? - before);
    let fetched = Fetched::of(&far.proxy.log());
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        eprintln!("{error:#}");
    }
    let failures = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    Ok(Run { driver, failures, seconds, fetched: fetched.total, distinct: fetched.distinct, wire_bytes })
}

/// Pulls an image and starts all its containers: what became of each.
fn containers(node: &Node, image: usize, reference: &str, sums: &[String; 2]) -> Vec<Result<()>> {
    let pulled = node.pull(reference).map_err(|error| format!("{error:#}"));
    thread::scope(|scope| {
        let start = |number: usize| {
            let pulled = pulled.clone();
            scope.spawn(move || {
                pulled.map_err(|error| anyhow!(error)).context("the pull")?;
                // Each second one reads from the other end.
                let (sort, sum) = if number.is_multiple_of(2) { ("sort", &sums[0]) } else { ("sort -r", &sums[1]) };
                let (id, script) =
                    (format!("c{image}-{number}"), format!("find /data -type f | {sort} | xargs cat | sha256sum"));
                let said = node.containerd.run("clipper", reference, &id, &["sh", "-c", &script])?;
                ensure!(said == format!("{sum}  -\n"), "{id} printed {said}");
                Ok(())
            })
        };
        let threads: Vec<_> = (0..CONTAINERS).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked")))).collect()
    })
}
