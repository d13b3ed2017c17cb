//! `cold-start`: real applications over a 300 Mbit/s link, from nothing to ready, with containerd's overlayfs and with
//! Clipper's modes in turns. Writes its sections of benches/RESULTS.md and README.md, cold-start.json and cold-start.svg.

mod measured;
mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use clipper_benches::application::{APPLICATIONS, Application};
use clipper_benches::cold_start::{FarRegistry, Run, System};
use clipper_benches::needed::Needed;
use clipper_benches::page::{self, Page};
use clipper_tests::clipper::clipper_ok;
use measured::{Image, Measured, Measurement};
use serde_json::Value;

/// Measures pull and start to ready over a shaped link, with fresh caches each run.
///
/// Results of images that aren't measured stay as they are.
#[derive(Debug, Parser)]
struct Options {
    /// Image below .cache/images to be measured; may be repeated [default: all: node-red, python, postgres, java]
    #[arg(long, value_name = "NAME")]
    image: Vec<String>,
    /// Runs of each system.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Rate of the link in Mbit/s.
    #[arg(long, default_value_t = 300)]
    megabits: u32,
    /// Delay in each direction, in milliseconds.
    #[arg(long, default_value_t = 5)]
    delay: u64,
    /// The systems to be compared: overlayfs; index-unlisted (Clipper's index-only mode without a list of what the start
    /// reads), index (with what the converter guesses), index-recorded (with a trace); full, full-recorded
    #[arg(long, value_delimiter = ',', default_values = System::ALL.map(System::option))]
    systems: Vec<String>,
    /// Largest hot blob, as for `clipper convert` [default: its own].
    #[arg(long, value_name = "LIMIT")]
    hot_limit: Option<String>,
    /// Keep the traces of the starts there, as NAME.trace.
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Only print; leave benches/RESULTS.md, README.md and the pictures alone.
    #[arg(long)]
    dry: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.runs > 0, "no runs, no figures");
    let systems: Vec<System> = options.systems.iter().map(|name| system(name)).collect::<Result<_>>()?;
    let applications = match options.image.as_slice() {
        [] => APPLICATIONS.to_vec(),
        names => names.iter().map(|name| Application::called(name)).collect::<Result<_>>()?,
    };
    let mut all = if options.dry { Measured::default() } else { Measured::read()? };
    for application in &applications {
        all.put(application.name, measure(application, &systems, &options)?);
        println!("{}", report::image(application, &all));
        // After each image: what was measured stays, whatever happens to the next.
        if !options.dry {
            all.write()?;
            fs::write(page::directory().join("cold-start.svg"), report::picture(&all))?;
            Page::Results.write_section("cold-start", &report::results(&all))?;
            Page::Readme.write_section("cold-start", &report::readme(&all))?;
        }
    }
    Ok(())
}

fn system(name: &str) -> Result<System> {
    match System::ALL.into_iter().find(|system| system.option() == name) {
        Some(system) => Ok(system),
        None => bail!("no system is called {name}; there are: {}", System::ALL.map(System::option).join(", ")),
    }
}

/// All runs of one application.
fn measure(application: &Application, systems: &[System], options: &Options) -> Result<Measurement> {
    // One for each image: before every start, all that the registry holds is read into the page cache.
    let far = FarRegistry::new(options.megabits, Duration::from_millis(options.delay))?;
    eprintln!("{}: pushing it into the registry, converting it, recording its start", application.name);
    let image = far.registry.push_cached(application.name)?;
    // Also for overlayfs alone: what it brings is compared with what the start needs.
    let base = far.near(&image);
    let more: Vec<&str> = options.hot_limit.iter().flat_map(|limit| ["--hot-limit", limit]).collect();
    System::Index.convert(&base, None, &more)?;
    let scratch = tempfile::tempdir()?;
    let trace = scratch.path().join("trace");
    far.record(application, &image, &trace)?;
    if let Some(kept) = &options.traces {
        fs::create_dir_all(kept)?;
        fs::copy(&trace, kept.join(format!("{}.trace", application.name)))?;
    }
    for system in systems.iter().filter(|system| **system != System::Index) {
        system.convert(&base, Some(&trace), &more)?;
    }
    let accelerated = System::Index.reference(&base);
    let needed = Needed::of(&accelerated, &trace)?;
    let mut runs = Vec::new();
    for round in 1..=options.runs {
        for system in systems {
            let run = far.cold_start(*system, application, &image)?;
            tell(application, round, options.runs, &run);
            runs.push(run);
        }
    }
    let (circumstances, link) = (page::circumstances(), (options.megabits, options.delay));
    Ok(Measurement { circumstances, link, image: described(&accelerated)?, needed, runs })
}

fn described(accelerated: &str) -> Result<Image> {
    let inspected: Value = serde_json::from_str(&clipper_ok(&["inspect", "--json", accelerated])?)?;
    let size = |field: &str| inspected[0][field].as_u64().unwrap_or_default();
    let layers = inspected[0]["layers"].as_array().map_or(0, Vec::len);
    Ok(Image { layers, compressed: size("layers_size"), unpacked: size("device_size") })
}

fn tell(application: &Application, round: usize, rounds: usize, run: &Run) {
    eprintln!(
        "{} {round}/{rounds} {:>20}: pull {:6.2} s, start {:6.2} s, {:7.1} MB, {:5} requests",
        application.name,
        run.system.name(),
        run.pull,
        run.start,
        run.wire_bytes as f64 / 1e6,
        run.requests
    );
}
