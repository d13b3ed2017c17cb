//! The stage that hashes a layer, walks its tar, and keeps its spans and checkpoints.
use super::layer::{LayerError, Piece};
use clipper_format::Digest;
use clipper_format::chunked::{Cutter, Group};
use clipper_format::gzip::{self, CHECKPOINTS_PER_GROUP, Checkpoint, IndexedSpan};
use clipper_format::index::PackedTree;
use clipper_format::span::Span;
use clipper_format::tar::{LayerWalker, Limits};
use sha2::{Digest as _, Sha256};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use tokio::sync::mpsc::Sender;

/// The zstd level of checkpoint groups.
const CHECKPOINT_LEVEL: i32 = 12;

/// The describing stage.
pub struct Describing {
    walker: LayerWalker,
    packing: Option<Packing>,
    spans: Vec<Span>,
    group: Vec<Checkpoint>,
    checkpoints: Vec<u8>,
    groups: Vec<Range<u64>>,
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
    /// The spans; without meaning if the layer can't be indexed.
    pub spans: Vec<Span>,
    /// The layer's checkpoints blob.
    pub checkpoints: Vec<u8>,
    /// Where the groups of checkpoints are in it.
    pub groups: Vec<Range<u64>>,
}

impl Describing {
    /// A stage at the start of a layer, which is also repacked if there is a `packing`.
    pub fn new(packing: Option<Packing>) -> Self {
        let limits = Limits::default();
        let walker = if packing.is_some() { LayerWalker::listing(limits) } else { LayerWalker::new(limits) };
        Self { walker, packing, spans: Vec::new(), group: Vec::new(), checkpoints: Vec::new(), groups: Vec::new() }
    }

    /// Takes everything that the inflating stage sends, until that ends.
    ///
    /// # Errors
    /// The layer isn't what its digest and diff ID say, isn't a tar, or nobody takes its groups any more.
    pub fn run(mut self, digest: Digest, diff_id: Digest, pieces: &Receiver<Piece>) -> Result<Described, LayerError> {
        let (mut source_hash, mut device_hash) = (Sha256::new(), Sha256::new());
        let mut walked = Ok(());
        while let Ok(piece) = pieces.recv() {
            match piece {
                Piece::Compressed(bytes) => source_hash.update(&bytes),
                Piece::Span(span) => {
                    device_hash.update(&span.bytes);
                    if walked.is_ok() {
                        // Go on hashing after a complaint: a wrong digest explains it better.
                        walked = self.walker.push(&span.bytes);
                    }
                    if walked.is_ok() {
                        self.pack(&span.bytes).ok_or(LayerError::Stopped(digest))?;
                    }
                    self.span(span);
                }
            }
        }
        self.flush();
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
        Ok(Described { tree, spans: self.spans, checkpoints: self.checkpoints, groups: self.groups })
    }

    fn span(&mut self, span: IndexedSpan) {
        self.spans.push(span.to_span());
        if let Some(checkpoint) = span.checkpoint {
            self.group.push(checkpoint);
            if self.group.len() == CHECKPOINTS_PER_GROUP {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.group.is_empty() {
            return;
        }
        let start = self.checkpoints.len() as u64;
        self.checkpoints.extend_from_slice(&gzip::encode_group(&self.group, CHECKPOINT_LEVEL));
        self.groups.push(start..self.checkpoints.len() as u64);
        self.group.clear();
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
