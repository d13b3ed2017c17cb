//! A layer's checkpoints as they stand in the checkpoints blob: in groups, each compressed alone.
use crate::gzip::{self, CHECKPOINTS_PER_GROUP, SpanCheckpoint};
use std::ops::Range;

/// Gathers the checkpoints of a layer, in the order of its spans.
pub struct CheckpointGroups {
    /// zstd level of groups of gzip checkpoints.
    level: i32,
    group: Vec<gzip::Checkpoint>,
    bytes: Vec<u8>,
    groups: Vec<Range<u64>>,
}

impl CheckpointGroups {
    /// None yet; those of gzip layers are compressed at this level.
    pub fn new(level: i32) -> Self {
        Self { level, group: Vec::new(), bytes: Vec::new(), groups: Vec::new() }
    }

    /// The next checkpoint.
    pub fn push(&mut self, checkpoint: SpanCheckpoint) {
        match checkpoint {
            SpanCheckpoint::Gzip(checkpoint) => {
                self.group.push(checkpoint);
                if self.group.len() == CHECKPOINTS_PER_GROUP {
                    self.flush();
                }
            }
            SpanCheckpoint::Zstd(encoded) => self.group(&encoded),
        }
    }

    /// The groups one after the other, and where each of them is.
    pub fn finish(mut self) -> (Vec<u8>, Vec<Range<u64>>) {
        self.flush();
        (self.bytes, self.groups)
    }

    fn flush(&mut self) {
        let group = std::mem::take(&mut self.group);
        if !group.is_empty() {
            self.group(&gzip::encode_group(&group, self.level));
        }
    }

    fn group(&mut self, encoded: &[u8]) {
        let start = self.bytes.len() as u64;
        self.bytes.extend_from_slice(encoded);
        self.groups.push(start..self.bytes.len() as u64);
    }
}
