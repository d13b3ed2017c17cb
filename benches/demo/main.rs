//! `demo`: the main job, told step by step. A real image in a real registry is converted; then a container is started
//! from it over a slow link, once by containerd alone and once with Clipper.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use clipper_benches::application::Application;
use clipper_benches::cold_start::{FarRegistry, Run};
use clipper_benches::system::{Conversion, Driver, System};
use clipper_tests::clipper::{clipper_ok, convert};

/// Shows what Clipper does.
#[derive(Debug, Parser)]
struct Options {
    /// Image below .cache/images: node-red, python, postgres or java.
    #[arg(long, default_value = "node-red")]
    image: String,
    /// Rate of the link in Mbit/s.
    #[arg(long, default_value_t = 300)]
    megabits: u32,
    /// Delay in each direction, in milliseconds.
    #[arg(long, default_value_t = 5)]
    delay: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let application = Application::called(&options.image)?;
    println!("A registry behind a link of {} Mbit/s, {} ms away in each direction.", options.megabits, options.delay);
    let far = FarRegistry::new(options.megabits, Duration::from_millis(options.delay))?;
    let image = far.registry.push_cached(&options.image)?;
    let (manifest, _) = far.registry.manifest(&image)?;
    let layers: Vec<u64> =
        manifest["layers"].as_array().into_iter().flatten().filter_map(|layer| layer["size"].as_u64()).collect();
    let total: u64 = layers.iter().sum();
    println!("In it, an ordinary image: {} layers, {:.0} MB compressed.\n", layers.len(), total as f64 / 1e6);

    println!("1. `clipper convert` describes the layers; it changes and copies none of them.");
    let begun = Instant::now();
    let (accelerated, report) = convert(&far.proxy.by_way(&image))?;
    let converted = &report["images"][0];
    let overhead: u64 = ["index", "checkpoints"].iter().filter_map(|part| converted[*part]["size"].as_u64()).sum();
    println!(
        "   {:.1} s, over the slow link. The index takes {:.1} MB: {:.2} % of the image.\n",
        begun.elapsed().as_secs_f64(),
        overhead as f64 / 1e6,
        overhead as f64 * 100.0 / total as f64
    );
    println!("2. `clipper inspect` tells what came of it:\n");
    for line in clipper_ok(&["inspect", &accelerated])?.lines() {
        println!("   {line}");
    }

    println!("\n3. containerd alone, on an empty node: download, unpack, start.");
    let plain = far.cold_start(System::Overlayfs, &application, &image)?;
    tell(&plain);
    println!("4. Clipper, on an empty node: mount, start, fetch what is touched.");
    let lazy = far.cold_start(System::Clipper(Conversion::Index, Driver::Fuse), &application, &image)?;
    tell(&lazy);
    let sum = |run: &Run| run.pull + run.start;
    println!(
        "The application answers {:.1} times sooner, and {:.0} of {:.0} MB have crossed the link by then.",
        sum(&plain) / sum(&lazy),
        lazy.wire_bytes as f64 / 1e6,
        plain.wire_bytes as f64 / 1e6
    );
    Ok(())
}

fn tell(run: &Run) {
    println!(
        "   pull {:.2} s, then {:.2} s until it is ready; {:.1} MB in {} requests\n",
        run.pull,
        run.start,
        run.wire_bytes as f64 / 1e6,
        run.requests
    );
}
