//! What a conversion made, for people and for scripts.
use super::plan::Plan;
use super::publish::Published;
use super::{Layers, blob_ref};
use crate::report::{human, percent};
use clipper_format::Digest;
use clipper_format::index::BlobRef;
use clipper_registry::Stats;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// The result of a conversion. Sizes are bytes, times seconds.
#[derive(Serialize)]
pub struct Summary {
    source: String,
    #[serde(flatten)]
    published: Tag,
    /// Full mode's second tag, over the base image's own layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    base_layers: Option<Tag>,
    layers: Vec<Layer>,
    seconds: f64,
    requests: u64,
    bytes_received: u64,
}

/// What was published under a tag.
#[derive(Serialize)]
struct Tag {
    target: String,
    mode: &'static str,
    /// What the tag points at.
    digest: Digest,
    images: Vec<Image>,
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
    /// Compressed bytes of the base image's layers.
    base_layers_size: u64,
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
    /// The repacked layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    repacked: Option<Blob>,
    reused: bool,
    seconds: Option<f64>,
}

impl Summary {
    /// Gathers what `run` has made.
    pub fn new(
        plan: &Plan,
        (first, second): (&Published<'_>, Option<&Published<'_>>),
        layers: &Layers,
        took: Duration,
        stats: Stats,
    ) -> Self {
        let layers = plan.layers.keys().filter_map(|digest| Layer::new(digest, layers)).collect();
        Self {
            source: plan.source.to_string(),
            published: Tag::new(first),
            base_layers: second.map(Tag::new),
            layers,
            seconds: took.as_secs_f64(),
            requests: stats.requests,
            bytes_received: stats.bytes_received,
        }
    }
}

impl Tag {
    fn new(published: &Published<'_>) -> Self {
        let blob = |bytes: &[u8]| Blob::from(blob_ref(bytes));
        let images = published
            .images
            .iter()
            .zip(&published.manifests)
            .map(|((image, layers, made), (manifest, index_manifest))| {
                let layers_size = layers.iter().map(|l| l.layer.index.source_size).sum();
                let own = made.index.len() + made.checkpoints.as_ref().map_or(0, Vec::len);
                Image {
                    platform: image.platform_name(),
                    manifest: *manifest,
                    index_manifest: *index_manifest,
                    base_manifest: image.digest,
                    index: blob(&made.index),
                    checkpoints: made.checkpoints.as_deref().map(blob),
                    hot: made.hot.map(Blob::from),
                    layers_size,
                    base_layers_size: image.layers.iter().map(|l| l.size).sum(),
                    overhead_percent: percent(own as u64, layers_size),
                    layers: layers.iter().map(|l| l.layer.index.digest).collect(),
                }
            })
            .collect();
        let edition = published.edition;
        Self { target: edition.target.to_string(), mode: edition.mode(), digest: published.top, images }
    }
}

impl Layer {
    /// What is known of the base image's layer `digest`.
    fn new(digest: &Digest, layers: &Layers) -> Option<Self> {
        let repacked = layers.repacked.get(digest);
        let layer = layers.indexed.get(digest).or(repacked.map(|repacked| &repacked.layer))?;
        let took = repacked.map_or(layer.took, |repacked| repacked.layer.took.or(layer.took));
        let index = &layer.index;
        Some(Self {
            digest: *digest,
            diff_id: index.diff_id,
            size: index.source_size,
            device_size: index.spans.device_size(),
            spans: index.spans.spans().len(),
            tree_size: index.tree.len(),
            checkpoints_size: layer.checkpoints.len(),
            repacked: repacked.map(|repacked| {
                let index = &repacked.layer.index;
                Blob { digest: index.digest, size: index.source_size }
            }),
            reused: took.is_none(),
            seconds: took.map(|t| t.as_secs_f64()),
        })
    }
}

impl From<BlobRef> for Blob {
    fn from(BlobRef { digest, size }: BlobRef) -> Self {
        Self { digest, size }
    }
}

impl fmt::Display for Tag {
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
            if self.mode == "full" {
                let share = percent(image.layers_size, image.base_layers_size);
                writeln!(f, "  {:12} {share:.1} % of the base image's {}", "", human(image.base_layers_size))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.published.fmt(f)?;
        if let Some(second) = &self.base_layers {
            second.fmt(f)?;
        }
        if let Some(hot) = self.published.images.iter().filter_map(|image| image.hot.as_ref()).next() {
            writeln!(f, "  start-up     {} in the hot blob", human(hot.size))?;
        }
        let reused = self.layers.iter().filter(|l| l.reused).count();
        writeln!(f, "  layers       {} indexed, {reused} reused", self.layers.len() - reused)?;
        writeln!(f, "  time         {:.1} s", self.seconds)
    }
}
