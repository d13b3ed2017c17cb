//! Pushing the result: blobs first, then manifests by digest, the tag last, so that no half image is ever visible.
use super::artifact::{self, Document};
use super::plan::{Plan, PlannedImage};
use super::{Made, blob_ref};
use crate::report::Progress;
use crate::transfer;
use anyhow::{Context, Result};
use bytes::Bytes;
use clipper_format::Digest;
use clipper_format::index::BlobRef;
use clipper_registry::Selector;
use futures::{StreamExt, TryStreamExt};

/// Pushes all blobs that the manifests of `image` will name and the target lacks.
pub async fn blobs(plan: &Plan, image: &PlannedImage, made: &Made, progress: &Progress) -> Result<()> {
    if !plan.same_repository {
        let mut wanted: Vec<BlobRef> = image.layers.clone();
        wanted.push(image.config);
        wanted.sort_by_key(|b| b.digest);
        wanted.dedup_by_key(|b| b.digest);
        futures::stream::iter(wanted)
            .map(|blob| async move { transfer::blob(&plan.from, &plan.to, &blob, progress).await })
            .buffer_unordered(transfer::SIDE_BY_SIDE)
            .try_collect::<Vec<_>>()
            .await?;
    }
    let mut own = vec![artifact::EMPTY.to_vec(), made.index.clone()];
    own.extend(made.checkpoints.clone());
    own.extend(made.hot.clone());
    for bytes in own {
        let digest = Digest::of(&bytes);
        plan.to.push_blob(digest, Bytes::from(bytes)).await.with_context(|| format!("pushing to {}", plan.target))?;
    }
    Ok(())
}

/// The digests of what was published.
pub struct Published {
    /// The OCI image index: what the tag points at.
    pub top: Digest,
    /// For each image: image manifest, index manifest.
    pub manifests: Vec<(Digest, Digest)>,
}

/// Pushes the manifests and, at last, the tag.
pub async fn manifests(plan: &Plan, images: &[(&PlannedImage, Made)]) -> Result<Published> {
    let documents: Vec<_> = images
        .iter()
        .map(|(image, made)| {
            let index = blob_ref(&made.index);
            let checkpoints = made.checkpoints.as_deref().map(blob_ref);
            let manifest = artifact::image_manifest(&image.manifest, image.digest, &index);
            let hot = made.hot.as_deref().map(blob_ref);
            let artifact = artifact::index_manifest(&manifest, &index, checkpoints.as_ref(), hot.as_ref());
            (image.platform.clone(), manifest, artifact)
        })
        .collect();
    for (_, manifest, artifact) in &documents {
        for document in [manifest, artifact] {
            put(plan, Selector::Digest(document.digest), document).await?;
        }
    }
    let top = artifact::image_index(&documents).context("writing the image index")?;
    let tag = plan.target.tag().unwrap_or_default().to_owned();
    put(plan, Selector::Tag(tag), &top).await?;
    Ok(Published { top: top.digest, manifests: documents.iter().map(|(_, m, a)| (m.digest, a.digest)).collect() })
}

async fn put(plan: &Plan, selector: Selector, document: &Document) -> Result<()> {
    let bytes = Bytes::from(document.bytes.clone());
    plan.to
        .put_manifest(&selector, document.media_type, bytes)
        .await
        .with_context(|| format!("publishing {}", plan.target))?;
    Ok(())
}
