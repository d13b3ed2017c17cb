//! `convert-speed`: wall time of `clipper convert` in both modes against what gzip, sha256sum and zstd take for the same
//! layers, in turns; peak memory; what is added to the registry. Writes its sections of benches/RESULTS.md and README.md.

mod full;
mod index;
mod one_frame;
mod race;
mod subject;

use anyhow::{Result, ensure};
use clap::Parser;
use clipper_benches::page::{self, Page};
use full::Full;
use index::Index;
use one_frame::OneFrame;
use subject::Subject;

/// Compares conversion with mere decompression, hashing and compression.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of each.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Images below .cache/images.
    #[arg(long, value_delimiter = ',', default_values = ["small", "node-red", "python", "postgres", "java"])]
    images: Vec<String>,
    /// zstd levels that the layers are also compressed at, in one frame each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 9, 19])]
    zstd: Vec<u8>,
    /// Images below .cache/images of which this is done: level 19 takes its time.
    #[arg(long, value_delimiter = ',', default_values = ["small", "node-red"])]
    zstd_images: Vec<String>,
    /// Layers smaller than this, in MB, are left to the whole image's figures.
    #[arg(long, default_value_t = 20)]
    least: u64,
    /// Only print; leave benches/RESULTS.md and README.md alone.
    #[arg(long)]
    dry: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.runs > 0, "no runs, no figures");
    let (mut index, mut full) = (Vec::new(), Vec::new());
    for image in &options.images {
        for layer in Subject::layers(image, options.least)? {
            index.push(Index::measure(&layer, options.runs)?);
        }
        let whole = Subject::whole(image)?;
        index.push(Index::measure(&whole, options.runs)?);
        full.push(Full::measure(&whole, options.runs)?);
    }
    let mut in_zstd = Vec::new();
    for image in &options.zstd_images {
        for level in &options.zstd {
            in_zstd.push(OneFrame::measure(&Subject::zstd(image, *level)?, options.runs)?);
        }
    }
    let text = format!(
        "## Conversion\n\n{} OCI layouts on disk, page cache warm, {} runs in turns; median (lowest–highest). Ratios are of \
         the two times of a run.\n\n{}\n{}\n{}",
        page::circumstances(),
        options.runs,
        index::table(&index),
        one_frame::table(&in_zstd),
        full::table(&full),
    );
    println!("{text}");
    if !options.dry {
        Page::Results.write_section("conversion", &text)?;
        Page::Readme.write_section("conversion", &readme(&index, &full, &in_zstd))?;
    }
    Ok(())
}

/// The section of README.md.
fn readme(index: &[Index], full: &[Full], in_zstd: &[OneFrame]) -> String {
    let mut text = String::from(
        "| what it costs | index-only: of `gzip -dc \\| sha256sum` | added to the registry | memory, MB | \
         full: of `gzip -dc \\| zstd -3` | repacked, of the base | memory, MB |\n|---|---|---|---|---|---|---|\n",
    );
    for full in full {
        let Some(index) = index.iter().find(|index| index.name == full.name) else { continue };
        text += &format!(
            "| {} | {:.2} | {:.2} % | {:.0} | {:.2} | {:.1} % | {:.0} |\n",
            full.name,
            index.race.ratio.median(),
            index.overhead(),
            index.race.memory.median(),
            full.race.ratio.median(),
            full.repacked_percent(),
            full.race.memory.median(),
        );
    }
    if !in_zstd.is_empty() {
        text += "\n| layers of one zstd frame | index-only: of `zstd -dc \\| sha256sum` | added to the registry | memory, MB |\n\
                 |---|---|---|---|\n";
    }
    for one in in_zstd {
        text += &format!(
            "| {} | {:.2} | {:.2} % | {:.0} |\n",
            one.name,
            one.race.ratio.median(),
            one.described * 100.0 / one.size as f64,
            one.race.memory.median(),
        );
    }
    text
}
