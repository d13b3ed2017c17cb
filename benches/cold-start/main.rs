//! `cold-start`: a Node.js application of 1.5 GB over a 300 Mbit/s link, from nothing to ready, with containerd's
//! overlayfs and with Clipper in turns. Writes its section of benches/RESULTS.md, cold-start.json and cold-start.svg.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use clipper_benches::cold_start::{Application, FarRegistry, Run, System};
use clipper_benches::figures::Figures;
use clipper_benches::page;
use clipper_benches::picture::{Bar, bars};
use clipper_tests::clipper::convert_with;

/// Measures pull and start to ready over a shaped link, with fresh caches each run.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each system.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Rate of the link in Mbit/s.
    #[arg(long, default_value_t = 300)]
    megabits: u32,
    /// Delay in each direction, in milliseconds.
    #[arg(long, default_value_t = 5)]
    delay: u64,
    /// The systems to be compared: overlayfs, unlisted (Clipper without a list of what the start reads), clipper,
    /// recorded (Clipper with a trace).
    #[arg(long, value_delimiter = ',', default_values = ["overlayfs", "unlisted", "clipper", "recorded"])]
    systems: Vec<String>,
    /// Image below .cache/images.
    #[arg(long, default_value = "node-red")]
    image: String,
    /// Only print; leave benches/RESULTS.md and the pictures alone.
    #[arg(long)]
    dry: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let systems: Vec<System> = options
        .systems
        .iter()
        .map(|name| match name.as_str() {
            "overlayfs" => Ok(System::Overlayfs),
            "clipper" => Ok(System::Clipper),
            "unlisted" => Ok(System::Unlisted),
            "recorded" => Ok(System::Traced),
            other => anyhow::bail!("no system is called {other}"),
        })
        .collect::<Result<_>>()?;
    let far = FarRegistry::new(options.megabits, Duration::from_millis(options.delay))?;
    eprintln!("pushing {} into the registry", options.image);
    let image = far.registry.push_cached(&options.image)?;
    let application = Application { image: image.clone(), port_variable: "PORT".into() };
    // By way of the proxy: to Clipper, only loopback is a registry that speaks plain HTTP unasked.
    let base = far.proxy.by_way(&image);
    if systems.iter().any(|system| *system != System::Overlayfs) {
        eprintln!("converting it");
        convert_with(&base, &[])?;
    }
    if systems.contains(&System::Unlisted) {
        convert_with(&base, &[&System::Unlisted.reference(&base), "--no-guess"])?;
    }
    if systems.contains(&System::Traced) {
        eprintln!("recording its start, and converting it with that");
        let scratch = tempfile::tempdir()?;
        let trace = scratch.path().join("trace").display().to_string();
        far.record(&application, &trace)?;
        convert_with(&base, &[&System::Traced.reference(&base), "--trace", &trace])?;
    }
    let mut runs = Vec::new();
    for round in 1..=options.runs {
        for system in &systems {
            let run = far.cold_start(*system, &application)?;
            eprintln!(
                "{round}/{} {:>17}: pull {:6.2} s, start {:6.2} s, {:7.1} MB, {:5} requests",
                options.runs,
                system.name(),
                run.pull,
                run.start,
                run.wire_bytes as f64 / 1e6,
                run.requests
            );
            runs.push(run);
        }
    }
    let text = report(&options, &systems, &runs);
    println!("{text}");
    if !options.dry {
        fs::write(page::directory().join("cold-start.json"), serde_json::to_string_pretty(&runs)? + "\n")?;
        fs::write(page::directory().join("cold-start.svg"), picture(&options, &systems, &runs))?;
        page::write_section("cold-start", &text)?;
    }
    Ok(())
}

fn figures(runs: &[Run], system: System, of: impl Fn(&Run) -> f64) -> Figures {
    Figures(runs.iter().filter(|run| run.system == system).map(of).collect())
}

fn report(options: &Options, systems: &[System], runs: &[Run]) -> String {
    let mut text = format!(
        "## Cold start\n\n{} `{}` over {} Mbit/s and {} ms each way, {} runs in turns, everything cold each time; median (lowest–highest).\n\n\
         | | pull, s | start to ready, s | pull to ready, s | on the wire, MB | requests | snapshotter's memory, MB |\n|---|---|---|---|---|---|---|\n",
        page::circumstances(),
        options.image,
        options.megabits,
        options.delay,
        options.runs
    );
    for system in systems {
        let of = |pick: fn(&Run) -> f64| figures(runs, *system, pick);
        let memory = of(|run| run.resident_kib.map_or(f64::NAN, |kib| kib as f64 / 1024.0));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} |\n",
            system.name(),
            of(|run| run.pull).text(2),
            of(|run| run.start).text(2),
            of(|run| run.pull + run.start).text(2),
            of(|run| run.wire_bytes as f64 / 1e6).text(1),
            of(|run| run.requests as f64).text(0),
            if memory.median().is_nan() { "–".into() } else { memory.text(1) },
        );
    }
    let total = |system| figures(runs, system, |run| run.pull + run.start).median();
    if systems.contains(&System::Overlayfs) {
        for system in systems.iter().filter(|system| **system != System::Overlayfs) {
            let ratio = total(System::Overlayfs) / total(*system);
            text += &format!("\n**{} is ready {ratio:.1} times sooner.**\n", system.name());
        }
    }
    text + "\n![Seconds from pull to ready](cold-start.svg)\n"
}

fn picture(options: &Options, systems: &[System], runs: &[Run]) -> String {
    let rows: Vec<Bar> = systems
        .iter()
        .map(|system| {
            let total = figures(runs, *system, |run| run.pull + run.start);
            let parts =
                vec![figures(runs, *system, |run| run.pull).median(), figures(runs, *system, |run| run.start).median()];
            Bar { name: system.name().into(), parts, range: (total.min(), total.max()) }
        })
        .collect();
    let title = format!("{} from pull to ready, {} Mbit/s, {} ms", options.image, options.megabits, options.delay);
    bars(&title, "s", &["pull", "start to ready"], &rows)
}
