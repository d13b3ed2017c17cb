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
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

/// Groups of a layer that may wait to be compressed; each has at most a span size.
const QUEUE: usize = 2;
/// Groups of a layer that are compressed, or wait for one before them, at once.
const IN_FLIGHT: usize = 6;

/// Where repacked layers go, and how they are compressed. Layers that are worked on side by side share one, and so the
/// processors.
#[derive(Clone)]
pub struct Repack {
    to: Repository,
    packers: Arc<Packers>,
}

impl Repack {
    /// Whether it is of use to know how layers were put together.
    pub fn takes_matches(&self) -> bool {
        self.packers.compression.takes_matches()
    }

    /// Pushes layers to `to`, compressed so.
    pub fn new(to: Repository, compression: Compression) -> Self {
        // More than there are processors: those that are done wait for their turn while the next are compressed.
        let workers = 2 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let packers = Packers { compression, idle: Mutex::default(), free: Arc::new(Semaphore::new(workers)) };
        Self { to, packers: Arc::new(packers) }
    }
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
    let mut assembler = Assembler::new(repack.packers.compression);
    let mut packed =
        ReceiverStream::new(groups).map(|group| pack(Arc::clone(&repack.packers), group)).buffered(IN_FLIGHT);
    while let Some(group) = packed.next().await {
        let bytes = assembler.push(group?)?;
        upload.write(bytes.into()).await?;
    }
    let mut assembled = assembler.finish()?;
    upload.write(std::mem::take(&mut assembled.tail).into()).await?;
    Ok(Packed { upload, assembled })
}

/// The compressors of all layers.
struct Packers {
    compression: Compression,
    /// Those that have nothing to do.
    idle: Mutex<Vec<Packer>>,
    /// How many groups may still be compressed at once.
    free: Arc<Semaphore>,
}

async fn pack(packers: Arc<Packers>, group: Group) -> Result<PackedGroup, RepackError> {
    let permit = Arc::clone(&packers.free).acquire_owned().await.map_err(|_| RepackError::Stopped)?;
    let packed = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let kept = packers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut packer = kept.map_or_else(|| Packer::new(packers.compression), Ok)?;
        let packed = packer.pack(group)?;
        packers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(packer);
        Ok::<_, ChunkedError>(packed)
    });
    Ok(packed.await.map_err(|_| RepackError::Stopped)??)
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
        let layer = Arc::new(IndexedLayer { index, checkpoints: Vec::new(), took: Some(took), parts: None });
        Ok(RepackedLayer { layer, annotations, no_toc })
    }
}
