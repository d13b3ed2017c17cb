//! What is in a file of a simulated disk: blocks, with holes between them, and what has changed since it was synced.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::Rng;
use rand::rngs::StdRng;

/// Bytes that are allocated together.
pub const BLOCK: u64 = 4096;
/// Bytes that a power cut takes or leaves together.
const SECTOR: u64 = 512;

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub size: u64,
    pub blocks: BTreeMap<u64, Vec<u8>>,
}

/// A change of a file.
#[derive(Clone, Debug)]
pub enum Change {
    Write(u64, Vec<u8>),
    Punch(Range<u64>),
    Size(u64),
}

impl Content {
    /// Makes a change. One that punches beyond the end, as fallocate(2) allows, doesn't change the size.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(offset, bytes) => {
                for (at, part) in pieces(*offset..offset + bytes.len() as u64, BLOCK) {
                    let block = self.blocks.entry(at / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
                    let (from, start) = ((at % BLOCK) as usize, (at - offset) as usize);
                    block[from..from + part].copy_from_slice(&bytes[start..start + part]);
                }
                self.size = self.size.max(offset + bytes.len() as u64);
            }
            Change::Punch(range) => {
                for (at, part) in pieces(range.clone(), BLOCK) {
                    if part as u64 == BLOCK {
                        self.blocks.remove(&(at / BLOCK));
                    } else if let Some(block) = self.blocks.get_mut(&(at / BLOCK)) {
                        block[(at % BLOCK) as usize..(at % BLOCK) as usize + part].fill(0);
                    }
                }
            }
            Change::Size(size) => {
                self.apply(&Change::Punch(*size..self.size.max(*size).next_multiple_of(BLOCK)));
                self.size = *size;
            }
        }
    }

    /// Makes those parts of a change that a power cut leaves: each with the probability `kept`.
    pub fn apply_torn(&mut self, change: &Change, kept: f64, rng: &mut StdRng) {
        match change {
            Change::Write(offset, bytes) => {
                for (at, part) in pieces(*offset..offset + bytes.len() as u64, SECTOR) {
                    if rng.random_bool(kept) {
                        let start = (at - offset) as usize;
                        self.apply(&Change::Write(at, bytes[start..start + part].to_vec()));
                    }
                }
            }
            Change::Punch(range) => {
                for (at, part) in pieces(range.clone(), BLOCK) {
                    if rng.random_bool(kept) {
                        self.apply(&Change::Punch(at..at + part as u64));
                    }
                }
            }
            Change::Size(_) => {
                if rng.random_bool(kept) {
                    self.apply(change);
                }
            }
        }
    }

    /// The bytes from `offset` on; none if the file ends before the last of them.
    pub fn read(&self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.size)?;
        let mut bytes = Vec::with_capacity(len);
        for (at, part) in pieces(offset..end, BLOCK) {
            let from = (at % BLOCK) as usize;
            match self.blocks.get(&(at / BLOCK)) {
                Some(block) => bytes.extend_from_slice(&block[from..from + part]),
                None => bytes.resize(bytes.len() + part, 0),
            }
        }
        Some(bytes)
    }

    /// Where data begin, or where a hole does, from `from` on.
    pub fn next(&self, from: u64, data: bool) -> Option<u64> {
        if from >= self.size {
            return None;
        }
        let wanted = |block: &u64| self.blocks.contains_key(block) == data;
        let found = (from / BLOCK..self.size.div_ceil(BLOCK)).find(wanted).map(|block| (block * BLOCK).max(from));
        found.or_else(|| (!data).then_some(self.size))
    }
}

/// A range cut at the multiples of `unit`: where each piece begins, and its bytes.
fn pieces(range: Range<u64>, unit: u64) -> impl Iterator<Item = (u64, usize)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let from = at;
        at = ((from / unit + 1) * unit).min(range.end);
        (from < range.end).then(|| (from, (at - from) as usize))
    })
}
