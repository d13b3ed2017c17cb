//! The stage that hashes a layer, walks its tar, and keeps its spans and checkpoints.
use super::layer::{LayerError, Piece};
use super::parts::Checkpoints;
use clipper_format::Digest;
use clipper_format::checkpoints::CheckpointGroups;
use clipper_format::chunked::{Cutter, Group};
use clipper_format::gzip::{IndexedSpan, SpanCheckpoint};
use clipper_format::index::PackedTree;
use clipper_format::span::Span;
use clipper_format::tar::{LayerWalker, Limits};
use sha2::{Digest as _, Sha256};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use tokio::sync::mpsc::Sender;

/// The zstd level of groups of gzip checkpoints.
const CHECKPOINT_LEVEL: i32 = 12;

/// The describing stage.
pub struct Describing {
    walker: LayerWalker,
    packing: Option<Packing>,
    spans: Vec<Span>,
    checkpoints: CheckpointGroups,
    /// The span at hand, and its part.
    span: Option<Open>,
    part: Option<Open>,
    /// Parts of long spans, and their checkpoints by their first device bytes.
    parts: Vec<Span>,
    own: Checkpoints,
}

/// A span of which some bytes have come.
struct Open {
    span: IndexedSpan,
    hash: blake3::Hasher,
    len: u32,
}

impl Open {
    fn new(span: IndexedSpan) -> Self {
        Self { span, hash: blake3::Hasher::new(), len: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.len += bytes.len() as u32;
    }

    fn close(self) -> (Span, Option<SpanCheckpoint>) {
        let IndexedSpan { device_offset, source_offset, source_len, start, checkpoint, .. } = self.span;
        let blake3 = *self.hash.finalize().as_bytes();
        (Span { device_offset, device_len: self.len, source_offset, source_len, start, blake3 }, checkpoint)
    }
}

/// Where what is to be repacked goes.
pub struct Packing {
    /// Cuts the device bytes into groups.
    pub cutter: Cutter,
    /// Takes the groups.
    pub groups: Sender<Group>,
}

/// What it found.
pub struct Described {
    /// The layer's tree.
    pub tree: PackedTree,
    /// The spans.
    pub spans: Vec<Span>,
    /// The layer's checkpoints blob.
    pub checkpoints: Vec<u8>,
    /// Where the groups of checkpoints are in it.
    pub groups: Vec<Range<u64>>,
    /// The parts of long spans, and their own checkpoints, encoded, by their first device bytes; if there are any.
    pub parts: Option<(Vec<Span>, Checkpoints)>,
}

impl Describing {
    /// A stage at the start of a layer, which is also repacked if there is a `packing`.
    pub fn new(packing: Option<Packing>) -> Self {
        let limits = Limits::default();
        let walker = if packing.is_some() { LayerWalker::listing(limits) } else { LayerWalker::new(limits) };
        Self {
            walker,
            packing,
            spans: Vec::new(),
            checkpoints: CheckpointGroups::new(CHECKPOINT_LEVEL),
            span: None,
            part: None,
            parts: Vec::new(),
            own: Checkpoints::new(),
        }
    }

    /// Takes everything that the inflating stage sends, until that ends, and gives back buffers.
    ///
    /// # Errors
    /// The layer isn't what its digest and diff ID say, isn't a tar, or nobody takes its groups any more.
    pub fn run(
        mut self,
        digest: Digest,
        diff_id: Digest,
        pieces: &Receiver<Piece>,
        used: &std::sync::mpsc::Sender<Vec<u8>>,
    ) -> Result<Described, LayerError> {
        let (mut source_hash, mut device_hash) = (Sha256::new(), Sha256::new());
        let mut walked = Ok(());
        while let Ok(piece) = pieces.recv() {
            // What is held makes place when it has been hashed.
            let (mut bytes, _held, again) = match piece {
                Piece::Compressed(bytes, _held) => {
                    source_hash.update(&bytes);
                    continue;
                }
                Piece::Part(part) => {
                    self.close_part();
                    self.part = Some(Open::new(part));
                    continue;
                }
                Piece::Span(mut span, held) => {
                    self.close();
                    let bytes = std::mem::take(&mut span.bytes);
                    if let (Some(Packing { cutter, .. }), Some(parse)) = (&mut self.packing, span.parse.take()) {
                        cutter.learn(parse);
                    }
                    self.span = Some(Open::new(span));
                    (bytes, held, false)
                }
                Piece::More(bytes, held) => (bytes, held, true),
            };
            device_hash.update(&bytes);
            if walked.is_ok() {
                // Go on hashing after a complaint: a wrong digest explains it better.
                walked = self.walker.push(&bytes);
            }
            if walked.is_ok() {
                self.pack(&bytes).ok_or(LayerError::Stopped(digest))?;
            }
            self.span.iter_mut().chain(&mut self.part).for_each(|open| open.push(&bytes));
            if again {
                bytes.clear();
                // Whoever needs none any more is gone.
                let _ = used.send(bytes);
            }
        }
        self.close();
        let actual = Digest::from_bytes(source_hash.finalize().into());
        if actual != digest {
            return Err(LayerError::Digest(digest, actual));
        }
        if let Err(error) = walked {
            return Err(LayerError::Tar(digest, error));
        }
        self.finish_packing().ok_or(LayerError::Stopped(digest))?;
        let tree = self.walker.finish().map_err(|e| LayerError::Tar(digest, e))?;
        let actual = Digest::from_bytes(device_hash.finalize().into());
        if actual != diff_id {
            return Err(LayerError::DiffId { layer: digest, expected: diff_id, actual });
        }
        let tree = PackedTree::pack(&tree).map_err(|e| LayerError::Tree(digest, e))?;
        let (checkpoints, groups) = self.checkpoints.finish();
        let parts = (!self.parts.is_empty()).then_some((self.parts, self.own));
        Ok(Described { tree, spans: self.spans, checkpoints, groups, parts })
    }

    /// The span at hand has ended.
    fn close(&mut self) {
        self.close_part();
        if let Some(open) = self.span.take() {
            let (span, checkpoint) = open.close();
            self.spans.push(span);
            if let Some(checkpoint) = checkpoint {
                self.checkpoints.push(checkpoint);
            }
        }
    }

    fn close_part(&mut self) {
        if let Some(open) = self.part.take() {
            let (span, checkpoint) = open.close();
            if let Some(SpanCheckpoint::Zstd(encoded)) = checkpoint {
                self.own.insert(span.device_offset, encoded);
            }
            self.parts.push(span);
        }
    }

    /// Sends on what can be compressed. `None` if nobody takes it.
    fn pack(&mut self, bytes: &[u8]) -> Option<()> {
        let Some(Packing { cutter, groups }) = &mut self.packing else { return Some(()) };
        let mut cut = Vec::new();
        cutter.push(bytes, self.walker.take_listed(), &mut cut);
        cut.into_iter().try_for_each(|group| groups.blocking_send(group).ok())
    }

    fn finish_packing(&mut self) -> Option<()> {
        let Some(Packing { cutter, groups }) = self.packing.take() else { return Some(()) };
        let mut cut = Vec::new();
        cutter.finish(&mut cut);
        cut.into_iter().try_for_each(|group| groups.blocking_send(group).ok())
    }
}
