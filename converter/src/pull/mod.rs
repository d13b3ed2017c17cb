//! `clipper pull`: an image into containerd, its layers left to the snapshotter.
mod node;

use crate::cli::{Common, PullArgs};
use crate::images;
use crate::report::{Progress, human};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clipper_format::Digest;
use clipper_format::index::BlobRef;
use clipper_registry::image::{ImageSet, PlatformImage};
use clipper_registry::{Reference, RegistryReference, Repository};
use containerd_client::types::Descriptor;
use node::{Labels, Node, Prepared};
pub use node::{explain, nanoseconds};
use serde::Serialize;
use std::time::Instant;

/// Largest config blob that is pulled.
const CONFIG_LIMIT: u64 = 16 << 20;
/// Descriptor annotations with this prefix go to the snapshotter (snapshots/snapshotter.go, FilterInheritedLabels).
const INHERITED: &str = "containerd.io/snapshot/";

/// What a pull has done.
#[derive(Serialize)]
pub struct Pulled {
    image: String,
    digest: Digest,
    manifest: Digest,
    /// The layers, bottom first.
    pub layers: Vec<PulledLayer>,
    seconds: f64,
    /// Chain ID of the topmost layer.
    #[serde(skip)]
    pub chain: String,
    /// The image's config blob.
    #[serde(skip)]
    pub config: serde_json::Value,
}

/// A layer that was pulled.
#[derive(Serialize)]
pub struct PulledLayer {
    digest: Digest,
    size: u64,
    /// Whether the snapshotter has it, so that nothing was downloaded here.
    pub lazy: bool,
}

/// Runs the command.
pub async fn run(common: &Common, args: PullArgs) -> Result<()> {
    let pulled = bring(common, &args, &Progress::new(common)).await?;
    if common.json {
        println!("{}", serde_json::to_string_pretty(&pulled)?);
    } else {
        let lazy = pulled.layers.iter().filter(|l| l.lazy).count();
        println!(
            "{}\n  digest       {}\n  layers       {lazy} left to the snapshotter, {} downloaded\n  time         {:.1} s",
            pulled.image,
            pulled.digest,
            pulled.layers.len() - lazy,
            pulled.seconds
        );
    }
    Ok(())
}

/// Pulls an image.
///
/// # Errors
/// The registry or containerd refuses, or the image isn't sound.
pub async fn bring(common: &Common, args: &PullArgs, progress: &Progress) -> Result<Pulled> {
    let begun = Instant::now();
    let Reference::Registry(name) = &args.reference else {
        bail!("{}: containerd can only pull from a registry; copy the layout there first", args.reference);
    };
    let repository = common.client()?.repository(&args.reference)?;
    let platform = images::platform(args.platform.as_deref())?;
    // The node is made ready while the registry answers. A lease taken in vain is given back.
    let resolved = async { Ok(ImageSet::resolve_bare(&repository, &args.reference, &platform).await) };
    let (set, node) = tokio::try_join!(resolved, Node::connect(&args.containerd))?;
    let set = match set {
        Ok(set) => set,
        Err(error) => {
            node.release().await?;
            return Err(error.into());
        }
    };
    let image = set.image(&platform).context("no image for the platform")?;
    let (config, layers) = blobs(image).with_context(|| args.reference.to_string())?;
    let pull = Pull {
        reference: &args.reference,
        name,
        repository: &repository,
        set: &set,
        image,
        config,
        layers,
        node: &node,
        progress,
    };
    let outcome = pull.run(args).await;
    let released = node.release().await;
    let (layers, chain, config) = outcome?;
    released?;
    Ok(Pulled {
        image: args.reference.to_string(),
        digest: set.top.digest,
        manifest: image.digest,
        layers,
        seconds: begun.elapsed().as_secs_f64(),
        chain,
        config,
    })
}

/// A layer, as the image manifest describes it.
struct Layer {
    media_type: String,
    digest: Digest,
    size: u64,
    /// Annotations that go to the snapshotter.
    labels: Labels,
}

/// Config and layers of `image`.
fn blobs(image: &PlatformImage) -> Result<(BlobRef, Vec<Layer>)> {
    let config = image.manifest.config();
    let config = BlobRef { digest: config.digest().as_ref().parse()?, size: config.size() };
    let layers = image.manifest.layers().iter().map(|layer| {
        let annotations = layer.annotations().iter().flatten();
        let labels = annotations.filter(|(key, _)| key.starts_with(INHERITED));
        Ok(Layer {
            media_type: layer.media_type().to_string(),
            digest: layer.digest().as_ref().parse()?,
            size: layer.size(),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
        })
    });
    Ok((config, layers.collect::<Result<_>>()?))
}

/// One pull under way.
struct Pull<'a> {
    reference: &'a Reference,
    name: &'a RegistryReference,
    repository: &'a Repository,
    set: &'a ImageSet,
    image: &'a PlatformImage,
    config: BlobRef,
    layers: Vec<Layer>,
    node: &'a Node,
    progress: &'a Progress,
}

impl Pull<'_> {
    /// The layers, the topmost chain ID and the config.
    async fn run(&self, args: &PullArgs) -> Result<(Vec<PulledLayer>, String, serde_json::Value)> {
        let (diff_ids, config, config_bytes) = self.config().await?;
        // The snapshotter needs neither manifests nor config, and the sooner it knows of the image, the better.
        let ((layers, parent), ()) = tokio::try_join!(self.bring_layers(&diff_ids), self.content(config_bytes))?;
        // The config holds on to the unpacked image (docs/garbage-collection.md of containerd).
        if let Some(chain) = parent {
            let label = format!("containerd.io/gc.ref.snapshot.{}", args.containerd.snapshotter);
            self.node.label_blob(self.config.digest, Labels::from([(label, chain.to_string())])).await?;
        }
        let target = descriptor(&self.set.top.media_type, self.set.top.digest, self.set.top.bytes.len() as u64);
        self.node.name_image(&args.reference.to_string(), target).await?;
        Ok((layers, parent.map(|chain| chain.to_string()).unwrap_or_default(), config))
    }

    /// All layers, one after the other, and the topmost chain ID.
    async fn bring_layers(&self, diff_ids: &[Digest]) -> Result<(Vec<PulledLayer>, Option<Digest>)> {
        let mut layers = Vec::new();
        let mut parent = None;
        for (number, layer) in self.layers.iter().enumerate() {
            let chain = Digest::chain_id(&diff_ids[..=number]).context("no layer")?;
            let lazy = self.layer(number, chain, parent, diff_ids[number]).await?;
            layers.push(PulledLayer { digest: layer.digest, size: layer.size, lazy });
            parent = Some(chain);
        }
        Ok((layers, parent))
    }

    /// The config's diff IDs, and all of it.
    async fn config(&self) -> Result<(Vec<Digest>, serde_json::Value, Bytes)> {
        let config = self.config;
        let config_bytes = self.repository.blob(config.digest, config.size).read_all(CONFIG_LIMIT).await?;
        let parsed: serde_json::Value = serde_json::from_slice(&config_bytes)
            .with_context(|| format!("{}: config {}", self.reference, config.digest))?;
        let diff_ids: Vec<Digest> = serde_json::from_value(parsed["rootfs"]["diff_ids"].clone())
            .with_context(|| format!("{}: config {}: rootfs.diff_ids", self.reference, config.digest))?;
        if diff_ids.len() != self.layers.len() {
            bail!("{}: {} layers but {} diff IDs", self.reference, self.layers.len(), diff_ids.len());
        }
        Ok((diff_ids, parsed, config_bytes))
    }

    /// Puts manifests and config into the content store, with the labels by which garbage collection knows what
    /// belongs together.
    async fn content(&self, config_bytes: Bytes) -> Result<()> {
        let config = self.config;
        self.write(config.digest, config_bytes, self.labels()).await?;

        let mut labels = self.labels();
        labels.insert("containerd.io/gc.ref.content.config".into(), config.digest.to_string());
        for (i, layer) in self.layers.iter().enumerate() {
            labels.insert(format!("containerd.io/gc.ref.content.l.{i}"), layer.digest.to_string());
        }
        self.write(self.image.digest, self.image.source.bytes.clone(), labels).await?;

        if self.set.top.digest != self.image.digest {
            let mut labels = self.labels();
            labels.insert("containerd.io/gc.ref.content.m.0".into(), self.image.digest.to_string());
            self.write(self.set.top.digest, self.set.top.bytes.clone(), labels).await?;
        }
        Ok(())
    }

    async fn write(&self, digest: Digest, bytes: Bytes, labels: Labels) -> Result<()> {
        let size = bytes.len() as u64;
        let stream = futures::stream::once(std::future::ready(Ok::<_, std::io::Error>(bytes)));
        self.node.write_blob(digest, size, labels, stream).await
    }

    /// The label that tells where content came from, as containerd's own pull sets it.
    fn labels(&self) -> Labels {
        Labels::from([(format!("containerd.io/distribution.source.{}", self.name.host), self.name.repository.clone())])
    }

    /// Brings one layer; `true` if the snapshotter has it without a download.
    async fn layer(&self, number: usize, chain: Digest, parent: Option<Digest>, diff_id: Digest) -> Result<bool> {
        let layer = &self.layers[number];
        let key = format!("extract-{}-{} {chain}", node::nanoseconds(), std::process::id());
        let mounts = match self.node.prepare(&key, chain, parent, self.snapshot_labels(number, chain)).await? {
            Prepared::Exists => return Ok(true),
            Prepared::Unpack(mounts) => mounts,
        };
        let unpacked = async {
            let task = self.progress.task(&layer.digest.hex()[..12], layer.size);
            let blob = self.repository.blob(layer.digest, layer.size).read(0..layer.size).await?;
            self.node.write_blob(layer.digest, layer.size, self.labels(), blob).await?;
            task.done(&format!("{}  downloaded {}", &layer.digest.hex()[..12], human(layer.size)));
            let applied = self.node.apply(descriptor(&layer.media_type, layer.digest, layer.size), mounts).await?;
            if applied != diff_id.to_string() {
                bail!("layer {}: it unpacks to {applied}, but the config says {diff_id}", layer.digest);
            }
            self.node
                .commit(&key, chain, Labels::from([("containerd.io/snapshot.ref".into(), chain.to_string())]))
                .await
        };
        if let Err(error) = unpacked.await {
            if let Err(second) = self.node.abandon(&key).await {
                tracing::warn!("{second:#}");
            }
            return Err(error);
        }
        Ok(false)
    }

    /// The labels of a layer's snapshot: those that containerd's CRI plugin sets when snapshot annotations are on
    /// (pkg/snapshotters/annotations.go), and the layer's own annotations.
    fn snapshot_labels(&self, number: usize, chain: Digest) -> Labels {
        let layer = &self.layers[number];
        let above: Vec<_> = self.layers[number..].iter().map(|l| l.digest.to_string()).collect();
        let mut labels = layer.labels.clone();
        labels.extend([
            ("containerd.io/snapshot.ref".to_owned(), chain.to_string()),
            ("containerd.io/snapshot/cri.image-ref".to_owned(), self.reference.to_string()),
            ("containerd.io/snapshot/cri.manifest-digest".to_owned(), self.image.digest.to_string()),
            ("containerd.io/snapshot/cri.layer-digest".to_owned(), layer.digest.to_string()),
            ("containerd.io/snapshot/cri.image-layers".to_owned(), bounded(&above)),
        ]);
        labels
    }
}

/// As many of `digests` as fit a label, whose key and value may have 4096 bytes together (labels/validate.go).
fn bounded(digests: &[String]) -> String {
    let mut text = String::new();
    for digest in digests {
        if text.len() + digest.len() + 1 > 4000 {
            break;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(digest);
    }
    text
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: digest.to_string(),
        size: i64::try_from(size).unwrap_or(i64::MAX),
        ..Default::default()
    }
}
