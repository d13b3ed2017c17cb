//! What was measured, in words: for benches/RESULTS.md all of it, for README.md the essence.

use clipper_benches::application::Application;
use clipper_benches::figures::Figures;
use clipper_benches::system::System;

use crate::measured::{Measured, Measurement};
use crate::plots::Plot;

/// The section of benches/RESULTS.md.
pub fn results(all: &Measured, plots: &[Plot]) -> String {
    let mut text = String::from(include_str!("results.md"));
    text += "\nMore pictures:\n\n";
    for Plot { title, file, .. } in plots {
        text += &format!("- [{title}]({file})\n");
    }
    for (application, own) in all.all() {
        text += &image(&application, own);
    }
    text
}

/// One measurement.
pub fn image(application: &Application, own: &Measurement) -> String {
    let mut text = format!(
        "\n### {}, {}\n\n{}: {} layers, {} MB compressed, {} MB unpacked. Its start reads {:.1} MB of files; B\\* = {:.1} MB.{} \
         {} runs; {}{}\n\n\
         | | pull, s | start to ready, s | pull to ready, s | of T\\* | sooner | on the wire, MB | of B\\* | requests | \
         processor, daemon, s | processor, all, s | daemon's peak memory, MB |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
        application.name,
        own.link,
        capital(application.what),
        own.image.layers,
        own.image.compressed / 1_000_000,
        own.image.unpacked / 1_000_000,
        own.needed.bytes as f64 / 1e6,
        own.needed.packed as f64 / 1e6,
        ideal(own),
        own.rounds(),
        own.circumstances,
        costs_apart(own),
    );
    for system in own.systems() {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} × | {} | {} | {} | {} |\n",
            system.name(),
            own.figures(system, |run| Some(run.pull)).text(2),
            own.figures(system, |run| Some(run.start)).text(2),
            own.total(system).text(2),
            own.over_ideal(system).map_or_else(|| "–".into(), |figures| format!("{} ×", figures.text(2))),
            sooner(own, system),
            own.figures(system, |run| Some(run.wire_bytes as f64 / 1e6)).text(1),
            own.over_needed(system).text(2),
            own.figures(system, |run| Some(run.requests as f64)).text(0),
            told(&own.figures(system, |run| run.daemon_cpu), 2),
            told(&own.figures(system, |run| run.node_cpu), 2),
            told(&own.figures(system, |run| Some(run.peak_kib? as f64 / 1024.0)), 1),
        );
    }
    for missing in &own.missing {
        text += &format!("\nNot run, or not every time: {}: {}\n", missing.system.name(), missing.reason);
    }
    text
}

fn ideal(own: &Measurement) -> String {
    match (own.warm(), own.ideal()) {
        (Some(warm), Some(ideal)) => format!(" T_warm = {warm:.2} s, T\\* = {ideal:.2} s."),
        _ => String::new(),
    }
}

/// Where costs are those of other runs than seconds.
fn costs_apart(own: &Measurement) -> String {
    let Some(circumstances) = &own.costs_of else { return String::new() };
    format!(" Clipper's processor time and memory are those of as many runs by themselves: {circumstances}")
}

/// How many times sooner than with overlayfs.
fn sooner(own: &Measurement, system: System) -> String {
    let plain = own.total(System::Overlayfs).median();
    if system == System::Overlayfs || plain.is_nan() {
        return "–".into();
    }
    format!("**{:.1} ×**", plain / own.total(system).median())
}

/// The section of README.md: one link, a column for each image.
pub fn readme(all: &Measured) -> String {
    let mut text = String::from("Real images, started cold until they answer; medians of runs in turns:\n\n");
    let (usual, in_zstd): (Vec<_>, Vec<_>) = (all.usual().collect(), all.in_zstd().collect());
    text += &described(&usual);
    text.push_str(
        "\n[All results, and how they were measured](benches/RESULTS.md); `make bench` measures anew.\n\n\
         ![Seconds from pull to ready](benches/cold-start.svg)\n\n\
         Seconds from pull to ready. *T\\** is the least that a start can take: from a warm local disk, or as long as what it \
         needs is on the link, and three round trips; *B\\** is what it needs.\n\n",
    );
    text += &compared(&usual);
    if !in_zstd.is_empty() {
        text += "\nThe same images in layers of one zstd frame each, as BuildKit, Docker and podman push them:\n\n";
        text += &described(&in_zstd);
        text += "\n";
        text += &compared(&in_zstd);
    }
    text
}

/// What was measured, a line for each.
fn described(measured: &[(Application, &Measurement)]) -> String {
    let line = |(application, own): &(Application, &Measurement)| {
        let (what, compressed, rounds) = (application.what, own.image.compressed / 1_000_000, own.rounds());
        let Measurement { link, circumstances, .. } = own;
        format!("- {}: {what}, {compressed} MB compressed; {link}, {rounds} runs, {circumstances}\n", application.name)
    };
    measured.iter().map(line).collect()
}

/// A table with a column for each, and the memory that Clipper took.
fn compared(measured: &[(Application, &Measurement)]) -> String {
    let mut text = String::from("|");
    for (application, _) in measured {
        text += &format!(" | {}", application.name);
    }
    text += &format!(" |\n|---|{}\n", "---|".repeat(measured.len()));
    for system in System::all() {
        if !measured.iter().any(|(_, own)| own.systems().contains(&system)) {
            continue;
        }
        text += &format!("| {} |", system.name());
        for (_, own) in measured {
            text += &format!(" {} |", cell(own, system));
        }
        text += "\n";
    }
    let clippers = measured.iter().flat_map(|(_, own)| &own.runs).filter(|run| run.system.is_clipper());
    if let Some(memory) = clippers.filter_map(|run| run.peak_kib).max() {
        text += &format!("\nClipper's snapshotter never had more than {:.0} MB of memory.\n", memory as f64 / 1024.0);
    }
    text
}

/// `1.6 s, 1.3 T*, 1.0 B*`, as far as it is known.
fn cell(own: &Measurement, system: System) -> String {
    let total = own.total(system).median();
    if total.is_nan() {
        return "–".into();
    }
    let ideal = own.over_ideal(system).map_or_else(String::new, |figures| format!(", {:.1} T\\*", figures.median()));
    format!("**{total:.1}**{ideal}, {:.1} B\\*", own.over_needed(system).median())
}

fn told(figures: &Figures, decimals: usize) -> String {
    if figures.0.is_empty() { "–".into() } else { figures.text(decimals) }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_benches::application::APPLICATIONS;

    fn measured(runs: &str) -> Measured {
        let file = format!(
            r#"{{"node-red": {{"circumstances": "a day", "link": [300, 5], "image": {{"layers": 1, "compressed": 2, "unpacked": 3}},
                "needed": {{"bytes": 8, "packed": 30000000}}, "runs": [{runs}],
                "missing": [{{"system": "soci", "reason": "no TLS"}}]}}}}"#
        );
        serde_json::from_str(&file).unwrap()
    }

    const PLAIN: &str =
        r#"{"system": "overlayfs", "pull": 8.0, "start": 2.0, "wire_bytes": 90000000, "requests": 9, "warm": 0.97}"#;
    const INDEX: &str = r#"{"system": "index", "pull": 0.5, "start": 1.5, "wire_bytes": 60000000, "requests": 7}"#;

    #[test]
    fn rows_tell_multiples_of_what_can_be_had() {
        let all = measured(&format!("{PLAIN}, {INDEX}"));
        let (_, own) = all.usual().next().unwrap();
        let text = image(&APPLICATIONS[0], own);
        assert!(text.contains("T_warm = 0.97 s, T\\* = 1.00 s."), "{text}");
        assert!(text.contains("| 2.00 (2.00–2.00) × | **5.0 ×** |"), "{text}");
        assert!(text.contains("Not run, or not every time: SOCI: no TLS"), "{text}");
        let readme = readme(&all);
        assert!(readme.contains("| Clipper index-only, fuse | **2.0**, 2.0 T\\*, 2.0 B\\* |"), "{readme}");
    }

    #[test]
    fn nothing_is_made_up_where_no_warm_start_was_measured() {
        let all = measured(INDEX);
        let (_, own) = all.usual().next().unwrap();
        assert!(image(&APPLICATIONS[0], own).contains("| 2.00 (2.00–2.00) | – | – |"));
        assert!(readme(&all).contains("| Clipper index-only, fuse | **2.0**, 2.0 B\\* |"));
    }
}
