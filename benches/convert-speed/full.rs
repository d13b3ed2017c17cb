//! Full mode: how long repacking an image takes, and how large it is then.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::race::{Race, blob_size};
use crate::subject::Subject;

/// Recompresses a layer by the plainest means, zstd with two threads.
const YARDSTICK: &str = r#"gzip -dc "$1" | zstd -3 -T2 -q -c > /dev/null"#;

/// The figures of one image. Sizes are bytes.
pub struct Full {
    pub name: String,
    /// The base image's layers, compressed.
    pub size: u64,
    /// The repacked ones.
    pub repacked: u64,
    pub race: Race,
    /// Index and checkpoints under the first tag, and under the second.
    pub described: [f64; 2],
}

impl Full {
    /// Measures yardstick and conversion in turns.
    pub fn measure(subject: &Subject, runs: usize) -> Result<Self> {
        let race = Race::run(subject, runs, YARDSTICK, &["--mode", "full"])?;
        let (repacked, base) = (&race.report["images"][0], &race.report["base_layers"]["images"][0]);
        ensure!(!base.is_null(), "{}: full mode published no second image", subject.name);
        let described =
            [repacked, base].map(|image: &Value| blob_size(image, "index") + blob_size(image, "checkpoints"));
        let repacked = repacked["layers_size"].as_u64().context("no layers_size in the report")?;
        Ok(Self { name: subject.name.clone(), size: subject.size, repacked, race, described })
    }

    /// Repacked layers in percent of the base image's.
    pub fn repacked_percent(&self) -> f64 {
        self.repacked as f64 * 100.0 / self.size as f64
    }
}

/// All figures as a table.
pub fn table(all: &[Full]) -> String {
    let mut text = String::from(
        "Full mode, which publishes both tags and writes the repacked layers to the same disk. The yardstick is \
         `gzip -dc LAYER | zstd -3 -T2 > /dev/null`, layer after layer.\n\n\
         | | base, MB | `gzip \\| zstd -3`, s | `clipper convert --mode full`, s | ratio (target: 1.2) | peak memory, MB | \
         repacked, MB | of the base (target: 100 %) | index of `_accelerated`, of its layers | index and checkpoints of \
         `_containerd_accelerated`, of its layers (target: 1 %) |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for one in all {
        let [repacked, base] = one.described;
        text += &format!(
            "| {} | {:.1} | {} | {:.1} | {:.1} % | {:.2} % | {:.2} % |\n",
            one.name,
            one.size as f64 / 1e6,
            one.race.columns(),
            one.repacked as f64 / 1e6,
            one.repacked_percent(),
            repacked * 100.0 / one.repacked.max(1) as f64,
            base * 100.0 / one.size as f64,
        );
    }
    text
}
