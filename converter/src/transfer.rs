//! Blobs on their way from one repository to another.
use crate::report::{Progress, human};
use anyhow::{Context, Result, bail};
use clipper_format::index::BlobRef;
use clipper_registry::Repository;
use std::sync::Arc;

/// Blobs that are brought side by side.
pub const SIDE_BY_SIDE: usize = 4;

/// Brings a blob to the target: mounted, if the registry can do that, or else streamed. Its size, unless it was there.
pub async fn blob(from: &Repository, to: &Repository, blob: &BlobRef, progress: &Progress) -> Result<Option<u64>> {
    let what = || format!("copying {} to {to}", blob.digest);
    match to.blob_size(&blob.digest).await.with_context(what)? {
        Some(size) if size == blob.size => return Ok(None),
        Some(size) => bail!("{to} has {} with {size} bytes instead of {}: remove it there", blob.digest, blob.size),
        None => {}
    }
    if to.mount_blob(from, blob.digest, blob.size).await.with_context(what)? {
        return Ok(Some(blob.size));
    }
    let name = &blob.digest.hex()[..12];
    let task = Arc::new(progress.task(name, blob.size));
    let shown = Arc::clone(&task);
    let source = from.blob(blob.digest, blob.size);
    to.copy_blob(&source, move |at| shown.reached(at)).await.with_context(what)?;
    task.done(&format!("{name}  copied {}", human(blob.size)));
    Ok(Some(blob.size))
}
