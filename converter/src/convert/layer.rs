//! Indexing one layer: a pipeline from the blob's bytes to its tree, spans and checkpoints, and to a repacked layer.
use super::again::again;
use super::codec::{Codec, MAGIC};
use super::describing::{Described, Describing};
use super::parts::Parts;
use super::repack::{self, Repack, RepackError, RepackedLayer};
use super::room::{Held, Room};
use crate::report::Task;
use bytes::Bytes;
use clipper_format::Digest;
use clipper_format::gzip::{self, IndexedSpan};
use clipper_format::index::{LayerIndex, PackError};
use clipper_format::parse::Parse;
use clipper_format::span::SpanTable;
use clipper_format::zstd::{Sink, ZstdError};
use clipper_registry::Blob;
use futures::StreamExt;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

/// A layer to index.
#[derive(Clone)]
pub struct LayerInput {
    /// Its blob in the source repository.
    pub blob: Blob,
    /// What its uncompressed bytes must hash to.
    pub diff_id: Digest,
    /// Whether its media type says that it is zstd.
    pub zstd: bool,
}

/// Memory for zstd layers that are indexed side by side, MiB.
pub const MEMORY: u32 = 512;
/// What one may take: source bytes of a span and a half, what these refer to, and a few windows. Only windows of tens of
/// MiB take more.
const LAYER: u32 = 160;

impl LayerInput {
    /// What indexing it may take of [`MEMORY`], MiB. Other layers than those of zstd take little.
    pub fn memory(&self) -> u32 {
        let several = self.blob.size().div_ceil(1 << 20).saturating_mul(3);
        if self.zstd { several.min(LAYER.into()) as u32 } else { 0 }
    }
}

/// An indexed layer.
pub struct IndexedLayer {
    /// Its part of the index; checkpoint groups count from 0, as if this layer had a checkpoints blob of its own.
    pub index: LayerIndex,
    /// Its part of the checkpoints blob.
    pub checkpoints: Vec<u8>,
    /// How long indexing took; `None` if it was taken over from an earlier index.
    pub took: Option<Duration>,
    /// Where it can be read again, if long spans have parts.
    pub parts: Option<Parts>,
}

impl IndexedLayer {
    /// Bytes that the layer adds to the index and the checkpoints blob.
    pub fn size(&self) -> usize {
        self.index.encoded_len() + self.checkpoints.len()
    }

    /// The spans by which the conversion reads it again.
    pub fn spans(&self) -> &SpanTable {
        self.parts.as_ref().map_or(&self.index.spans, Parts::spans)
    }
}

/// What came of a layer.
pub struct DescribedLayer {
    /// Its index.
    pub index: IndexedLayer,
    /// The repacked layer, if there should be one.
    pub repacked: Option<RepackedLayer>,
}

/// Why a layer can't be indexed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It isn't valid zstd, or can't be indexed for another reason.
    #[error("layer {0}: {1}")]
    Zstd(Digest, ZstdError),
    /// Its compressed bytes aren't those of its digest.
    #[error("layer {0}: the registry sent other bytes, with digest {1}; the blob is corrupt: push it again")]
    Digest(Digest, Digest),
    /// Its uncompressed bytes aren't those of the config's diff ID.
    #[error("layer {layer}: it unpacks to {actual}, but the image config says {expected}; the image is broken")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// What the config says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// It isn't valid gzip.
    #[error("layer {0}: {1}")]
    Gzip(Digest, gzip::GzipError),
    /// It isn't a valid tar.
    #[error("layer {0}: {1}")]
    Tar(Digest, clipper_format::tar::TarError),
    /// Its tree can't be written.
    #[error("layer {0}: {1}")]
    Tree(Digest, PackError),
    /// Its spans don't fit its blob: a mistake of ours.
    #[error("layer {0}: {1}")]
    Spans(Digest, clipper_format::span::SpanTableError),
    /// It can't be repacked.
    #[error("layer {0}: {1}")]
    Repack(Digest, RepackError),
    /// It can't be read.
    #[error(transparent)]
    Registry(#[from] clipper_registry::RegistryError),
    /// A thread of the pipeline died.
    #[error("layer {0}: indexing stopped unexpectedly")]
    Stopped(Digest),
}

/// What travels to the thread that hashes and describes.
pub enum Piece {
    /// The next bytes of the blob.
    Compressed(Bytes, Held),
    /// The next span, with the first of its bytes or none.
    Span(IndexedSpan, Held),
    /// The next part of the last span.
    Part(IndexedSpan),
    /// The next bytes of the last span.
    More(Vec<u8>, Held),
}

/// Pieces of the blob that may wait for the inflating stage.
const QUEUE: usize = 6;
/// Pieces that may wait for the describing stage,
const PIECES: usize = 128;
/// and their bytes.
const WAITING: usize = 24 << 20;

/// Indexes a layer as its bytes arrive. Three stages run side by side: the network; inflating, which also chooses
/// spans and checkpoints; and hashing, which also walks the tar. With `repack`, groups of device bytes go on from there
/// to be compressed and pushed.
pub async fn describe(
    input: LayerInput,
    span_size: u32,
    repack: Option<Repack>,
    task: &Task,
) -> Result<DescribedLayer, LayerError> {
    let work = async || {
        // What an earlier attempt has read counts no more.
        task.reached(0);
        attempt(&input, span_size, repack.clone(), task).await
    };
    let lost = |error: &LayerError| {
        let LayerError::Repack(layer, RepackError::Registry(error)) = error else { return false };
        tracing::warn!(%layer, %error, "repacking the layer");
        error.is_transient()
    };
    again(work, lost).await
}

async fn attempt(
    input: &LayerInput,
    span_size: u32,
    repack: Option<Repack>,
    task: &Task,
) -> Result<DescribedLayer, LayerError> {
    let begun = Instant::now();
    let (digest, size) = (input.blob.digest(), input.blob.size());
    let mut stream = input.blob.read(0..size).await?;
    let (to_inflate, compressed) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
    let (to_describe, pieces) = sync_channel::<Piece>(PIECES);
    let (used, buffers) = channel();

    let parse = repack.as_ref().is_some_and(Repack::takes_matches);
    let (packing, repacking) = repack.map(|repack| repack::start(repack, span_size)).unzip();
    let inflate =
        tokio::task::spawn_blocking(move || inflate(digest, span_size, parse, compressed, &to_describe, buffers));
    let diff_id = input.diff_id;
    let describing = tokio::task::spawn_blocking(move || Describing::new(packing).run(digest, diff_id, &pieces, &used));

    let mut read = Ok(());
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(bytes) => {
                task.advance(bytes.len() as u64);
                if to_inflate.send(bytes).await.is_err() {
                    break; // A later stage failed; its error is the one to tell.
                }
            }
            Err(error) => {
                read = Err(LayerError::Registry(error));
                break;
            }
        }
    }
    drop(to_inflate);
    let inflated = inflate.await.map_err(|_| LayerError::Stopped(digest))?;
    let described = describing.await.map_err(|_| LayerError::Stopped(digest))?;
    let repacked = match repacking {
        Some(repacking) => Some(repacking.await.map_err(|_| LayerError::Stopped(digest))?),
        None => None,
    };
    read?; // An aborted read makes the later stages fail as if the layer were truncated: tell the cause.
    match (inflated, described) {
        // Bytes that aren't the layer's explain every other complaint about them.
        (_, Err(error @ LayerError::Digest(..))) | (Err(error), _) => Err(error),
        (Ok(()), Err(error)) => match repacked {
            // The describing stage stopped because nobody took its groups any more.
            Some(Err(cause)) if matches!(error, LayerError::Stopped(_)) => Err(LayerError::Repack(digest, cause)),
            _ => Err(error),
        },
        (Ok(()), Ok(described)) => {
            let took = begun.elapsed();
            let Described { tree, spans, checkpoints, groups, parts } = described;
            let repacked = match repacked {
                None => None,
                Some(packed) => {
                    let packed = packed.map_err(|error| LayerError::Repack(digest, error))?;
                    // Only now is it known to be the layer that its digest and diff ID promise.
                    let done = packed.finish(diff_id, tree.clone(), took).await;
                    Some(done.map_err(|error| LayerError::Repack(digest, error))?)
                }
            };
            let spans = SpanTable::new(spans, size).map_err(|e| LayerError::Spans(digest, e))?;
            let parts = parts.map(|(parts, own)| Parts::new(&spans, parts, own, size)).transpose();
            let parts = parts.map_err(|e| LayerError::Spans(digest, e))?;
            let index = LayerIndex { digest, diff_id, source_size: size, tree, spans, checkpoint_groups: groups };
            let index = IndexedLayer { index, checkpoints, took: Some(took), parts };
            Ok(DescribedLayer { index, repacked })
        }
    }
}

/// The inflating stage. After an error it still passes the compressed bytes on to be hashed: if they turn out not to
/// be the layer's own, that is what the user must hear.
fn inflate(
    digest: Digest,
    span_size: u32,
    parse: bool,
    mut compressed: tokio::sync::mpsc::Receiver<Bytes>,
    to_describe: &SyncSender<Piece>,
    buffers: Receiver<Vec<u8>>,
) -> Result<(), LayerError> {
    let mut outlet = Outlet { to_describe, buffers, room: Room::new(WAITING), open: true };
    let mut codec: Option<Codec> = None;
    let mut head: Vec<u8> = Vec::new();
    let mut outcome = Ok(());
    loop {
        let chunk = compressed.blocking_recv();
        let ended = chunk.is_none();
        if let Some(bytes) = &chunk {
            outlet.send(bytes.len(), |held| Piece::Compressed(bytes.clone(), held));
        }
        let mut input = chunk.unwrap_or_default();
        if codec.is_none() {
            head.extend_from_slice(&input);
            if head.len() < MAGIC && !ended {
                continue;
            }
            input = Bytes::from(std::mem::take(&mut head));
        }
        let codec = match &mut codec {
            Some(codec) => codec,
            None => codec.insert(Codec::of(&input, span_size, parse)),
        };
        if outcome.is_ok() {
            outcome = codec.push(&input, &mut outlet);
        }
        if ended && outcome.is_ok() {
            outcome = codec.finish(&mut outlet);
        }
        if !outlet.open {
            return Ok(()); // The describing stage failed, and says why.
        }
        if ended {
            return outcome.map_err(|error| error.of_layer(digest));
        }
    }
}

/// The way to the describing stage, as long as that takes anything.
struct Outlet<'a> {
    to_describe: &'a SyncSender<Piece>,
    /// Those that it is done with.
    buffers: Receiver<Vec<u8>>,
    room: Room,
    open: bool,
}

impl Outlet<'_> {
    fn send(&mut self, bytes: usize, piece: impl FnOnce(Held) -> Piece) {
        self.open = self.open && self.to_describe.send(piece(self.room.enter(bytes))).is_ok();
    }
}

impl Sink for Outlet<'_> {
    fn span(&mut self, span: IndexedSpan) {
        let known = span.parse.as_ref().map_or(0, Parse::memory);
        self.send(span.bytes.len() + known, |held| Piece::Span(span, held));
    }

    fn part(&mut self, part: IndexedSpan) {
        self.send(0, |_| Piece::Part(part));
    }

    fn more(&mut self, bytes: Vec<u8>) {
        self.send(bytes.len(), |held| Piece::More(bytes, held));
    }

    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let used = self.buffers.try_iter().find(|buffer| buffer.capacity() >= len);
        used.unwrap_or_else(|| Vec::with_capacity(len))
    }
}
