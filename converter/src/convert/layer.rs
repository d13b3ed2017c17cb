//! Indexing one layer: a pipeline from the blob's bytes to its tree, spans and checkpoints, and to a repacked layer.
use super::again::again;
use super::codec::{Begin, Codec, CodecError, MAGIC};
use super::describing::{Described, Describing};
use super::repack::{self, Repack, RepackError, RepackedLayer};
use crate::report::Task;
use bytes::Bytes;
use clipper_format::Digest;
use clipper_format::gzip::{self, IndexedSpan};
use clipper_format::index::{LayerIndex, PackError};
use clipper_format::span::SpanTable;
use clipper_format::zstd::{self, ZstdError};
use clipper_registry::Blob;
use futures::StreamExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// A layer to index.
#[derive(Clone)]
pub struct LayerInput {
    /// Its blob in the source repository.
    pub blob: Blob,
    /// Its media type, for error texts.
    pub media_type: String,
    /// What its uncompressed bytes must hash to.
    pub diff_id: Digest,
}

/// An indexed layer.
pub struct IndexedLayer {
    /// Its part of the index; checkpoint groups count from 0, as if this layer had a checkpoints blob of its own.
    pub index: LayerIndex,
    /// Its part of the checkpoints blob.
    pub checkpoints: Vec<u8>,
    /// How long indexing took; `None` if it was taken over from an earlier index.
    pub took: Option<Duration>,
}

/// What came of a layer.
#[derive(Default)]
pub struct DescribedLayer {
    /// Its index; `None` if it is one zstd frame, which can be repacked but not indexed.
    pub index: Option<IndexedLayer>,
    /// The repacked layer, if there should be one.
    pub repacked: Option<RepackedLayer>,
}

/// Why a layer can't be indexed.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is compressed with zstd in too large a frame: most likely all of it is one.
    #[error(
        "layer {layer} is compressed with zstd ({media_type}) in a frame of over {limit} MiB, which index-only mode \
         can't index yet: layers of one frame, as docker and podman push them, are to come; `--mode full` repacks the \
         image, or push it with gzip or zstd:chunked layers (for example `skopeo copy --dest-compress-format gzip`) \
         and convert that",
        limit = zstd::MAX_FRAME >> 20
    )]
    ZstdFrame {
        /// The layer.
        layer: Digest,
        /// Its media type.
        media_type: String,
    },
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
    /// It isn't valid zstd.
    #[error("layer {0}: {1}")]
    Frame(Digest, std::io::Error),
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
    Compressed(Bytes),
    /// The next bytes of the device.
    Span(IndexedSpan),
}

/// Pieces that may wait between two stages; spans are at most a span size each, so this bounds memory.
const QUEUE: usize = 6;

/// Indexes a layer as its bytes arrive. Three stages run side by side: the network; inflating, which also chooses
/// spans and checkpoints; and hashing, which also walks the tar. With `repack`, groups of device bytes go on from there
/// to be compressed and pushed.
pub async fn describe(
    input: LayerInput,
    span_size: u32,
    repack: Option<Repack>,
    task: &Task,
) -> Result<DescribedLayer, LayerError> {
    let mut one_frame = false;
    let work = async || {
        // What an earlier attempt has read counts no more.
        task.reached(0);
        match attempt(&input, span_size, repack.clone(), one_frame, task).await {
            Err(LayerError::ZstdFrame { .. }) if repack.is_some() && !one_frame => {
                one_frame = true;
                task.reached(0);
                attempt(&input, span_size, repack.clone(), one_frame, task).await
            }
            result => result,
        }
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
    one_frame: bool,
    task: &Task,
) -> Result<DescribedLayer, LayerError> {
    let begun = Instant::now();
    let (digest, size) = (input.blob.digest(), input.blob.size());
    let mut stream = input.blob.read(0..size).await?;
    let (to_inflate, compressed) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
    let (to_describe, pieces) = sync_channel::<Piece>(QUEUE);

    let media_type = input.media_type.clone();
    let (packing, repacking) = repack.map(|repack| repack::start(repack, span_size)).unzip();
    let begin: Begin = if one_frame { Codec::one_frame } else { Codec::of };
    let inflate =
        tokio::task::spawn_blocking(move || inflate(digest, media_type, span_size, begin, compressed, &to_describe));
    let diff_id = input.diff_id;
    let describing = tokio::task::spawn_blocking(move || Describing::new(packing).run(digest, diff_id, &pieces));

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
        (Err(error @ LayerError::ZstdFrame { .. }), _) => Err(error),
        // Bytes that aren't the layer's explain every other complaint about them.
        (_, Err(error @ LayerError::Digest(..))) | (Err(error), _) => Err(error),
        (Ok(()), Err(error)) => match repacked {
            // The describing stage stopped because nobody took its groups any more.
            Some(Err(cause)) if matches!(error, LayerError::Stopped(_)) => Err(LayerError::Repack(digest, cause)),
            _ => Err(error),
        },
        (Ok(()), Ok(described)) => {
            let took = begun.elapsed();
            let Described { tree, spans, checkpoints, groups } = described;
            let repacked = match repacked {
                None => None,
                Some(packed) => {
                    let packed = packed.map_err(|error| LayerError::Repack(digest, error))?;
                    // Only now is it known to be the layer that its digest and diff ID promise.
                    let done = packed.finish(diff_id, tree.clone(), took).await;
                    Some(done.map_err(|error| LayerError::Repack(digest, error))?)
                }
            };
            let index = if one_frame {
                None
            } else {
                let spans = SpanTable::new(spans, size).map_err(|e| LayerError::Spans(digest, e))?;
                let index = LayerIndex { digest, diff_id, source_size: size, tree, spans, checkpoint_groups: groups };
                Some(IndexedLayer { index, checkpoints, took: Some(took) })
            };
            Ok(DescribedLayer { index, repacked })
        }
    }
}

/// The inflating stage. After an error it still passes the compressed bytes on to be hashed: if they turn out not to
/// be the layer's own, that is what the user must hear.
fn inflate(
    digest: Digest,
    media_type: String,
    span_size: u32,
    begin: Begin,
    mut compressed: tokio::sync::mpsc::Receiver<Bytes>,
    to_describe: &SyncSender<Piece>,
) -> Result<(), LayerError> {
    let mut spans = Vec::new();
    let mut codec: Option<Codec> = None;
    let mut head: Vec<u8> = Vec::new();
    let mut outcome = Ok(());
    loop {
        let chunk = compressed.blocking_recv();
        let ended = chunk.is_none();
        if let Some(bytes) = &chunk
            && to_describe.send(Piece::Compressed(bytes.clone())).is_err()
        {
            return Ok(()); // The describing stage failed, and says why.
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
            None => codec.insert(begin(&input, span_size).map_err(|error| LayerError::Frame(digest, error))?),
        };
        if outcome.is_ok() {
            outcome = codec.push(&input, &mut spans);
        }
        if ended && outcome.is_ok() {
            outcome = codec.finish(&mut spans);
        }
        if let Err(CodecError::Zstd(error @ ZstdError::FrameTooLarge { .. })) = outcome {
            // Nothing in the rest of the layer can change that.
            return Err(CodecError::Zstd(error).of_layer(digest, &media_type));
        }
        for span in spans.drain(..) {
            if to_describe.send(Piece::Span(span)).is_err() {
                return Ok(());
            }
        }
        if ended {
            return outcome.map_err(|error| error.of_layer(digest, &media_type));
        }
    }
}
