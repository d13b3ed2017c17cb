//! Choosing the sequences of a frame: the matches that its layer's own compressor found, and what these leave to be found.
//!
//! Deflate reaches back 32 KiB and a frame reaches back to its start, so the matches of a gzip layer fit its frames, but
//! for those that reach beyond the start. Looking for matches is most of the work of compressing; so they are taken over.
//! What Deflate can't have is looked for in a cheap way: matches from farther away, with one look into one table, and
//! such as repeat the last distance, which zstd (RFC 8878, section 3.1.1.5) has short codes for.

use super::pack::SMALL;
use crate::parse::{Match, SHORTEST};
use crate::zstd::Sequence;

/// Chooses the sequences of frames, one after another; keeps its table.
pub(super) struct Sequencer {
    /// By hash: where in the frame the bytes were last seen, plus 1.
    table: Box<[u32; SLOTS]>,
    sequences: Vec<Sequence>,
}

/// Slots of the table at most, as a power of two: it is to stay in a processor's own cache.
const TABLE: u32 = 16;
const SLOTS: usize = 1 << TABLE;
/// Bytes that are hashed, and so the shortest match that is found, in small frames and in large ones.
/// What small frames have lost of Deflate's matches, which reached into other files, was mostly short.
const HASHED: [u32; 2] = [5, 8];
/// Within a match, every so manieth place is put into the table.
const STEP: usize = 8;
/// Shortest match that repeats the last distance.
const REPEATED: usize = 4;
/// A match of Deflate with so many bytes is taken without a look for a longer one.
const ENOUGH: usize = 32;
/// Bytes that are compared at once.
const WORD: usize = 8;

/// A match in a frame: first byte, bytes, distance.
#[derive(Clone, Copy)]
struct Found {
    at: usize,
    len: usize,
    distance: usize,
}

impl Sequencer {
    /// A sequencer.
    pub fn new() -> Self {
        Self { table: Box::new([0; SLOTS]), sequences: Vec::new() }
    }

    /// Sequences for `frame`. `hints` are matches in order, counted from a place `base` bytes before the frame; whether
    /// they are right is looked at.
    pub fn sequences(&mut self, frame: &[u8], hints: &[Match], base: usize) -> &[Sequence] {
        let log = (usize::BITS - frame.len().leading_zeros()).clamp(8, TABLE);
        self.table[..1 << log].fill(0);
        let hashed = HASHED[usize::from(frame.len() > SMALL)];
        let seen = Seen { table: &mut self.table, shift: 64 - log, drop: 64 - 8 * hashed };
        self.sequences.clear();
        let search = Search { frame, seen, out: &mut self.sequences, at: 0, literals: 0, repeated: 0 };
        search.run(Hints { hints: hints.iter(), next: None, base, end: frame.len() });
        &self.sequences
    }
}

/// Where bytes were last seen.
struct Seen<'a> {
    table: &'a mut [u32; SLOTS],
    shift: u32,
    /// Bits of a word that aren't hashed.
    drop: u32,
}

impl Seen<'_> {
    #[inline(always)]
    fn slot(&mut self, word: u64) -> &mut u32 {
        // The golden ratio's multiplier.
        let hash = (word << self.drop).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift;
        &mut self.table[hash as usize % SLOTS]
    }

    /// Where the same was seen before `at`; now it was seen there.
    #[inline(always)]
    fn swap(&mut self, word: u64, at: usize) -> Option<usize> {
        let slot = self.slot(word);
        let before = std::mem::replace(slot, at as u32 + 1);
        before.checked_sub(1).map(|before| before as usize)
    }
}

/// Hints within a frame.
struct Hints<'a> {
    hints: std::slice::Iter<'a, Match>,
    /// The hint at hand: first byte and end in the frame, distance.
    next: Option<(usize, usize, usize)>,
    base: usize,
    end: usize,
}

impl Hints<'_> {
    /// What is left at `at` or later of the first hint that is long enough and refers to the frame.
    #[inline]
    fn after(&mut self, at: usize) -> Option<Found> {
        loop {
            let (start, end, distance) = match self.next {
                Some(hint) => hint,
                None => {
                    let hint = self.hints.next()?;
                    let start = (hint.at as usize).checked_sub(self.base)?;
                    let end = (start + usize::from(hint.len)).min(self.end);
                    *self.next.insert((start, end, hint.distance.into()))
                }
            };
            let from = start.max(at);
            if from + SHORTEST <= end && distance <= from && distance > 0 {
                return Some(Found { at: from, len: end - from, distance });
            }
            self.next = None;
        }
    }
}

/// The word at `at`, if so much is left.
#[inline(always)]
fn word(frame: &[u8], at: usize) -> Option<u64> {
    let bytes = frame.get(at..at + WORD)?;
    Some(u64::from_le_bytes(*bytes.first_chunk()?))
}

/// How many bytes at `before` and at `at`, which comes later, are the same.
#[inline(always)]
fn same(frame: &[u8], before: usize, at: usize) -> usize {
    let mut len = 0;
    while let (Some(one), Some(other)) = (word(frame, at + len), word(frame, before + len)) {
        let differs = one ^ other;
        if differs != 0 {
            return len + differs.trailing_zeros() as usize / 8;
        }
        len += WORD;
    }
    while at + len < frame.len() && frame[before + len] == frame[at + len] {
        len += 1;
    }
    len
}

/// The search through a frame.
struct Search<'a> {
    frame: &'a [u8],
    seen: Seen<'a>,
    out: &'a mut Vec<Sequence>,
    /// How far it has come.
    at: usize,
    /// Where the literals start that no sequence has.
    literals: usize,
    /// The last distance.
    repeated: usize,
}

impl Search<'_> {
    fn run(mut self, mut hints: Hints<'_>) {
        loop {
            let hint = hints.after(self.at);
            let until = hint.map_or(self.frame.len(), |hint| hint.at);
            if let Some(found) = self.look(until) {
                self.take(found);
                continue;
            }
            let Some(hint) = hint else { return };
            self.at = hint.at;
            hints.next = None;
            let len = same(self.frame, hint.at - hint.distance, hint.at);
            if len >= SHORTEST {
                let hint = self.longer(Found { len, ..hint });
                let other =
                    if len < ENOUGH { word(self.frame, self.at).and_then(|word| self.seen_at(word)) } else { None };
                self.take(other.filter(|other| other.len > hint.len).unwrap_or(hint));
            }
        }
    }

    /// A match with what is the same before it, as far as there are literals.
    #[inline]
    fn longer(&self, Found { mut at, mut len, distance }: Found) -> Found {
        while at > self.literals && at > distance && self.frame[at - 1] == self.frame[at - 1 - distance] {
            (at, len) = (at - 1, len + 1);
        }
        Found { at, len, distance }
    }

    /// The match here that the table knows for this word.
    #[inline(always)]
    fn seen_at(&mut self, here: u64) -> Option<Found> {
        let before = self.seen.swap(here, self.at)?;
        let differs = word(self.frame, before)? ^ here;
        if differs << self.seen.drop != 0 {
            return None;
        }
        let len = match differs {
            0 => WORD + same(self.frame, before + WORD, self.at + WORD),
            _ => differs.trailing_zeros() as usize / 8,
        };
        Some(self.longer(Found { at: self.at, len, distance: self.at - before }))
    }

    /// The first match before `until` that no hint has told. If there is none, all up to there are literals.
    #[inline]
    fn look(&mut self, until: usize) -> Option<Found> {
        while self.at < until {
            let here = word(self.frame, self.at)?;
            // Right after a match its distance fits no more: that would have gone on.
            if self.at > self.literals && self.repeated > 0 && self.repeated <= self.at {
                let before = word(self.frame, self.at - self.repeated)?;
                if before as u32 == here as u32 {
                    let len = REPEATED + same(self.frame, self.at + REPEATED - self.repeated, self.at + REPEATED);
                    return Some(Found { at: self.at, len, distance: self.repeated });
                }
            }
            let found = self.seen_at(here);
            if found.is_some() {
                return found;
            }
            self.at += 1;
        }
        None
    }

    #[inline]
    fn take(&mut self, Found { at, len, distance }: Found) {
        let literals = (at - self.literals) as u32;
        self.out.push(Sequence { literals, len: len as u32, distance: distance as u32 });
        let end = at + len;
        for place in (self.at + 1..end).step_by(STEP) {
            let Some(word) = word(self.frame, place) else { break };
            *self.seen.slot(word) = place as u32 + 1;
        }
        (self.at, self.literals, self.repeated) = (end, end, distance);
    }
}
