//! `node`: what images cost on a node once they are there, or on their way: warm work against overlayfs on ext4, single reads
//! over a link, background fill, the daemon's memory, many containers at once. With both drivers, each as a ratio to a limit
//! or a peer of the same run. Writes its section of benches/RESULTS.md and node.json.

mod crowd;
mod fill;
mod ground;
mod measured;
mod memory;
mod parity;
mod report;
mod uncached;
mod works;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use clipper_benches::ideal::Way;
use clipper_benches::page::Page;
use clipper_benches::system::Driver;
use crowd::Crowd;
use fill::Filling;
use measured::{Measured, Part};
use memory::Memory;
use parity::Parity;
use uncached::Uncached;

/// The parts, in the order in which they are measured.
const PARTS: [&str; 5] = ["parity", "uncached", "fill", "memory", "crowd"];

/// Measures what images cost on a node.
///
/// Results of parts that aren't measured stay as they are.
#[derive(Debug, Parser)]
struct Options {
    /// Part to be measured; may be repeated: parity, uncached, fill, memory, crowd [default: all]
    #[arg(long, value_name = "NAME")]
    part: Vec<String>,
    /// Images of the part parity.
    #[arg(long, value_delimiter = ',', default_values = ["small", "node-red"])]
    images: Vec<String>,
    /// Image of the parts uncached and fill.
    #[arg(long, default_value = "node-red")]
    image: String,
    /// Rounds of the part parity.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Reads of the part uncached, with each driver.
    #[arg(long, default_value_t = 300)]
    reads: usize,
    /// Runs of the part fill, with each driver.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// The link: Mbit/s, and milliseconds of delay each way.
    #[arg(long, value_name = "MEGABITS/DELAY", default_value = "300/5")]
    link: Way,
    /// Only print; leave benches/RESULTS.md and node.json alone.
    #[arg(long)]
    dry: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.rounds.min(options.runs).min(options.reads) > 0, "no runs, no figures");
    if let Some(name) = options.part.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("no part is called {name}; there are: {}", PARTS.join(", "));
    }
    let link = options.link;
    let mut all = if options.dry { Measured::default() } else { Measured::read()? };
    for name in PARTS.into_iter().filter(|name| options.part.is_empty() || options.part.iter().any(|part| part == name))
    {
        match name {
            "parity" => {
                let images = options.images.iter().map(|image| Parity::measure(image, options.rounds));
                all.parity = Part::now(images.collect::<Result<_>>()?);
            }
            "uncached" => all.uncached = Part::now(Uncached::measure(&options.image, options.reads, link)?),
            "fill" => all.fill = Part::now(Filling::measure(&options.image, options.runs, link)?),
            "memory" => all.memory = Part::now(Memory::measure(&Driver::ALL)?),
            _ => all.crowd = Part::now(Crowd::measure(link)?),
        }
        // After each part: what was measured stays, whatever happens to the next.
        if !options.dry {
            all.write()?;
            Page::Results.write_section("node", &report::results(&all))?;
        }
    }
    println!("{}", report::results(&all));
    Ok(())
}
