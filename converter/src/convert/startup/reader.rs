//! Reading spans of layers while an image is being converted: a range of the blob, decoded and verified.
use super::files::{ImageFiles, LayerBytes};
use crate::convert::layer::IndexedLayer;
use anyhow::{Context, Result, bail};
use clipper_format::gzip::{SpanDecoder, decode_group};
use clipper_format::span::{Span, Start};
use clipper_format::tree::InodeId;
use clipper_format::zstd;
use clipper_registry::Blob;
use futures::TryStreamExt;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// A layer whose spans can be read.
#[derive(Clone)]
pub struct SpanReader {
    /// The layer's blob.
    pub blob: Blob,
    /// Its index and checkpoints.
    pub layer: Arc<IndexedLayer>,
}

impl SpanReader {
    /// What the layer's index says of span `number`.
    ///
    /// # Errors
    /// There is no such span.
    pub fn described(&self, number: usize) -> Result<Span> {
        self.layer.spans().spans().get(number).cloned().context("no such span")
    }

    /// The device bytes of span `number`.
    ///
    /// # Errors
    /// The blob can't be read, or isn't what was indexed.
    pub async fn span(&self, number: usize) -> Result<Vec<u8>> {
        Ok(self.both(number).await?.1)
    }

    /// The bytes of span `number` as they lie in the blob, which decode to what was indexed.
    ///
    /// # Errors
    /// The blob can't be read, or isn't what was indexed.
    pub async fn verified_source(&self, number: usize) -> Result<Vec<u8>> {
        Ok(self.both(number).await?.0)
    }

    /// A span's bytes in the blob, and in the device.
    async fn both(&self, number: usize) -> Result<(Vec<u8>, Vec<u8>)> {
        let span = self.described(number)?;
        tracing::debug!(layer = %self.layer.index.digest, number, len = span.device_len, "reading a span again");
        let mut source = Vec::with_capacity(span.source_len as usize);
        let mut stream = self.blob.read(span.source_range()).await?;
        while let Some(chunk) = stream.try_next().await? {
            source.extend_from_slice(&chunk);
        }
        let layer = Arc::clone(&self.layer);
        let decoding = tokio::task::spawn_blocking(move || {
            let bytes = decode(&layer, &span, &source)?;
            anyhow::Ok((source, bytes))
        });
        decoding.await?
    }
}

/// Reads files of an image through the spans that they lie in, of which it keeps the last few.
pub struct FileReader<'a> {
    /// The image's layers, bottom first.
    layers: &'a [SpanReader],
    kept: Mutex<VecDeque<Kept>>,
}

/// A span that was used lately. Who needs it while it is being read waits for it.
struct Kept {
    layer: usize,
    number: usize,
    len: u64,
    bytes: Arc<OnceCell<Arc<Vec<u8>>>>,
}

/// Bytes of the spans that a reader keeps.
const KEPT: u64 = 48 << 20;

impl<'a> FileReader<'a> {
    /// A reader of files whose data lie in `layers`, one for each of the image's layers.
    pub fn new(layers: &'a [SpanReader]) -> Self {
        Self { layers, kept: Mutex::default() }
    }

    /// The bytes `range` of a regular file, clipped to its size. What lies in no layer is left out.
    ///
    /// # Errors
    /// A layer can't be read again.
    pub async fn read(&self, files: &ImageFiles, id: InodeId, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for LayerBytes { layer, range } in files.bytes(id, range) {
            let mut at = range.start;
            while at < range.end {
                let table = self.layers.get(layer).context("no such layer")?.layer.spans();
                let number = table.find(at).context("a file outside its layer")?;
                let described = table.spans()[number].device_range();
                let span = self.span(layer, number).await?;
                let end = described.end.min(range.end);
                let part = (at - described.start) as usize..(end - described.start) as usize;
                bytes.extend_from_slice(span.get(part).context("a span that is too short")?);
                at = end;
            }
        }
        Ok(bytes)
    }

    async fn span(&self, layer: usize, number: usize) -> Result<Arc<Vec<u8>>> {
        let cell = self.cell(layer, number);
        cell.get_or_try_init(async || anyhow::Ok(Arc::new(self.layers[layer].span(number).await?))).await.cloned()
    }

    fn cell(&self, layer: usize, number: usize) -> Arc<OnceCell<Arc<Vec<u8>>>> {
        // Nothing that could panic happens under this lock.
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().position(|kept| (kept.layer, kept.number) == (layer, number));
        let kept = known.and_then(|at| all.remove(at)).unwrap_or_else(|| {
            let len = self.layers[layer].layer.spans().spans().get(number).map_or(0, |span| span.device_len.into());
            Kept { layer, number, len, bytes: Arc::default() }
        });
        let bytes = Arc::clone(&kept.bytes);
        all.push_back(kept);
        let mut held: u64 = all.iter().map(|kept| kept.len).sum();
        while held > KEPT
            && all.len() > 1
            && let Some(oldest) = all.pop_front()
        {
            held -= oldest.len;
        }
        bytes
    }
}

fn decode(layer: &IndexedLayer, span: &Span, source: &[u8]) -> Result<Vec<u8>> {
    let bytes = match span.start {
        Start::Stored => source.to_vec(),
        Start::ZstdFrame { .. } => {
            let mut bytes = vec![0; span.device_len as usize];
            zstd::SpanDecoder::start(span)?.decode(span, source, &mut bytes)?;
            bytes
        }
        Start::GzipMember { .. } => inflate(SpanDecoder::start(span, None)?, span, source)?,
        Start::ZstdBlock { .. } => {
            let own = layer.parts.as_ref().and_then(|parts| parts.checkpoint(span));
            let encoded = own.map_or_else(|| Ok(checkpoint_group(layer, span)?.0), anyhow::Ok)?;
            zstd::resume(span, &zstd::Checkpoint::decode(encoded)?, source)?
        }
        Start::Gzip { .. } => {
            let (group, place) = checkpoint_group(layer, span)?;
            let group = decode_group(group)?;
            let checkpoint = group.get(place).context("its checkpoint is missing")?;
            inflate(SpanDecoder::start(span, Some(checkpoint))?, span, source)?
        }
    };
    if *blake3::hash(&bytes).as_bytes() != span.blake3 {
        bail!("layer {}: the registry sends other bytes than before", layer.index.digest);
    }
    Ok(bytes)
}

/// The group that holds the checkpoint of `span`, and its place in it.
fn checkpoint_group<'a>(layer: &'a IndexedLayer, span: &Span) -> Result<(&'a [u8], usize)> {
    let (group, place) = span.start.checkpoint_group().context("it has no checkpoint")?;
    let range = layer.index.checkpoint_groups.get(group).context("its group of checkpoints is missing")?;
    let group = layer.checkpoints.get(range.start as usize..range.end as usize);
    Ok((group.context("its group of checkpoints is missing")?, place))
}

fn inflate(mut decoder: SpanDecoder, span: &Span, source: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; span.device_len as usize];
    decoder.decode(span, source, &mut bytes)?;
    Ok(bytes)
}
