//! Pushing the result: blobs first, then manifests by digest, the tag last, so that no half image is ever visible.
use super::artifact::ImageParts;
use super::artifact::{self, Document};
use super::edition::{Edition, EditionLayer};
use super::plan::{Plan, PlannedImage};
use super::{Made, blob_ref};
use crate::report::Progress;
use crate::transfer;
use anyhow::{Context, Result};
use bytes::Bytes;
use clipper_format::Digest;

use clipper_registry::Selector;
use futures::{StreamExt, TryStreamExt};

/// Pushes all blobs that the manifests of `image` will name and the target lacks. Repacked layers are there already.
pub async fn blobs(
    plan: &Plan,
    edition: &Edition,
    image: &PlannedImage,
    made: &Made,
    progress: &Progress,
) -> Result<()> {
    if !plan.same_repository {
        let mut wanted = vec![image.config];
        if edition.repacked.is_none() {
            wanted.extend(&image.layers);
        }
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
    for bytes in own {
        let digest = Digest::of(&bytes);
        plan.to.push_blob(digest, Bytes::from(bytes)).await.with_context(|| format!("pushing to {}", plan.to))?;
    }
    Ok(())
}

/// What was published under a tag.
pub struct Published<'a> {
    /// The edition.
    pub edition: &'a Edition,
    /// The OCI image index: what the tag points at.
    pub top: Digest,
    /// The images.
    pub images: Vec<MadeImage<'a>>,
    /// For each of them: image manifest, index manifest.
    pub manifests: Vec<(Digest, Digest)>,
}

/// An image with its layers and what was made of them.
pub type MadeImage<'a> = (&'a PlannedImage, Vec<EditionLayer<'a>>, Made);

/// Pushes the manifests and, at last, the tag.
pub async fn manifests<'a>(plan: &Plan, edition: &'a Edition, images: Vec<MadeImage<'a>>) -> Result<Published<'a>> {
    let documents: Vec<_> = images
        .iter()
        .map(|(image, layers, made)| {
            let index = blob_ref(&made.index);
            let checkpoints = made.checkpoints.as_deref().map(blob_ref);
            let parts = ImageParts { base: image.digest, index: &index, edition, layers };
            let manifest = artifact::image_manifest(&image.manifest, &parts);
            let artifact = artifact::index_manifest(&manifest, &index, checkpoints.as_ref(), made.hot.as_ref());
            (image.platform.clone(), manifest, artifact)
        })
        .collect();
    for (_, manifest, artifact) in &documents {
        for document in [manifest, artifact] {
            put(plan, edition, Selector::Digest(document.digest), document).await?;
        }
    }
    let top = artifact::image_index(&documents).context("writing the image index")?;
    let tag = edition.target.tag().unwrap_or_default().to_owned();
    put(plan, edition, Selector::Tag(tag), &top).await?;
    let manifests = documents.iter().map(|(_, m, a)| (m.digest, a.digest)).collect();
    Ok(Published { edition, top: top.digest, images, manifests })
}

async fn put(plan: &Plan, edition: &Edition, selector: Selector, document: &Document) -> Result<()> {
    let bytes = Bytes::from(document.bytes.clone());
    plan.to
        .put_manifest(&selector, document.media_type, bytes)
        .await
        .with_context(|| format!("publishing {}", edition.target))?;
    Ok(())
}
