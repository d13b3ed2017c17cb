//! What a conversion will do: which images, which layers, from where to where.
use super::edition::Edition;
use super::layer::LayerInput;
use crate::cli::ConvertArgs;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use clipper_format::chunked::Compression;
use clipper_format::index::{BlobRef, MEDIA_TYPE_INDEX_ARTIFACT};
use clipper_registry::image::{ImageSet, PlatformImage};
use clipper_registry::{Client, PlatformName, Reference, Repository};
use oci_spec::image::Descriptor;
use serde_json::Value;
use std::collections::BTreeMap;

/// Largest image config read.
const CONFIG_LIMIT: u64 = 16 << 20;

/// Everything that is known before the first layer is read.
pub struct Plan {
    /// The image to convert.
    pub source: Reference,
    /// Where the result goes.
    pub target: Reference,
    /// What is published.
    pub editions: Vec<Edition>,
    /// `source`'s repository.
    pub from: Repository,
    /// `target`'s repository.
    pub to: Repository,
    /// Whether `from` and `to` are the same.
    pub same_repository: bool,
    /// The images, in the order of the source's index.
    pub images: Vec<PlannedImage>,
    /// All layers of all images, each once.
    pub layers: BTreeMap<Digest, LayerInput>,
}

/// An image of one platform.
pub struct PlannedImage {
    /// Its platform, as an OCI platform object.
    pub platform: Value,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its manifest.
    pub manifest: Value,
    /// Its config blob.
    pub config: BlobRef,
    /// What its config blob says.
    pub config_json: Value,
    /// The layers, bottom first, as the manifest lists them.
    pub layers: Vec<BlobRef>,
}

impl PlannedImage {
    /// The layers, bottom first, without repetitions.
    pub fn distinct_layers(&self) -> Vec<Digest> {
        let mut seen = std::collections::BTreeSet::new();
        self.layers.iter().map(|l| l.digest).filter(|d| seen.insert(*d)).collect()
    }

    /// `os/arch[/variant]`.
    pub fn platform_name(&self) -> String {
        let part = |key: &str| self.platform.get(key).and_then(Value::as_str);
        [part("os"), part("architecture"), part("variant")].into_iter().flatten().collect::<Vec<_>>().join("/")
    }
}

impl Plan {
    /// How layers are to be repacked, if at all.
    pub fn repacked(&self) -> Option<Compression> {
        self.editions.iter().find_map(|edition| edition.repacked)
    }

    /// Reads the manifests and configs of the source.
    pub async fn make(client: &Client, args: &ConvertArgs) -> Result<Self> {
        let source = args.source.clone();
        let target = match &args.target {
            Some(target) => target.clone(),
            None => default_target(&source, &args.tag_suffix)?,
        };
        if target.tag().is_none() {
            bail!("TARGET {target} needs a tag: the result is published under it");
        }
        let editions = Edition::of(args, &target)?;
        if let Some(same) = editions.iter().find(|edition| edition.target == source) {
            bail!("{} is the image to convert: the base image is never overwritten", same.target);
        }
        let from = client.repository(&source)?;
        let to = client.repository(&target)?;
        let set = ImageSet::resolve(&from, &source).await?;
        if set.attachments.iter().any(|a| a.artifact_type == MEDIA_TYPE_INDEX_ARTIFACT) {
            bail!("{source} is an accelerated image already: convert its base image");
        }
        let mut plan = Self {
            same_repository: source.same_repository(&target),
            source,
            target,
            editions,
            from,
            to,
            images: Vec::new(),
            layers: BTreeMap::new(),
        };
        let mut available = Vec::new();
        for image in &set.images {
            let name = PlatformName::of(&image.platform).to_string();
            let wanted = args.platform.is_empty() || args.platform.contains(&name);
            available.push(name);
            if wanted {
                plan.add(image).await?;
            }
        }
        if let Some(missing) = args.platform.iter().find(|p| !available.contains(p)) {
            bail!("{} has no image for platform {missing}; it has {}", plan.source, available.join(", "));
        }
        if plan.images.is_empty() {
            bail!("{} holds no image", plan.source);
        }
        Ok(plan)
    }

    async fn add(&mut self, image: &PlatformImage) -> Result<()> {
        let source = &self.source;
        let manifest: Value = serde_json::from_slice(&image.source.bytes)
            .with_context(|| format!("{source}: manifest {}", image.digest))?;
        let config = blob_of(image.manifest.config(), source)?;
        let bytes = self.from.blob(config.digest, config.size).read_all(CONFIG_LIMIT).await?;
        let parsed: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{source}: config {}", config.digest))?;
        let diff_ids: Vec<Digest> = parsed
            .pointer("/rootfs/diff_ids")
            .cloned()
            .map(serde_json::from_value)
            .transpose()
            .with_context(|| format!("{source}: config {}: rootfs.diff_ids", config.digest))?
            .unwrap_or_default();
        let layers = image.manifest.layers();
        if diff_ids.len() != layers.len() {
            bail!(
                "{source}: manifest {} has {} layers but its config {} has {} diff IDs",
                image.digest,
                layers.len(),
                config.digest,
                diff_ids.len()
            );
        }
        let mut blobs = Vec::new();
        for (descriptor, diff_id) in layers.iter().zip(diff_ids) {
            let layer = blob_of(descriptor, source)?;
            let zstd = descriptor.media_type().to_string().ends_with("zstd");
            let input = LayerInput { blob: self.from.blob(layer.digest, layer.size), diff_id, zstd };
            let known = self.layers.entry(layer.digest).or_insert(input);
            if known.diff_id != diff_id || known.blob.size() != layer.size {
                bail!("{source}: layer {} is described in two ways that contradict each other", layer.digest);
            }
            blobs.push(layer);
        }
        self.images.push(PlannedImage {
            platform: serde_json::to_value(&image.platform)?,
            digest: image.digest,
            manifest,
            config,
            config_json: parsed,
            layers: blobs,
        });
        Ok(())
    }
}

/// Digest and size of a descriptor.
fn blob_of(descriptor: &Descriptor, source: &Reference) -> Result<BlobRef> {
    let digest = descriptor.digest().as_ref().parse().with_context(|| source.to_string())?;
    Ok(BlobRef { digest, size: descriptor.size() })
}

fn default_target(source: &Reference, suffix: &str) -> Result<Reference> {
    match source.tag() {
        Some(tag) => Ok(source.with_tag(&format!("{tag}{suffix}"))?),
        None => bail!("{source} has no tag to derive the result's from: name a TARGET"),
    }
}
