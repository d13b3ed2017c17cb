//! Reading spans of layers while an image is being converted: a range of the blob, decoded and verified.
use super::files::{ImageFiles, LayerBytes};
use crate::convert::layer::IndexedLayer;
use anyhow::{Context, Result, bail};
use clipper_format::gzip::{CHECKPOINTS_PER_GROUP, SpanDecoder, decode_group};
use clipper_format::span::{Span, Start};
use clipper_format::tree::InodeId;
use clipper_format::zstd;
use clipper_registry::Blob;
use futures::TryStreamExt;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Reads files of an image through the spans that they lie in, of which it keeps the last few.
pub struct FileReader<'a> {
    /// The image's layers, bottom first.
    layers: &'a [SpanReader],
    kept: Mutex<Kept>,
}

/// The spans used last, by layer and number.
type Kept = VecDeque<((usize, usize), Arc<Vec<u8>>)>;

/// Spans that a reader keeps.
const KEPT: usize = 24;

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
                let table = &self.layers.get(layer).context("no such layer")?.layer.index.spans;
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
        let key = (layer, number);
        let known = self.kept().iter().find(|(kept, _)| *kept == key).map(|(_, span)| Arc::clone(span));
        if let Some(span) = known {
            return Ok(span);
        }
        let span = Arc::new(self.layers[layer].span(number).await?);
        let mut kept = self.kept();
        kept.push_back((key, Arc::clone(&span)));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(span)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that could panic happens under this lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(layer: &IndexedLayer, span: &Span, source: Vec<u8>) -> Result<Vec<u8>> {
    let bytes = match span.start {
        Start::Stored => source,
        Start::ZstdFrame { .. } => {
            let mut bytes = vec![0; span.device_len as usize];
            zstd::SpanDecoder::start(span)?.decode(span, &source, &mut bytes)?;
            bytes
        }
        Start::GzipMember { .. } => inflate(SpanDecoder::start(span, None)?, span, &source)?,
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
