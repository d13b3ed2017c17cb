//! A conversion and its yardstick in turns: time of both, and the conversion's memory.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clipper_benches::figures::Figures;
use clipper_tests::daemon::program;
use serde_json::Value;

use crate::subject::Subject;

/// What came of it, run by run.
#[derive(Default)]
pub struct Race {
    /// Seconds of the yardstick.
    pub yardstick: Figures,
    /// Seconds of the conversion.
    pub convert: Figures,
    /// The second by the first.
    pub ratio: Figures,
    /// The conversion's most resident memory, in MB.
    pub memory: Figures,
    /// What the last conversion's `--json` said.
    pub report: Value,
}

impl Race {
    /// Runs a shell command for each layer in turn, `$1` being the layer's file, then `clipper convert` with `args`.
    pub fn run(subject: &Subject, runs: usize, script: &str, args: &[&str]) -> Result<Self> {
        let mut race = Self::default();
        for round in 1..=runs {
            let plain = yardstick(subject, script)?;
            let (seconds, peak_kib, report) = convert(subject, args)?;
            let ratio = seconds / plain;
            let (name, args, peak) = (&subject.name, args.join(" "), peak_kib >> 10);
            eprintln!("{round}/{runs} {name} {args}: {plain:.2} s, clipper {seconds:.2} s, {ratio:.2}, {peak} MB");
            race.yardstick.0.push(plain);
            race.convert.0.push(seconds);
            race.ratio.0.push(ratio);
            race.memory.0.push(peak_kib as f64 / 1024.0);
            race.report = report;
        }
        Ok(race)
    }
}

impl Race {
    /// Times, their ratio and the memory, as columns of a table.
    pub fn columns(&self) -> String {
        let Self { yardstick, convert, ratio, memory, .. } = self;
        [yardstick.text(2), convert.text(2), ratio.text(2), memory.text(0)].join(" | ")
    }
}

fn yardstick(subject: &Subject, script: &str) -> Result<f64> {
    let begun = Instant::now();
    for blob in &subject.blobs {
        let status = Command::new("bash").args(["-o", "pipefail", "-c", script, "bash"]).arg(blob).status()?;
        if !status.success() {
            bail!("{script}: {status}, $1 being {}", blob.display());
        }
    }
    Ok(begun.elapsed().as_secs_f64())
}

/// Converts without reuse, into the subject's own layout, which is restored then; gives seconds, most resident memory in
/// KiB, and the report.
fn convert(subject: &Subject, args: &[&str]) -> Result<(f64, u64, Value)> {
    let output = tempfile::NamedTempFile::new()?;
    let begun = Instant::now();
    let mut child = Command::new(program("clipper")?)
        .args(["convert", "--no-reuse", "--quiet", "--json"])
        .args(args)
        .arg(&subject.reference)
        .stdout(Stdio::from(output.reopen()?))
        .spawn()?;
    let (path, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    let status = loop {
        // The kernel keeps the high-water mark itself; only growth in the last milliseconds is missed.
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mark = text.lines().find(|line| line.starts_with("VmHWM")).and_then(|line| line.split_whitespace().nth(1));
        peak = mark.and_then(|kib| kib.parse().ok()).unwrap_or(peak);
        match child.try_wait()? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(3)),
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    if !status.success() {
        bail!("clipper convert {}: {status}", subject.reference);
    }
    subject.restore()?;
    let report = serde_json::from_slice(&fs::read(output.path())?).context("what `convert --json` printed")?;
    Ok((seconds, peak, report))
}

/// Bytes of a blob of an image in a report: `index`, `checkpoints` or `hot`; 0 if there is none.
pub fn blob_size(image: &Value, part: &str) -> f64 {
    image[part]["size"].as_u64().unwrap_or(0) as f64
}
