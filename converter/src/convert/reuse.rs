//! Layers that were indexed before: found through the accelerated tags of the target repository.
use super::layer::IndexedLayer;
use super::plan::{Plan, TAG_SUFFIX};
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::index::{ANNOTATION_INDEX, Index, MEDIA_TYPE_INDEX_LAYER};
use clipper_registry::Reference;
use clipper_registry::image::ImageSet;
use oci_spec::image::{Descriptor, ImageManifest};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Most tags looked through besides the target's own: each costs a request or two, indexing a layer costs more.
const TAGS: usize = 32;
/// Largest index blob and checkpoints blob read.
const BLOB_LIMIT: u64 = 1 << 30;

/// The layers of `plan` that the target repository has an index for, made with the same span size. Anything that
/// goes wrong here only means that layers are indexed anew.
pub async fn find(plan: &Plan, span_size: u32) -> BTreeMap<Digest, Arc<IndexedLayer>> {
    let mut found = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for tag in candidate_tags(plan).await {
        if found.len() == plan.layers.len() {
            break;
        }
        let reference = match plan.target.with_tag(&tag) {
            Ok(reference) => reference,
            Err(_) => continue,
        };
        if let Err(error) = take_over(plan, &reference, span_size, &mut seen, &mut found).await {
            tracing::info!("no index reused from {reference}: {error:#}");
        }
    }
    if found.is_empty() {
        tracing::debug!("nothing to reuse in {}", plan.target);
    }
    found
}

/// The target's tag first, then the repository's other accelerated tags.
async fn candidate_tags(plan: &Plan) -> Vec<String> {
    let own = plan.target.tag().unwrap_or_default().to_owned();
    let others = plan.to.tags().await.unwrap_or_default();
    let others = others.into_iter().filter(|t| t.ends_with(TAG_SUFFIX) && *t != own).take(TAGS);
    std::iter::once(own.clone()).chain(others).collect()
}

async fn take_over(
    plan: &Plan,
    reference: &Reference,
    span_size: u32,
    seen: &mut BTreeSet<Digest>,
    found: &mut BTreeMap<Digest, Arc<IndexedLayer>>,
) -> Result<()> {
    let set = ImageSet::resolve(&plan.to, reference).await?;
    for image in &set.images {
        let missing = |d: &Digest| plan.layers.contains_key(d) && !found.contains_key(d);
        if !layer_digests(&image.manifest).any(|d| missing(&d)) {
            continue;
        }
        let Some(digest) = annotated_index(&image.manifest) else { continue };
        let digest: Digest = digest.parse()?;
        if !seen.insert(digest) {
            continue;
        }
        let size = set
            .attachments
            .iter()
            .flat_map(|a| a.manifest.layers())
            .find(|l| l.digest().as_ref() == digest.to_string() && l.media_type().as_ref() == MEDIA_TYPE_INDEX_LAYER)
            .map(Descriptor::size)
            .with_context(|| format!("index {digest} is not in {reference}"))?;
        let bytes = plan.to.blob(digest, size).read_all(BLOB_LIMIT).await?;
        let index = Index::decode(&bytes).with_context(|| format!("index {digest}"))?;
        if index.span_size != span_size || !index.layers.iter().any(|l| missing(&l.digest)) {
            continue;
        }
        // Nodes range-read checkpoints unverified, because their spans are verified. Here they get a new digest, so
        // they must be the true ones: read the blob whole.
        let checkpoints = match &index.checkpoints {
            Some(blob) => plan.to.blob(blob.digest, blob.size).read_all(BLOB_LIMIT).await?,
            None => bytes::Bytes::new(),
        };
        for layer in index.layers {
            let Some(input) = plan.layers.get(&layer.digest) else { continue };
            if found.contains_key(&layer.digest) || layer.diff_id != input.diff_id {
                continue;
            }
            let layer = detach(layer, &checkpoints)?;
            found.insert(layer.index.digest, Arc::new(layer));
        }
    }
    Ok(())
}

fn layer_digests(manifest: &ImageManifest) -> impl Iterator<Item = Digest> {
    manifest.layers().iter().filter_map(|l| l.digest().as_ref().parse().ok())
}

/// The index that the layers of an accelerated image name.
fn annotated_index(manifest: &ImageManifest) -> Option<&String> {
    manifest.layers().iter().find_map(|l| l.annotations().as_ref()?.get(ANNOTATION_INDEX))
}

/// Gives `layer` a checkpoints blob of its own, cut from the image's.
fn detach(mut layer: clipper_format::index::LayerIndex, checkpoints: &[u8]) -> Result<IndexedLayer> {
    let mut own = Vec::new();
    for group in &mut layer.checkpoint_groups {
        let bytes = usize::try_from(group.start)
            .ok()
            .zip(usize::try_from(group.end).ok())
            .and_then(|(start, end)| checkpoints.get(start..end))
            .with_context(|| format!("layer {}: its checkpoints lie outside their blob", layer.digest))?;
        let start = own.len() as u64;
        own.extend_from_slice(bytes);
        *group = start..own.len() as u64;
    }
    Ok(IndexedLayer { index: layer, checkpoints: own, took: None })
}
