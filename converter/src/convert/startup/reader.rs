//! Reading spans of layers while an image is being converted: a range of the blob, decoded and verified.
use crate::convert::layer::IndexedLayer;
use anyhow::{Context, Result, bail};
use clipper_format::gzip::{CHECKPOINTS_PER_GROUP, SpanDecoder, decode_group};
use clipper_format::span::{Span, Start};
use clipper_registry::Blob;
use futures::TryStreamExt;
use std::sync::Arc;

/// A layer whose spans can be read.
#[derive(Clone)]
pub struct SpanReader {
    /// The layer's blob.
    pub blob: Blob,
    /// Its index and checkpoints.
    pub layer: Arc<IndexedLayer>,
}

impl SpanReader {
    /// The device bytes of span `number`.
    ///
    /// # Errors
    /// The blob can't be read, or isn't what was indexed.
    pub async fn span(&self, number: usize) -> Result<Vec<u8>> {
        let span = self.layer.index.spans.spans().get(number).context("no such span")?.clone();
        let mut source = Vec::with_capacity(span.source_len as usize);
        let mut stream = self.blob.read(span.source_range()).await?;
        while let Some(chunk) = stream.try_next().await? {
            source.extend_from_slice(&chunk);
        }
        let layer = Arc::clone(&self.layer);
        tokio::task::spawn_blocking(move || decode(&layer, &span, source)).await?
    }
}

fn decode(layer: &IndexedLayer, span: &Span, source: Vec<u8>) -> Result<Vec<u8>> {
    let bytes = match span.start {
        Start::Stored => source,
        Start::GzipMember => inflate(SpanDecoder::start(span, None)?, span, &source)?,
        Start::Gzip { checkpoint, .. } => {
            let (group, place) =
                (checkpoint as usize / CHECKPOINTS_PER_GROUP, checkpoint as usize % CHECKPOINTS_PER_GROUP);
            let range = layer.index.checkpoint_groups.get(group).context("its group of checkpoints is missing")?;
            let group = layer.checkpoints.get(range.start as usize..range.end as usize);
            let group = decode_group(group.context("its group of checkpoints is missing")?)?;
            let checkpoint = group.get(place).context("its checkpoint is missing")?;
            inflate(SpanDecoder::start(span, Some(checkpoint))?, span, &source)?
        }
    };
    if *blake3::hash(&bytes).as_bytes() != span.blake3 {
        bail!("layer {}: the registry sends other bytes than before", layer.index.digest);
    }
    Ok(bytes)
}

fn inflate(mut decoder: SpanDecoder, span: &Span, source: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; span.device_len as usize];
    decoder.decode(span, source, &mut bytes)?;
    Ok(bytes)
}
