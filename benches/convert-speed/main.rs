//! `convert-speed`: wall time of `clipper convert` against that of `gzip -dc LAYER | sha256sum` on the same layer, in
//! turns; peak memory; size of index and checkpoints. Writes its section of benches/RESULTS.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use clipper_benches::figures::Figures;
use clipper_benches::page;
use clipper_tests::clipper::clipper_ok;
use clipper_tests::daemon::program;
use clipper_tests::layout::{Image, Layer, Layout};
use clipper_tests::registry::cached_image;
use clipper_tests::scratch::Scratch;
use serde_json::Value;

/// Compares conversion with mere decompression and hashing.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Images below .cache/images.
    #[arg(long, value_delimiter = ',', default_values = ["small", "node-red"])]
    images: Vec<String>,
    /// Layers smaller than this, in MB, are left to the whole image's figures.
    #[arg(long, default_value_t = 20)]
    least: u64,
    /// Only print; leave benches/RESULTS.md alone.
    #[arg(long)]
    dry: bool,
}

/// A layer of a cached image, as an image of its own.
struct Subject {
    name: String,
    blobs: Vec<PathBuf>,
    size: u64,
    reference: String,
    _scratch: Scratch,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut text = format!(
        "## Conversion\n\n{} OCI layouts on disk, page cache warm, {} runs in turns; median (lowest–highest). The yardstick is \
         `gzip -dc LAYER | sha256sum`.\n\n| | compressed, MB | `gzip \\| sha256sum`, s | `clipper convert`, s | ratio | peak memory, MB |\n\
         |---|---|---|---|---|---|\n",
        page::circumstances(),
        options.runs
    );
    let mut sizes =
        String::from("\n| | layers, MB | index, KB | checkpoints, KB | of the layers |\n|---|---|---|---|---|\n");
    for image in &options.images {
        for subject in subjects(image, options.least)? {
            text += &measure(&subject, options.runs)?;
        }
        sizes += &size_row(image)?;
    }
    text += &sizes;
    println!("{text}");
    if !options.dry {
        page::write_section("conversion", &text)?;
    }
    Ok(())
}

fn measure(subject: &Subject, runs: usize) -> Result<String> {
    let (mut yardstick, mut convert, mut ratio, mut memory) = <(Figures, Figures, Figures, Figures)>::default();
    for round in 1..=runs {
        let plain = decompress_and_hash(&subject.blobs)?.as_secs_f64();
        let (own, peak) = converted(&subject.reference)?;
        let own = own.as_secs_f64();
        eprintln!(
            "{round}/{runs} {}: {plain:.2} s, clipper {own:.2} s, {:.2}, {} MB",
            subject.name,
            own / plain,
            peak >> 10
        );
        yardstick.0.push(plain);
        convert.0.push(own);
        ratio.0.push(own / plain);
        memory.0.push(peak as f64 / 1024.0);
    }
    Ok(format!(
        "| {} | {:.1} | {} | {} | {} | {} |\n",
        subject.name,
        subject.size as f64 / 1e6,
        yardstick.text(2),
        convert.text(2),
        ratio.text(2),
        memory.text(0)
    ))
}

/// The image's big layers one by one, then the whole image.
fn subjects(image: &str, least: u64) -> Result<Vec<Subject>> {
    let dir = cached_image(image)?;
    let read = |digest: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(dir.join("blobs/sha256").join(&digest[7..]))?)?)
    };
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
    let manifest = read(index["manifests"][0]["digest"].as_str().context("an empty layout")?)?;
    let config = read(manifest["config"]["digest"].as_str().context("no config")?)?;
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(config["rootfs"]["diff_ids"].as_array().into_iter().flatten())
    {
        let diff_id = diff_id.as_str().unwrap_or_default().to_owned();
        layers.push(Layer { descriptor: layer.clone(), diff_id });
    }
    let size = |layer: &Layer| layer.descriptor["size"].as_u64().unwrap_or(0);
    let gzip = |layer: &&Layer| layer.descriptor["mediaType"].as_str().is_some_and(|kind| kind.ends_with("gzip"));
    let mut found = Vec::new();
    for (number, layer) in
        layers.iter().enumerate().filter(|(_, layer)| gzip(layer) && size(layer) >= least * 1_000_000)
    {
        found.push(subject(&dir, format!("{image}, layer {number}"), std::slice::from_ref(layer))?);
    }
    let all: Vec<Layer> = layers.iter().filter(gzip).cloned().collect();
    found.push(subject(&dir, format!("{image}, all gzip layers"), &all)?);
    Ok(found)
}

fn subject(dir: &Path, name: String, layers: &[Layer]) -> Result<Subject> {
    let scratch = Scratch::new("convert")?;
    let layout = Layout::create(scratch.path())?;
    let (mut blobs, mut size) = (Vec::new(), 0);
    for layer in layers {
        let digest = layer.descriptor["digest"].as_str().context("no digest")?;
        let blob = dir.join("blobs/sha256").join(&digest[7..]);
        fs::copy(&blob, layout.path_of(digest))?;
        blobs.push(layout.path_of(digest));
        size += layer.descriptor["size"].as_u64().unwrap_or(0);
    }
    layout.tag("1", &layout.image(&Image { layers: layers.to_vec(), ..Image::default() })?)?;
    let reference = format!("oci:{}:1", scratch.path().display());
    Ok(Subject { name, blobs, size, reference, _scratch: scratch })
}

fn decompress_and_hash(blobs: &[PathBuf]) -> Result<Duration> {
    let begun = Instant::now();
    for blob in blobs {
        let script = r#"gzip -dc "$1" | sha256sum > /dev/null"#;
        let status = Command::new("sh").args(["-c", script, "sh"]).arg(blob).status()?;
        if !status.success() {
            bail!("gzip failed on {}", blob.display());
        }
    }
    Ok(begun.elapsed())
}

/// Converts without reuse; gives wall time and peak resident memory in KiB.
fn converted(reference: &str) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let mut child = Command::new(program("clipper")?)
        .args(["convert", "--no-reuse", "--quiet", reference])
        .stdout(Stdio::null())
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
    if !status.success() {
        bail!("clipper convert {reference}: {status}");
    }
    Ok((begun.elapsed(), peak))
}

fn size_row(image: &str) -> Result<String> {
    let scratch = Scratch::new("sizes")?;
    let (from, to) =
        (format!("oci:{}:latest", cached_image(image)?.display()), format!("oci:{}:1", scratch.path().display()));
    let report: Value = serde_json::from_str(&clipper_ok(&["convert", "--json", &from, &to])?)?;
    let converted = &report["images"][0];
    let size = |part: &str| converted[part]["size"].as_u64().unwrap_or(0) as f64;
    let layers = converted["layers_size"].as_u64().context("no layers_size in the report")? as f64;
    Ok(format!(
        "| {image} | {:.1} | {:.0} | {:.0} | {:.2} % |\n",
        layers / 1e6,
        size("index") / 1e3,
        size("checkpoints") / 1e3,
        (size("index") + size("checkpoints")) * 100.0 / layers
    ))
}
