//! What was measured, in words and pictures: for benches/RESULTS.md all of it, for README.md the essence.

use clipper_benches::application::Application;
use clipper_benches::cold_start::System;
use clipper_benches::figures::Figures;
use clipper_benches::picture::{Bar, Group, bars};

use crate::measured::{Measured, Measurement};

/// The section of benches/RESULTS.md.
pub fn results(all: &Measured) -> String {
    let mut text = String::from(
        "## Cold start\n\nFrom an empty node to an application that answers, the systems in turns, everything cold each \
         time; median (lowest–highest). *Index-only* describes the base image's own layers, *full* repacks them. Without \
         further words, the converter has guessed what the start reads; *no list*: it was told not to; *recorded*: it \
         had the trace of a start.\n\n\
         **B\\*** is what a start can't do without: the bytes of files that its trace names (blocks of 4 KiB that the \
         kernel asked for, its read-ahead included, each once), in the order of first touch, cut into frames of 256 KiB, \
         each compressed alone by `zstd -3`. *On the wire* counts every byte that the node received until the \
         application answered: Ethernet, TCP and HTTP, manifests, configuration and index as well.\n\n\
         ![Seconds from pull to ready](cold-start.svg)\n",
    );
    for (application, _) in all.all() {
        text += &image(&application, all);
    }
    text
}

/// What is known of one application.
pub fn image(application: &Application, all: &Measured) -> String {
    let Some(own) = all.of(application) else { return String::new() };
    let (megabits, delay) = own.link;
    let mut text = format!(
        "\n### {}\n\n{}: {} layers, {} MB compressed, {} MB unpacked. Its start reads {:.1} MB of files; B\\* = {:.1} MB. \
         {megabits} Mbit/s and {delay} ms each way, {} runs; {}\n\n\
         | | pull, s | start to ready, s | pull to ready, s | sooner | on the wire, MB | of B\\* | requests | snapshotter's memory, MB |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        application.name,
        capital(application.what),
        own.image.layers,
        own.image.compressed / 1_000_000,
        own.image.unpacked / 1_000_000,
        own.needed.bytes as f64 / 1e6,
        own.needed.packed as f64 / 1e6,
        own.rounds(),
        own.circumstances,
    );
    for system in own.systems() {
        let memory = own.figures(system, |run| run.resident_kib.map_or(f64::NAN, |kib| kib as f64 / 1024.0));
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} × | {} | {} |\n",
            system.name(),
            own.figures(system, |run| run.pull).text(2),
            own.figures(system, |run| run.start).text(2),
            own.total(system).text(2),
            sooner(own, system),
            own.figures(system, |run| run.wire_bytes as f64 / 1e6).text(1),
            own.over_needed(system).text(2),
            own.figures(system, |run| run.requests as f64).text(0),
            if memory.median().is_nan() { "–".into() } else { memory.text(1) },
        );
    }
    text
}

/// How many times sooner than with overlayfs.
fn sooner(own: &Measurement, system: System) -> String {
    let plain = own.total(System::Overlayfs).median();
    if system == System::Overlayfs || plain.is_nan() {
        return "–".into();
    }
    format!("**{:.1} ×**", plain / own.total(system).median())
}

/// The section of README.md.
pub fn readme(all: &Measured) -> String {
    let mut text = String::from("Real images, started cold until they answer; medians of runs in turns:\n\n");
    for (application, own) in all.all() {
        let (megabits, delay) = own.link;
        text += &format!(
            "- {}: {}; {megabits} Mbit/s and {delay} ms each way, {} runs, {}\n",
            application.name,
            application.what,
            own.rounds(),
            own.circumstances
        );
    }
    text.push_str(
        "\n[All results, and how they were measured](benches/RESULTS.md); `make bench` measures anew.\n\n\
         ![Seconds from pull to ready](benches/cold-start.svg)\n\n\
         | seconds from pull to ready | compressed, MB |",
    );
    for system in System::ALL {
        text += &format!(" {} |", system.name());
    }
    text += &format!("\n|---|---|{}\n", "---|".repeat(System::ALL.len()));
    for (application, own) in all.all() {
        text += &format!("| {} | {} |", application.name, own.image.compressed / 1_000_000);
        for system in System::ALL {
            text += &format!(" {} |", median(&own.total(system), 1, ""));
        }
        text += "\n| bytes on the wire, of what the start needs | |";
        for system in System::ALL {
            text += &format!(" {} |", median(&own.over_needed(system), 1, " ×"));
        }
        text += "\n";
    }
    let memory = all.all().flat_map(|(_, own)| &own.runs).filter_map(|run| run.resident_kib).max();
    if let Some(memory) = memory {
        text +=
            &format!("\nThe snapshotter had at most {:.0} MB of memory when they answered.\n", memory as f64 / 1024.0);
    }
    text
}

fn median(figures: &Figures, decimals: usize, unit: &str) -> String {
    let median = figures.median();
    if median.is_nan() { "–".into() } else { format!("{median:.decimals$}{unit}") }
}

/// Bars of all images.
pub fn picture(all: &Measured) -> String {
    let groups: Vec<Group> = all
        .all()
        .map(|(application, own)| {
            let (megabits, delay) = own.link;
            Group {
                title: format!("{}, {megabits} Mbit/s, {delay} ms each way", application.name),
                bars: own.systems().into_iter().map(|system| bar(own, system)).collect(),
            }
        })
        .collect();
    bars("From pull to ready", "s", &["pull", "start to ready"], &groups)
}

fn bar(own: &Measurement, system: System) -> Bar {
    let total = own.total(system);
    let parts = vec![own.figures(system, |run| run.pull).median(), own.figures(system, |run| run.start).median()];
    Bar { name: system.name().into(), parts, range: (total.min(), total.max()) }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
