//! Layers that were indexed before: found through the accelerated tags of the target repository.
use super::Layers;
use super::artifact::{ANNOTATION_BASE_LAYER, ANNOTATION_COMPRESSION};
use super::edition;
use super::layer::IndexedLayer;
use super::plan::Plan;
use super::repack::RepackedLayer;
use crate::cli::ConvertArgs;
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::chunked::{ANNOTATIONS_TOC_DIGEST, ANNOTATIONS_TOC_POSITION};
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
pub async fn find(plan: &Plan, args: &ConvertArgs) -> Layers {
    let mut found = Layers::default();
    let mut seen = BTreeSet::new();
    for tag in candidate_tags(plan, &args.tag_suffix).await {
        if plan.layers.keys().all(|digest| found.missing(plan, digest).is_none()) {
            break;
        }
        let reference = match plan.target.with_tag(&tag) {
            Ok(reference) => reference,
            Err(_) => continue,
        };
        if let Err(error) = take_over(plan, &reference, args.span_size, &mut seen, &mut found).await {
            tracing::info!("no index reused from {reference}: {error:#}");
        }
    }
    found
}

/// The target's tag first, then the repository's other accelerated tags.
async fn candidate_tags(plan: &Plan, suffix: &str) -> Vec<String> {
    let own: Vec<String> = plan.editions.iter().filter_map(|edition| edition.target.tag()).map(str::to_owned).collect();
    let others = plan.to.tags().await.unwrap_or_default();
    let others: Vec<_> = others.into_iter().filter(|t| t.ends_with(suffix) && !own.contains(t)).take(TAGS).collect();
    own.into_iter().chain(others).collect()
}

async fn take_over(
    plan: &Plan,
    reference: &Reference,
    span_size: u32,
    seen: &mut BTreeSet<Digest>,
    found: &mut Layers,
) -> Result<()> {
    let set = ImageSet::resolve(&plan.to, reference).await?;
    for image in &set.images {
        let repacked = repacked_layers(plan, &image.manifest);
        let base = |digest: &Digest| repacked.get(digest).map_or(*digest, |repacked| repacked.base);
        let missing = |digest: &Digest| match repacked.get(digest) {
            Some(repacked) => !found.repacked.contains_key(&repacked.base),
            None => plan.layers.contains_key(digest) && !found.indexed.contains_key(digest),
        };
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
            let (digest, base) = (layer.digest, base(&layer.digest));
            if plan.layers.get(&base).is_none_or(|input| layer.diff_id != input.diff_id) {
                continue;
            }
            let layer = Arc::new(detach(layer, &checkpoints)?);
            match repacked.get(&digest) {
                Some(described) => {
                    let annotations = described.annotations.clone();
                    let repacked = RepackedLayer { layer, annotations, no_toc: None };
                    found.repacked.entry(base).or_insert_with(|| Arc::new(repacked));
                }
                None => drop(found.indexed.entry(base).or_insert(layer)),
            }
        }
    }
    Ok(())
}

/// What an image of full mode says of one of its layers.
struct Described {
    base: Digest,
    annotations: Vec<(String, String)>,
}

/// The layers of an image that was repacked as is wanted now, by their digests.
fn repacked_layers(plan: &Plan, manifest: &ImageManifest) -> BTreeMap<Digest, Described> {
    let wanted = plan.repacked().map(edition::name);
    let made = manifest.annotations().as_ref().and_then(|annotations| annotations.get(ANNOTATION_COMPRESSION));
    if made.is_none() || wanted.as_ref() != made {
        return BTreeMap::new();
    }
    let layer = |layer: &Descriptor| {
        let annotations = layer.annotations().as_ref()?;
        let base: Digest = annotations.get(ANNOTATION_BASE_LAYER)?.parse().ok()?;
        let of_bytes = ANNOTATIONS_TOC_DIGEST.iter().chain(&ANNOTATIONS_TOC_POSITION);
        let kept = annotations.iter().filter(|(key, _)| of_bytes.clone().any(|name| name == key));
        let annotations = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        let digest: Digest = layer.digest().as_ref().parse().ok()?;
        plan.layers.contains_key(&base).then_some((digest, Described { base, annotations }))
    };
    manifest.layers().iter().filter_map(layer).collect()
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
    Ok(IndexedLayer { index: layer, checkpoints: own, took: None, parts: None })
}
