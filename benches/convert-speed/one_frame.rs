//! Index-only mode on layers of one zstd frame: how long describing them takes, and how large the description is, by the
//! level that they were compressed at.

use anyhow::Result;

use crate::race::{Race, blob_size};
use crate::subject::Subject;

/// Reads a layer and hashes it, as any pull does.
const YARDSTICK: &str = r#"zstd -dc "$1" | sha256sum > /dev/null"#;

/// The figures of one image at one level. Sizes are bytes.
pub struct OneFrame {
    pub name: String,
    /// The layers, compressed.
    pub size: u64,
    pub race: Race,
    /// Index and checkpoints.
    pub described: f64,
    /// The mean of the spans of all layers, in device bytes.
    pub span: f64,
}

impl OneFrame {
    /// Measures yardstick and conversion in turns.
    pub fn measure(subject: &Subject, runs: usize) -> Result<Self> {
        let race = Race::run(subject, runs, YARDSTICK, &[])?;
        let described = ["index", "checkpoints"].map(|part| blob_size(&race.report["images"][0], part)).iter().sum();
        let layers = race.report["layers"].as_array().cloned().unwrap_or_default();
        let sum = |field: &str| layers.iter().filter_map(|layer| layer[field].as_f64()).sum::<f64>();
        let span = sum("device_size") / sum("spans").max(1.0);
        Ok(Self { name: subject.name.clone(), size: subject.size, race, described, span })
    }
}

/// All figures as a table.
pub fn table(all: &[OneFrame]) -> String {
    let mut text = String::from(
        "Index-only mode, the same layers as zstd of one frame each (`zstd -LEVEL`). The yardstick is `zstd -dc LAYER | \
         sha256sum`, layer after layer.\n\n\
         | | compressed, MB | `zstd \\| sha256sum`, s | `clipper convert`, s | ratio (target: 2) | peak memory, MB | mean span, \
         MiB | index and checkpoints, of the layers (target: 3 %) |\n|---|---|---|---|---|---|---|---|\n",
    );
    for one in all {
        text += &format!(
            "| {} | {:.1} | {} | {:.1} | {:.2} % |\n",
            one.name,
            one.size as f64 / 1e6,
            one.race.columns(),
            one.span / f64::from(1 << 20),
            one.described * 100.0 / one.size as f64,
        );
    }
    text
}
