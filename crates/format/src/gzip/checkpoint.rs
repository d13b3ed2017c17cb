//! A checkpoint: the state of a Deflate decoder inside a stream, with the window bytes that the span after it needs.
use super::{WINDOW, inflate::Block};

/// What a decoder must know to start inside a gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where in the Deflate stream it is.
    pub(super) block: Block,
    /// Whether that block is the last of its stream.
    pub(super) last: bool,
    /// Which bytes of the window are kept: each run is the bytes left out before it, and its own bytes, from the
    /// oldest byte of the window on.
    pub(super) runs: Vec<Run>,
    /// The bytes of all runs.
    pub(super) bytes: Vec<u8>,
}

/// A run of window bytes that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Bytes left out before it.
    pub gap: u16,
    /// Its own bytes.
    pub length: u16,
}

/// Zeros in a row that are left out: they come for free, but a further run costs about two bytes.
const ZEROS: usize = 4;
/// Unneeded bytes between two runs that are kept nevertheless, because joining the runs is cheaper.
const JOINED: usize = 2;

impl Checkpoint {
    /// A checkpoint that keeps those bytes of `window` for which `needed` says so. `window` ends with the byte before
    /// the one the decoder resumes at and is at most 32 KiB long.
    pub(super) fn new(block: Block, last: bool, window: &[u8], needed: impl Fn(usize) -> bool) -> Self {
        let mut checkpoint = Self { block, last, runs: Vec::new(), bytes: Vec::new() };
        let missing = WINDOW - window.len().min(WINDOW);
        let mut end = 0;
        let mut at = 0;
        while at < window.len() {
            if !needed(at) || window[at] == 0 {
                at += 1;
                continue;
            }
            // A run goes on over needed bytes, short runs of zeros and short gaps.
            let start = at;
            let mut stop = at + 1;
            let mut scan = stop;
            while scan < window.len() {
                if needed(scan) && window[scan] != 0 {
                    stop = scan + 1;
                } else if scan + 1 - stop > if needed(scan) { ZEROS } else { JOINED } {
                    break;
                }
                scan += 1;
            }
            let before = if end == 0 { missing } else { 0 };
            checkpoint.runs.push(Run { gap: (before + start - end) as u16, length: (stop - start) as u16 });
            checkpoint.bytes.extend_from_slice(&window[start..stop]);
            end = stop;
            at = stop;
        }
        checkpoint
    }

    /// Writes the bytes that are kept to their places in a window of zeros.
    pub(super) fn fill(&self, window: &mut [u8; WINDOW]) {
        let mut at = 0;
        let mut bytes = &self.bytes[..];
        for run in &self.runs {
            at += usize::from(run.gap);
            let (kept, rest) = bytes.split_at(usize::from(run.length).min(bytes.len()));
            let Some(target) = window.get_mut(at..at + kept.len()) else { return };
            target.copy_from_slice(kept);
            at += kept.len();
            bytes = rest;
        }
    }

    /// Window bytes that are kept.
    pub fn window_bytes(&self) -> usize {
        self.bytes.len()
    }
}
