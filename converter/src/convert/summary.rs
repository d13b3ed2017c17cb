//! What a conversion made, for people and for scripts.
use super::layer::IndexedLayer;
use super::plan::{Plan, PlannedImage};
use super::publish::Published;
use super::{Made, blob_ref};
use crate::report::{human, percent};
use clipper_format::Digest;
use clipper_registry::Stats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The result of a conversion. Sizes are bytes, times seconds.
#[derive(Serialize)]
pub struct Summary {
    source: String,
    target: String,
    mode: &'static str,
    /// What the target's tag points at.
    digest: Digest,
    images: Vec<Image>,
    layers: Vec<Layer>,
    seconds: f64,
    requests: u64,
    bytes_received: u64,
}

#[derive(Serialize)]
struct Image {
    platform: String,
    manifest: Digest,
    index_manifest: Digest,
    base_manifest: Digest,
    index: Blob,
    checkpoints: Option<Blob>,
    /// What a start-up reads, as one stream.
    hot: Option<Blob>,
    /// Compressed bytes of the layers.
    layers_size: u64,
    /// Index and checkpoints in percent of the compressed layers.
    overhead_percent: f64,
    layers: Vec<Digest>,
}

#[derive(Serialize)]
struct Blob {
    digest: Digest,
    size: u64,
}

#[derive(Serialize)]
struct Layer {
    digest: Digest,
    diff_id: Digest,
    size: u64,
    device_size: u64,
    spans: usize,
    /// Bytes of the packed tree in the index.
    tree_size: usize,
    checkpoints_size: usize,
    reused: bool,
    seconds: Option<f64>,
}

impl Summary {
    /// Gathers what `run` has made.
    pub fn new(
        plan: &Plan,
        images: &[(&PlannedImage, Made)],
        indexed: &BTreeMap<Digest, Arc<IndexedLayer>>,
        published: &Published,
        took: Duration,
        stats: Stats,
    ) -> Self {
        let blob = |bytes: &[u8]| {
            let blob = blob_ref(bytes);
            Blob { digest: blob.digest, size: blob.size }
        };
        let images = images
            .iter()
            .zip(&published.manifests)
            .map(|((image, made), (manifest, index_manifest))| {
                let layers_size = image.layers.iter().map(|l| l.size).sum();
                let own = made.index.len() + made.checkpoints.as_ref().map_or(0, Vec::len);
                Image {
                    platform: image.platform_name(),
                    manifest: *manifest,
                    index_manifest: *index_manifest,
                    base_manifest: image.digest,
                    index: blob(&made.index),
                    checkpoints: made.checkpoints.as_deref().map(blob),
                    hot: made.hot.as_deref().map(blob),
                    layers_size,
                    overhead_percent: percent(own as u64, layers_size),
                    layers: image.layers.iter().map(|l| l.digest).collect(),
                }
            })
            .collect();
        let layers = indexed
            .values()
            .map(|layer| Layer {
                digest: layer.index.digest,
                diff_id: layer.index.diff_id,
                size: layer.index.source_size,
                device_size: layer.index.spans.device_size(),
                spans: layer.index.spans.spans().len(),
                tree_size: layer.index.tree.len(),
                checkpoints_size: layer.checkpoints.len(),
                reused: layer.took.is_none(),
                seconds: layer.took.map(|t| t.as_secs_f64()),
            })
            .collect();
        Self {
            source: plan.source.to_string(),
            target: plan.target.to_string(),
            mode: "index-only",
            digest: published.top,
            images,
            layers,
            seconds: took.as_secs_f64(),
            requests: stats.requests,
            bytes_received: stats.bytes_received,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.target)?;
        writeln!(f, "  digest       {}", self.digest)?;
        for image in &self.images {
            let own = image.index.size + image.checkpoints.as_ref().map_or(0, |c| c.size);
            writeln!(
                f,
                "  {:12} {} of layers, {} of index and checkpoints ({:.2} %)",
                image.platform,
                human(image.layers_size),
                human(own),
                image.overhead_percent,
            )?;
        }
        if let Some(hot) = self.images.iter().filter_map(|image| image.hot.as_ref()).next() {
            writeln!(f, "  start-up     {} in the hot blob", human(hot.size))?;
        }
        let reused = self.layers.iter().filter(|l| l.reused).count();
        writeln!(f, "  layers       {} indexed, {reused} reused", self.layers.len() - reused)?;
        writeln!(f, "  time         {:.1} s", self.seconds)
    }
}
