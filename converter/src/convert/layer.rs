//! Indexing one layer: a pipeline from the blob's bytes to its tree, spans and checkpoints.
use crate::report::Task;
use bytes::Bytes;
use clipper_format::Digest;
use clipper_format::gzip::{self, CHECKPOINTS_PER_GROUP, Checkpoint, IndexOptions, IndexedSpan};
use clipper_format::index::{LayerIndex, PackError, PackedTree};
use clipper_format::span::{Span, SpanTable};
use clipper_format::stored::StoredIndexer;
use clipper_format::tar::{LayerWalker, Limits};
use clipper_format::zstd::{self, ZstdError};
use clipper_registry::Blob;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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
    /// It isn't a valid tar.
    #[error("layer {0}: {1}")]
    Tar(Digest, clipper_format::tar::TarError),
    /// Its tree can't be written.
    #[error("layer {0}: {1}")]
    Tree(Digest, PackError),
    /// Its spans don't fit its blob: a mistake of ours.
    #[error("layer {0}: {1}")]
    Spans(Digest, clipper_format::span::SpanTableError),
    /// It can't be read.
    #[error(transparent)]
    Registry(#[from] clipper_registry::RegistryError),
    /// A thread of the pipeline died.
    #[error("layer {0}: indexing stopped unexpectedly")]
    Stopped(Digest),
}

/// What travels to the thread that hashes and describes.
enum Piece {
    Compressed(Bytes),
    Span(IndexedSpan),
}

/// The zstd level of checkpoint groups.
const CHECKPOINT_LEVEL: i32 = 12;
/// Pieces that may wait between two stages; spans are at most a span size each, so this bounds memory.
const QUEUE: usize = 6;

/// Indexes a layer as its bytes arrive. Three stages run side by side: the network; inflating, which also chooses
/// spans and checkpoints; and hashing, which also walks the tar.
pub async fn index(input: LayerInput, span_size: u32, task: &Task) -> Result<IndexedLayer, LayerError> {
    let begun = Instant::now();
    let (digest, size) = (input.blob.digest(), input.blob.size());
    let mut stream = input.blob.read(0..size).await?;
    let (to_inflate, compressed) = tokio::sync::mpsc::channel::<Bytes>(QUEUE);
    let (to_describe, pieces) = sync_channel::<Piece>(QUEUE);

    let media_type = input.media_type.clone();
    let inflate = tokio::task::spawn_blocking(move || inflate(digest, media_type, span_size, compressed, &to_describe));
    let describe = tokio::task::spawn_blocking(move || describe(digest, size, input.diff_id, &pieces));

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
    let described = describe.await.map_err(|_| LayerError::Stopped(digest))?;
    read?; // An aborted read makes the later stages fail as if the layer were truncated: tell the cause.
    match (inflated, described) {
        (Err(error @ LayerError::ZstdFrame { .. }), _) => Err(error),
        // Bytes that aren't the layer's explain every other complaint about them.
        (_, Err(error @ LayerError::Digest(..))) | (Err(error), _) | (Ok(()), Err(error)) => Err(error),
        (Ok(()), Ok(mut layer)) => {
            layer.took = Some(begun.elapsed());
            Ok(layer)
        }
    }
}

enum Codec {
    Gzip(Box<gzip::Indexer>),
    Zstd(Box<zstd::Indexer>),
    Stored(StoredIndexer),
}

/// Why a codec failed.
enum CodecError {
    Gzip(gzip::GzipError),
    Zstd(ZstdError),
}

impl CodecError {
    fn of_layer(self, layer: Digest, media_type: &str) -> LayerError {
        match self {
            Self::Gzip(error) => LayerError::Gzip(layer, error),
            Self::Zstd(ZstdError::FrameTooLarge { .. }) => {
                LayerError::ZstdFrame { layer, media_type: media_type.into() }
            }
            Self::Zstd(error) => LayerError::Zstd(layer, error),
        }
    }
}

/// Bytes that tell a compression format. containerd, too, goes by them and not by the media type
/// (archive/compression/compression.go, DetectCompression).
const MAGIC: usize = 4;

impl Codec {
    /// The codec of a layer that begins with `head`.
    fn of(head: &[u8], span_size: u32) -> Self {
        let options = IndexOptions { span_size };
        match head {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Self::Zstd(Box::new(zstd::Indexer::new(options)))
            }
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(gzip::Indexer::new(options))),
            _ => Self::Stored(StoredIndexer::new(options)),
        }
    }

    fn push(&mut self, input: &[u8], spans: &mut Vec<IndexedSpan>) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => indexer.push(input, spans).map_err(CodecError::Gzip),
            Self::Zstd(indexer) => indexer.push(input, spans).map_err(CodecError::Zstd),
            Self::Stored(indexer) => {
                indexer.push(input, spans);
                Ok(())
            }
        }
    }

    fn finish(&mut self, spans: &mut Vec<IndexedSpan>) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => indexer.finish(spans).map_err(CodecError::Gzip),
            Self::Zstd(indexer) => indexer.finish(spans).map_err(CodecError::Zstd),
            Self::Stored(indexer) => {
                indexer.finish(spans);
                Ok(())
            }
        }
    }
}

/// The inflating stage. After an error it still passes the compressed bytes on to be hashed: if they turn out not to
/// be the layer's own, that is what the user must hear.
fn inflate(
    digest: Digest,
    media_type: String,
    span_size: u32,
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
        let codec = codec.get_or_insert_with(|| Codec::of(&input, span_size));
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

fn describe(
    digest: Digest,
    source_size: u64,
    diff_id: Digest,
    pieces: &Receiver<Piece>,
) -> Result<IndexedLayer, LayerError> {
    let (mut source_hash, mut device_hash) = (Sha256::new(), Sha256::new());
    let mut walker = LayerWalker::new(Limits::default());
    let mut walked = Ok(());
    let mut spans = Vec::new();
    let mut group: Vec<Checkpoint> = Vec::new();
    let (mut checkpoints, mut groups) = (Vec::new(), Vec::new());
    let mut flush = |group: &mut Vec<Checkpoint>| -> Result<(), LayerError> {
        let start = checkpoints.len() as u64;
        checkpoints.extend_from_slice(&gzip::encode_group(group, CHECKPOINT_LEVEL));
        groups.push(start..checkpoints.len() as u64);
        group.clear();
        Ok(())
    };
    while let Ok(piece) = pieces.recv() {
        match piece {
            Piece::Compressed(bytes) => source_hash.update(&bytes),
            Piece::Span(span) => {
                device_hash.update(&span.bytes);
                if walked.is_ok() {
                    // Go on hashing after a complaint: a wrong digest explains it better.
                    walked = walker.push(&span.bytes);
                }
                spans.push(Span {
                    device_offset: span.device_offset,
                    device_len: span.bytes.len() as u32,
                    source_offset: span.source_offset,
                    source_len: span.source_len,
                    start: span.start,
                    blake3: *blake3::hash(&span.bytes).as_bytes(),
                });
                if let Some(checkpoint) = span.checkpoint {
                    group.push(checkpoint);
                    if group.len() == CHECKPOINTS_PER_GROUP {
                        flush(&mut group)?;
                    }
                }
            }
        }
    }
    if !group.is_empty() {
        flush(&mut group)?;
    }
    let actual = Digest::from_bytes(source_hash.finalize().into());
    if actual != digest {
        return Err(LayerError::Digest(digest, actual));
    }
    let tree = walked.and_then(|()| walker.finish()).map_err(|e| LayerError::Tar(digest, e))?;
    let actual = Digest::from_bytes(device_hash.finalize().into());
    if actual != diff_id {
        return Err(LayerError::DiffId { layer: digest, expected: diff_id, actual });
    }
    let index = LayerIndex {
        digest,
        diff_id,
        source_size,
        tree: PackedTree::pack(&tree).map_err(|e| LayerError::Tree(digest, e))?,
        spans: SpanTable::new(spans, source_size).map_err(|e| LayerError::Spans(digest, e))?,
        checkpoint_groups: groups,
    };
    Ok(IndexedLayer { index, checkpoints, took: None })
}
