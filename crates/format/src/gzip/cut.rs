//! Where to cut spans: what it costs to start one at a block, in window bytes that must be kept.
use super::{
    WINDOW,
    inflate::{Block, Matches},
    member::Watch,
};
use crate::span::BLOCK;
use std::collections::VecDeque;

/// Bytes of a block of the device; cuts lie between blocks.
pub const GRID: usize = BLOCK as usize;

/// Bytes looked at side by side.
const LANES: usize = 32;

/// What a span costs besides window bytes: its digest, its place in the span table, the codes of its block.
const FIXED_COST: usize = 200;

/// A block boundary of the device, and how to start decoding there.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Bit of the blob at which the decoder starts.
    pub bit: u64,
    /// Bytes to skip: the symbol that starts at `bit` may straddle the boundary.
    pub skip: u16,
    /// Decoder state; `None` before a member.
    pub state: Option<(Block, bool)>,
    /// Byte of the blob after all those that the span before the boundary needs.
    pub end: u64,
}

/// Remembers, while output is decoded into a buffer, where it could be cut, and at what cost.
///
/// For each byte of the buffer it knows the last block of which a match refers to that byte. The buffer holds whole
/// blocks, so it can slide by whole blocks; block numbers are kept modulo 256, which is plenty, since a match reaches
/// back 8 blocks at most.
pub struct Trail {
    last: Vec<u8>,
    /// Number of the buffer's first block.
    first: u8,
    /// Boundaries, one at the end of each block from the span's start on.
    marks: VecDeque<Mark>,
    /// Buffer position of the first mark.
    origin: usize,
    /// The member or block that started last.
    begun: Option<Begun>,
    /// Bits of the blob before the input at hand.
    pub base_bits: u64,
}

#[derive(Clone, Copy)]
struct Begun {
    bit: u64,
    at: usize,
    member: bool,
}

impl Trail {
    /// The trail of a buffer of `size` bytes in which the device starts at position `origin`.
    pub fn new(size: usize, origin: usize) -> Self {
        let mut trail =
            Self { last: vec![0; size], first: 0, marks: VecDeque::new(), origin, begun: None, base_bits: 0 };
        trail.marks.push_back(Mark { bit: 0, skip: 0, state: None, end: 0 });
        trail.enter(origin);
        trail
    }

    /// Number of the block at buffer position `at`.
    fn block_at(&self, at: usize) -> u8 {
        self.first.wrapping_add((at / GRID) as u8)
    }

    /// Output is about to go into the block that starts at `at`.
    fn enter(&mut self, at: usize) {
        let number = self.block_at(at);
        let end = (at + GRID).min(self.last.len());
        self.last[at..end].fill(number);
    }

    /// The output has reached the boundary at `at`; the decoder can resume at `bit`, `skip` bytes before it, in the
    /// given state; the input is read up to bit `end`.
    pub fn reached(&mut self, at: usize, bit: usize, skip: usize, state: (&Block, bool), end: usize) {
        let (bit, state) = match self.begun {
            // If nothing has come out since a member or block started, that is the place to resume at.
            Some(begun) if begun.at + skip == at => (begun.bit, state_of(begun)),
            _ => (self.base_bits + bit as u64, Some((state.0.clone(), state.1))),
        };
        let end = (self.base_bits + end as u64).div_ceil(8);
        self.marks.push_back(Mark { bit, skip: skip as u16, state, end });
        self.enter(at);
    }

    /// A member or block starts.
    fn begin(&mut self, bit: usize, at: usize, member: bool) {
        // Of blocks that start at the same place the first counts, so that a decoder gets there by reading the end of
        // the block before it. A member needs no decoder to get there.
        if !member && self.begun.is_some_and(|begun| begun.at == at) {
            return;
        }
        let begun = Begun { bit: self.base_bits + bit as u64, at, member };
        self.begun = Some(begun);
        if at == self.origin + (self.marks.len() - 1) * GRID
            && let Some(mark) = self.marks.back_mut()
        {
            // Nothing has come out since this boundary, so resuming here is as good, and takes less state.
            *mark = Mark { bit: begun.bit, skip: 0, state: state_of(begun), end: begun.bit.div_ceil(8) };
        }
    }

    /// The boundary `blocks` blocks after the span's start.
    pub fn mark(&self, blocks: usize) -> Option<&Mark> {
        self.marks.get(blocks)
    }

    /// Whether the byte at `at` is referred to from `boundary` on. True only if that lies after `at`.
    pub fn crosses(&self, at: usize, boundary: usize) -> bool {
        let own = self.block_at(at);
        self.last[at].wrapping_sub(own) >= self.block_at(boundary).wrapping_sub(own)
    }

    /// Bytes before `boundary` that are referred to from there on and aren't zero.
    fn cost(&self, bytes: &[u8], boundary: usize) -> usize {
        let number = self.block_at(boundary);
        let start = boundary - (WINDOW + GRID);
        let (last, bytes) = (&self.last[start..boundary], &bytes[start..boundary]);
        let mut cost = 0;
        for (i, (last, bytes)) in last.chunks_exact(GRID).zip(bytes.chunks_exact(GRID)).enumerate() {
            let own = number.wrapping_sub((WINDOW / GRID + 1 - i) as u8);
            let least = number.wrapping_sub(own);
            // 128 rounds of lanes that count to 255: the compiler makes vector instructions of it.
            let mut lanes = [0u8; LANES];
            for (last, bytes) in last.chunks_exact(LANES).zip(bytes.chunks_exact(LANES)) {
                for ((lane, last), byte) in lanes.iter_mut().zip(last).zip(bytes) {
                    *lane += u8::from((last.wrapping_sub(own) >= least) & (*byte != 0));
                }
            }
            cost += lanes.iter().map(|&lane| usize::from(lane)).sum::<usize>();
        }
        cost
    }

    /// Chooses the number of blocks of the span that starts at the first mark, from those in `range`.
    pub fn choose(&self, bytes: &[u8], range: std::ops::RangeInclusive<usize>) -> usize {
        let longest = *range.end();
        let mut best = (u64::MAX, longest);
        for blocks in range.rev() {
            let cost = if self.mark(blocks).is_some_and(|mark| mark.state.is_none()) {
                0
            } else {
                self.cost(bytes, self.origin + blocks * GRID)
            };
            let rate = ((cost + FIXED_COST) as u64 * 65536) / blocks as u64;
            if rate < best.0 {
                best = (rate, blocks);
            }
        }
        best.1
    }

    /// Slides the buffer down by `blocks` blocks; `used` bytes of it are in use.
    pub fn slide(&mut self, blocks: usize, used: usize) {
        let shift = blocks * GRID;
        let end = used.next_multiple_of(GRID).min(self.last.len());
        self.last.copy_within(shift..end, 0);
        self.first = self.first.wrapping_add(blocks as u8);
        self.marks.drain(..blocks);
        self.begun = self.begun.and_then(|begun| Some(Begun { at: begun.at.checked_sub(shift)?, ..begun }));
        if used.is_multiple_of(GRID) {
            self.enter(used - shift);
        }
    }
}

fn state_of(begun: Begun) -> Option<(Block, bool)> {
    (!begun.member).then_some((Block::Header, false))
}

impl Matches for Trail {
    #[inline]
    fn matched(&mut self, source: usize, length: usize, end: usize) {
        let number = self.block_at(end - 1);
        self.last[source..source + length].fill(number);
    }
}

impl Watch for Trail {
    fn member(&mut self, bit: usize, at: usize) {
        self.begin(bit, at, true);
    }

    fn block(&mut self, bit: usize, at: usize) {
        self.begin(bit, at, false);
    }
}
