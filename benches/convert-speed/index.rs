//! Index-only mode: how long describing layers takes, and how large the description is.

use anyhow::Result;

use crate::race::{Race, blob_size};
use crate::subject::Subject;

/// Reads a layer and hashes it, as any pull does.
const YARDSTICK: &str = r#"gzip -dc "$1" | sha256sum > /dev/null"#;

/// The figures of one subject. Sizes are bytes.
pub struct Index {
    pub name: String,
    /// The layers, compressed.
    pub size: u64,
    pub race: Race,
    pub index: f64,
    pub checkpoints: f64,
    pub hot: f64,
}

impl Index {
    /// Measures yardstick and conversion in turns.
    pub fn measure(subject: &Subject, runs: usize) -> Result<Self> {
        let race = Race::run(subject, runs, YARDSTICK, &[])?;
        let [index, checkpoints, hot] =
            ["index", "checkpoints", "hot"].map(|part| blob_size(&race.report["images"][0], part));
        Ok(Self { name: subject.name.clone(), size: subject.size, race, index, checkpoints, hot })
    }

    /// Index and checkpoints in percent of the layers.
    pub fn overhead(&self) -> f64 {
        (self.index + self.checkpoints) * 100.0 / self.size as f64
    }
}

/// All figures as a table.
pub fn table(all: &[Index]) -> String {
    let mut text = String::from(
        "Index-only mode. The yardstick is `gzip -dc LAYER | sha256sum`, layer after layer.\n\n\
         | | compressed, MB | `gzip \\| sha256sum`, s | `clipper convert`, s | ratio | peak memory, MB | hot blob, KB | \
         index, KB | checkpoints, KB | these two, of the layers (target: 1 %) |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for one in all {
        text += &format!(
            "| {} | {:.1} | {} | {:.0} | {:.0} | {:.0} | {:.2} % |\n",
            one.name,
            one.size as f64 / 1e6,
            one.race.columns(),
            one.hot / 1e3,
            one.index / 1e3,
            one.checkpoints / 1e3,
            one.overhead(),
        );
    }
    text
}
