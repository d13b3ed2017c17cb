//! Blobs on their way from one repository to another.
use crate::report::{Progress, human};
use anyhow::{Context, Result, bail};
use clipper_format::index::BlobRef;
use clipper_registry::Repository;
use futures::TryStreamExt;
use std::sync::Arc;
use std::time::Duration;

/// Blobs that are brought side by side.
pub const SIDE_BY_SIDE: usize = 4;
/// Attempts at one blob: a stream that breaks can't be sent again, so it is read anew.
const ATTEMPTS: u32 = 4;

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
    let mut attempt = 1;
    loop {
        let task = Arc::new(progress.task(name, blob.size));
        let counted = Arc::clone(&task);
        let stream = from.blob(blob.digest, blob.size).read(0..blob.size).await.with_context(what)?;
        let stream = stream.inspect_ok(move |bytes| counted.advance(bytes.len() as u64));
        match to.push_blob_stream(blob.digest, blob.size, stream).await {
            Ok(_) => {
                task.done(&format!("{name}  copied {}", human(blob.size)));
                return Ok(Some(blob.size));
            }
            Err(error) if attempt < ATTEMPTS && error.is_transient() => {
                progress.warn(&format!("{name}: {error}; trying again"));
                tokio::time::sleep(Duration::from_millis(500) * attempt).await;
                attempt += 1;
            }
            Err(error) => return Err(error).with_context(what),
        }
    }
}
