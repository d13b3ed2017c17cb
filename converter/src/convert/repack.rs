//! Repacking a layer: its device bytes, cut into groups, compressed side by side, and pushed in order as a new blob.
use super::describing::Packing;
use super::layer::IndexedLayer;
use clipper_format::Digest;
use clipper_format::chunked::{Assembled, Assembler, ChunkedError, Compression, Cutter, Group, PackedGroup, Packer};
use clipper_format::index::{LayerIndex, PackedTree};
use clipper_format::span::{SpanTable, SpanTableError};
use clipper_registry::{BlobUpload, RegistryError, Repository};
use futures::StreamExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// Groups that may wait to be compressed; each has at most a span size.
const QUEUE: usize = 2;

/// Where repacked layers go, and how they are compressed.
#[derive(Clone)]
pub struct Repack {
    /// The repository that they are pushed to.
    pub to: Repository,
    /// How they are compressed.
    pub compression: Compression,
}

/// A repacked layer in its repository.
pub struct RepackedLayer {
    /// Its index; it has no checkpoints.
    pub layer: Arc<IndexedLayer>,
    /// Annotations for its descriptor.
    pub annotations: Vec<(String, String)>,
    /// Why it has no table of contents, where it should have one.
    pub no_toc: Option<String>,
}

/// Why a layer can't be repacked.
#[derive(Debug, thiserror::Error)]
pub enum RepackError {
    /// It can't be compressed.
    #[error(transparent)]
    Chunked(#[from] ChunkedError),
    /// It can't be pushed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its spans don't fit its blob: a mistake of ours.
    #[error(transparent)]
    Spans(#[from] SpanTableError),
    /// A thread died.
    #[error("compressing stopped unexpectedly")]
    Stopped,
}

/// All of a layer, compressed and pushed but for the word that it is whole.
pub struct Packed {
    upload: BlobUpload,
    assembled: Assembled,
}

/// Starts repacking what is sent to the [`Packing`]. The end of that is taken for the end of the layer.
pub fn start(repack: Repack, span_size: u32) -> (Packing, JoinHandle<Result<Packed, RepackError>>) {
    let (groups, waiting) = channel(QUEUE);
    (Packing { cutter: Cutter::new(span_size), groups }, tokio::spawn(run(repack, waiting)))
}

async fn run(repack: Repack, groups: Receiver<Group>) -> Result<Packed, RepackError> {
    let mut upload = repack.to.upload().await?;
    let mut assembler = Assembler::new(repack.compression);
    let packers = Packers { compression: repack.compression, idle: Arc::default() };
    // More than there are processors: those that are done wait for their turn while the next are compressed.
    let workers = 2 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut packed = ReceiverStream::new(groups).map(|group| packers.pack(group)).buffered(workers);
    while let Some(group) = packed.next().await {
        let bytes = assembler.push(group.map_err(|_| RepackError::Stopped)??)?;
        upload.write(bytes.into()).await?;
    }
    let mut assembled = assembler.finish()?;
    upload.write(std::mem::take(&mut assembled.tail).into()).await?;
    Ok(Packed { upload, assembled })
}

/// Compressors that have nothing to do.
struct Packers {
    compression: Compression,
    idle: Arc<Mutex<Vec<Packer>>>,
}

impl Packers {
    fn pack(&self, group: Group) -> JoinHandle<Result<PackedGroup, ChunkedError>> {
        let (compression, idle) = (self.compression, Arc::clone(&self.idle));
        tokio::task::spawn_blocking(move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut packer = kept.map_or_else(|| Packer::new(compression), Ok)?;
            let packed = packer.pack(group)?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(packer);
            Ok(packed)
        })
    }
}

impl Packed {
    /// Makes the blob visible. Dropping it instead abandons the upload.
    ///
    /// # Errors
    /// The registry doesn't take it.
    pub async fn finish(self, diff_id: Digest, tree: PackedTree, took: Duration) -> Result<RepackedLayer, RepackError> {
        let (digest, size) = self.upload.finish().await?;
        let Assembled { spans, annotations, no_toc, .. } = self.assembled;
        let spans = SpanTable::new(spans, size)?;
        let index = LayerIndex { digest, diff_id, source_size: size, tree, spans, checkpoint_groups: Vec::new() };
        let layer = Arc::new(IndexedLayer { index, checkpoints: Vec::new(), took: Some(took) });
        Ok(RepackedLayer { layer, annotations, no_toc })
    }
}
