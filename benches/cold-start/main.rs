//! `cold-start`: real applications over slow links, from nothing to ready, with containerd's own snapshotters, with Clipper
//! and with others like it in turns. Writes its sections of benches/RESULTS.md and README.md, cold-start.json and
//! cold-start.svg.

mod measured;
mod plots;
mod report;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use clap::Parser;
use clipper_benches::application::Application;
use clipper_benches::cold_start::{FarRegistry, Run};
use clipper_benches::ideal::Way;
use clipper_benches::needed::Needed;
use clipper_benches::page::{self, Page};
use clipper_benches::peer::Subject;
use clipper_benches::system::{Conversion, Driver, System};
use clipper_tests::clipper::clipper_ok;
use clipper_tests::proxy::Access;
use measured::{Image, Measured, Measurement, Missing};
use rustix::fs::FlockOperation;
use serde_json::Value;

/// While images are prepared, nobody waits for the link.
const AT_HOME: (u32, Duration) = (10_000, Duration::ZERO);
/// What a trace is recorded with, and what the start needs is read with.
const RECORDED: System = System::Clipper(Conversion::Index, Driver::Fuse);

/// Measures pull and start to ready over shaped links, with fresh caches each run.
///
/// Results of images and links that aren't measured stay as they are.
#[derive(Debug, Parser)]
struct Options {
    /// Image below .cache/images to be measured; may be repeated [default: all: node-red, python, postgres,
    /// java, and these with -zstd, in layers of one zstd frame each]
    #[arg(long, value_name = "NAME")]
    image: Vec<String>,
    /// Runs of each system over each link.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Links: the rate in Mbit/s and the delay in each direction in milliseconds; a round trip takes twice that.
    #[arg(long, value_name = "MEGABITS/DELAY", value_delimiter = ',', default_value = "300/5")]
    link: Vec<Way>,
    /// The systems to be compared: overlayfs; containerd-erofs, stargz, soci, nydus-reference, nydus,
    /// nydus-lazy; Clipper's modes
    /// index-unlisted (without a list of what the start reads), index (with what the converter guesses), index-recorded
    /// (with a trace), full, full-recorded, each with -erofs or -fuse for the driver
    #[arg(long, value_delimiter = ',', default_values_t = System::usual())]
    systems: Vec<System>,
    /// Largest hot blob, as for `clipper convert` [default: its own].
    #[arg(long, value_name = "LIMIT")]
    hot_limit: Option<String>,
    /// Keep the traces of the starts there, as NAME.trace.
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Keep there what each run asked the registry for, as IMAGE-SYSTEM-RUN.tsv.
    #[arg(long, value_name = "DIR")]
    requests: Option<PathBuf>,
    /// Hold a lock (flock) on this file during each run, and only then, so that other work on the machine can wait for a pause.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Measure again only what lacks processor time and memory in the results, as often as it was measured, and complete
    /// these by them.
    #[arg(long, conflicts_with = "dry")]
    costs: bool,
    /// Only print; leave benches/RESULTS.md, README.md and the pictures alone.
    #[arg(long)]
    dry: bool,
    /// Measure nothing; write the pages and the picture anew.
    #[arg(long, conflicts_with = "dry")]
    pages: bool,
}

/// An image in a registry, prepared for all systems that can have it.
struct Prepared {
    far: FarRegistry,
    /// As the registry itself knows it.
    image: String,
    described: Image,
    needed: Needed,
    systems: Vec<System>,
    missing: Vec<Missing>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.runs > 0, "no runs, no figures");
    let applications: Vec<Application> = match options.image.as_slice() {
        [] => Application::all().collect(),
        names => names.iter().map(|name| Application::called(name)).collect::<Result<_>>()?,
    };
    let mut all = if options.dry { Measured::default() } else { Measured::read()? };
    if options.pages {
        return write(&all);
    }
    for application in &applications {
        if options.costs {
            complete(application, &mut all, &options)?;
            continue;
        }
        // One for each image, because all that it holds is kept in memory.
        let mut prepared = prepare(application, &options.systems, &options)?;
        for way in &options.link {
            let measurement = measure(application, &mut prepared, *way, options.runs, &options)?;
            println!("{}", report::image(application, &measurement));
            all.put(application.name, measurement);
            // After each of them: what was measured stays, whatever happens to the next.
            if !options.dry {
                all.write()?;
                write(&all)?;
            }
        }
    }
    Ok(())
}

/// Measures what lacks processor time and memory, as often as it was measured.
fn complete(application: &Application, all: &mut Measured, options: &Options) -> Result<()> {
    for way in &options.link {
        let Some(own) = all.of(application.name, *way) else { continue };
        let (lacking, rounds) = (own.without_costs(), own.rounds());
        if lacking.is_empty() {
            continue;
        }
        let mut prepared = prepare(application, &lacking, options)?;
        own.take_costs(measure(application, &mut prepared, *way, rounds, options)?);
        println!("{}", report::image(application, own));
        all.write()?;
        write(all)?;
    }
    Ok(())
}

fn write(all: &Measured) -> Result<()> {
    fs::write(page::directory().join("cold-start.svg"), plots::seconds(all))?;
    let plots = plots::all(all);
    fs::create_dir_all(page::directory().join("plots"))?;
    for plot in &plots {
        fs::write(page::directory().join(&plot.file), &plot.svg)?;
    }
    Page::Results.write_section("cold-start", &report::results(all, &plots))?;
    Page::Readme.write_section("cold-start", &report::readme(all))
}

/// Pushes an image, records its start, converts it for everybody.
fn prepare(application: &Application, wanted: &[System], options: &Options) -> Result<Prepared> {
    let far = FarRegistry::new(AT_HOME.0, AT_HOME.1)?;
    let name = application.name;
    eprintln!("{name}: pushing it into the registry, recording its start");
    let image = application.push(&far.registry)?;
    let base = far.near(&image);
    let convert: Vec<&str> = options.hot_limit.iter().flat_map(|limit| ["--hot-limit", limit]).collect();
    let scratch = tempfile::tempdir()?;
    let trace = scratch.path().join("trace");
    let subject = Subject { far: &far, image: &base, trace: &trace, convert: &convert };
    // Also for overlayfs alone: what it brings is compared with what the start needs.
    RECORDED.peer().prepare(&subject)?;
    let accelerated = RECORDED.reference(&base);
    far.record(application, &accelerated, None, &trace)?;
    // What a start needs is what one of them needs.
    let one = scratch.path().join("one");
    far.record(application, &accelerated, Some("fuse"), &one)?;
    if let Some(kept) = &options.traces {
        fs::create_dir_all(kept)?;
        fs::copy(&trace, kept.join(format!("{name}.trace")))?;
    }
    let (mut systems, mut missing) = (Vec::new(), Vec::new());
    let mut made = BTreeSet::from([RECORDED.peer().suffix()]);
    for system in wanted.iter().copied() {
        let peer = system.peer();
        if made.insert(peer.suffix()) {
            eprintln!("{name}: converting it for {}", system.name());
            if let Err(error) = peer.prepare(&subject) {
                missing.push(spare(system, error.context("preparing the image"))?);
                continue;
            }
        }
        systems.push(system);
    }
    let (described, needed) = (described(&accelerated)?, Needed::of(&accelerated, &one)?);
    Ok(Prepared { far, image, described, needed, systems, missing })
}

/// All runs of one application over one link.
fn measure(
    application: &Application,
    prepared: &mut Prepared,
    way: Way,
    rounds: usize,
    options: &Options,
) -> Result<Measurement> {
    prepared.far.move_to(way.0, way.delay())?;
    let (mut systems, mut missing) = (prepared.systems.clone(), prepared.missing.clone());
    let mut runs = Vec::new();
    for round in 1..=rounds {
        for system in systems.clone() {
            let alone = options.lock.as_deref().map(alone).transpose()?;
            let run = prepared.far.cold_start(system, application, &prepared.image);
            drop(alone);
            match run {
                Ok(run) => {
                    if let Some(dir) = &options.requests {
                        let name = format!("{}-{}-{round}.tsv", application.name, system.name());
                        keep_requests(&dir.join(name), &prepared.far.proxy.take_log())?;
                    }
                    tell(application, round, rounds, &run);
                    runs.push(run);
                }
                Err(error) => {
                    missing.push(spare(system, error.context(format!("in round {round}")))?);
                    systems.retain(|other| *other != system);
                }
            }
        }
    }
    let (circumstances, image) = (page::circumstances(), prepared.described.clone());
    Ok(Measurement { circumstances, link: way, image, needed: prepared.needed, runs, costs_of: None, missing })
}

/// Waits until nobody else has the lock. It is given back when the file is dropped.
fn alone(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path).with_context(|| path.display().to_string())?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// A comparison can do without a peer, but not without Clipper or what everybody has.
fn spare(system: System, error: Error) -> Result<Missing> {
    if system.is_clipper() || system == System::Overlayfs {
        return Err(error.context(system.name()));
    }
    let told = format!("{error:#}");
    eprintln!("{} can't be run: {told}", system.name());
    // What a command says comes after its own long line; why it failed, at the end.
    let lines: Vec<_> = told.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let reason = lines[lines.len().saturating_sub(3)..].join(" ");
    Ok(Missing { system, reason: reason.chars().take(400).collect() })
}

/// A line for each request: milliseconds from the first one to its arrival, and to the last byte of the answer; status, bytes
/// of the body, method, range, path.
fn keep_requests(path: &Path, log: &[Access]) -> Result<()> {
    let mut text = String::new();
    for access in log {
        let at = |time: Instant| time.duration_since(log[0].begun).as_secs_f64() * 1e3;
        let Access { method, path, range, status, bytes, begun, last } = access;
        let range = range.as_deref().unwrap_or("-");
        writeln!(text, "{:.1}\t{:.1}\t{status}\t{bytes}\t{method}\t{range}\t{path}", at(*begun), at(*last))?;
    }
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    Ok(fs::write(path, text)?)
}

fn described(accelerated: &str) -> Result<Image> {
    let inspected: Value = serde_json::from_str(&clipper_ok(&["inspect", "--json", accelerated])?)?;
    let first = inspected.get(0).context("`clipper inspect` describes no image")?;
    let size = |field: &str| first[field].as_u64().unwrap_or_default();
    let layers = first["layers"].as_array().map_or(0, Vec::len);
    Ok(Image { layers, compressed: size("layers_size"), unpacked: size("device_size") })
}

fn tell(application: &Application, round: usize, rounds: usize, run: &Run) {
    eprintln!(
        "{} {round}/{rounds} {:>28}: pull {:6.2} s, start {:6.2} s, {:7.1} MB, {:5} requests, {:5.2} s of processor, {:4} MB{}",
        application.name,
        run.system.name(),
        run.pull,
        run.start,
        run.wire_bytes as f64 / 1e6,
        run.requests,
        run.node_cpu.unwrap_or_default(),
        run.peak_kib.unwrap_or_default() / 1024,
        run.warm.map_or_else(String::new, |warm| format!("; again, warm: {warm:.2} s")),
    );
}
