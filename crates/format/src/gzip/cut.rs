//! Where to cut spans: what it costs to start one at a block, in window bytes that must be kept.
use super::{WINDOW, bits::Matches, inflate::Block, member::Watch};
use crate::span::{BLOCK, MAX_SKIP};
use std::collections::VecDeque;

/// Bytes of a block of the device; cuts lie between blocks.
pub const GRID: usize = BLOCK as usize;

/// Bytes looked at side by side.
const LANES: usize = 32;

/// What a span costs besides window bytes: its digest, its place in the span table, the codes of its block.
const FIXED_COST: usize = 200;
/// The same for a span that starts with a member and so needs no checkpoint.
const MEMBER_COST: usize = 50;
/// A span starts with its member, however long that is, if this part of the longest span is all that is in between.
const NEAR: u64 = 8;
/// Decoding so many bytes in vain, each time the span is wanted, is worth a byte in the index.
const SKIPPED_PER_COST: usize = 64;

/// The state of a decoder before a block.
const HEADER: (Block, bool) = (Block::Header, false);

/// A block boundary of the device, and how to start decoding there.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Bit of the blob at which the decoder starts.
    pub bit: u64,
    /// Bytes to skip: the symbol that starts at `bit` may straddle the boundary.
    pub skip: u16,
    /// Decoder state. It means nothing at a member's start.
    pub state: (Block, bool),
    /// Byte of the blob after all those that the span before the boundary needs.
    pub end: u64,
    /// Bit of the blob at which the member starts that goes on at the boundary.
    pub member: u64,
    /// Bytes of that member before the boundary.
    pub inside: u64,
    /// All bytes of that member, once it has ended.
    pub member_len: Option<u64>,
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
    /// Buffer position of the first mark, where the span at hand starts.
    origin: usize,
    /// Fewest and most blocks that a span gets, unless the device ends.
    least: usize,
    most: usize,
    /// Where a span of the fewest blocks ends: references from before don't cross any possible cut.
    active: usize,
    /// The member or block that started last.
    begun: Option<Begun>,
    /// Where the member at hand starts: bit of the blob, byte of the device.
    member: (u64, u64),
    /// Device byte of the first mark.
    device: u64,
    /// Bits of the blob before the input at hand.
    pub base_bits: u64,
}

#[derive(Clone, Copy)]
struct Begun {
    bit: u64,
    at: usize,
}

impl Trail {
    /// The trail of a buffer of `size` bytes in which spans of at most `most` blocks start at position `origin`.
    pub fn new(size: usize, origin: usize, most: usize) -> Self {
        let least = most / 2;
        let mut trail = Self {
            last: vec![0; size],
            first: 0,
            marks: VecDeque::new(),
            origin,
            least,
            most,
            active: origin + least * GRID,
            begun: None,
            member: (0, 0),
            device: 0,
            base_bits: 0,
        };
        trail.marks.push_back(Mark { bit: 0, skip: 0, state: HEADER, end: 0, member: 0, inside: 0, member_len: None });
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
            Some(begun) if begun.at + skip == at => (begun.bit, HEADER),
            _ => (self.base_bits + bit as u64, (state.0.clone(), state.1)),
        };
        let end = (self.base_bits + end as u64).div_ceil(8);
        let (member, first) = self.member;
        let inside = self.device_at(at) - first;
        self.marks.push_back(Mark { bit, skip: skip as u16, state, end, member, inside, member_len: None });
        self.enter(at);
    }

    /// Device byte of buffer position `at`, which isn't before the span's start.
    fn device_at(&self, at: usize) -> u64 {
        self.device + (at - self.origin) as u64
    }

    /// The member at hand ends at buffer position `at`.
    pub fn member_ends(&mut self, at: usize) {
        let (member, first) = self.member;
        let length = self.device_at(at) - first;
        for mark in self.marks.iter_mut().rev().take_while(|mark| mark.member == member) {
            mark.member_len = Some(length);
        }
    }

    /// Bytes to decode in vain if a span that starts at `mark` is decoded from its member's start, if that is what to
    /// do: few bytes, or a member no longer than a span. Farther inside a longer one a checkpoint is worth its bytes.
    pub fn member_skip(&self, mark: &Mark) -> Option<u32> {
        let longest = (self.most * GRID) as u64;
        let right = mark.inside <= longest / NEAR || mark.member_len.is_some_and(|length| length <= longest);
        u32::try_from(mark.inside).ok().filter(|&skip| right && skip <= MAX_SKIP)
    }

    /// A member or block starts.
    fn begin(&mut self, bit: usize, at: usize, member: bool) {
        // Of blocks that start at the same place the first counts, so that a decoder gets there by reading the end of
        // the block before it. A member needs no decoder to get there.
        if !member && self.begun.is_some_and(|begun| begun.at == at) {
            return;
        }
        let begun = Begun { bit: self.base_bits + bit as u64, at };
        self.begun = Some(begun);
        if member {
            self.member = (begun.bit, self.device_at(at));
        }
        if at == self.origin + (self.marks.len() - 1) * GRID
            && let Some(mark) = self.marks.back_mut()
        {
            // Nothing has come out since this boundary, so resuming here is as good, and takes less state.
            // A decoder that goes on reads the end of the block before, but nothing between members.
            let end = if member { mark.end } else { begun.bit.div_ceil(8) };
            let (member, inside) = if member { (begun.bit, 0) } else { (mark.member, mark.inside) };
            *mark = Mark { bit: begun.bit, skip: 0, state: HEADER, end, member, inside, member_len: None };
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

    /// Bytes before `boundary` that are referred to from there on and aren't zero, unless there are more than `most`.
    fn cost(&self, bytes: &[u8], boundary: usize, most: usize) -> Option<usize> {
        let number = self.block_at(boundary);
        let mut cost = 0;
        // The nearest block comes first: it is referred to most, so that most boundaries are soon found too dear.
        for distance in 1..=(WINDOW + GRID) / GRID {
            let block = boundary - distance * GRID..boundary - (distance - 1) * GRID;
            let own = number.wrapping_sub(distance as u8);
            // 128 rounds of lanes that count to 255: the compiler makes vector instructions of it.
            let mut lanes = [0u8; LANES];
            let last = self.last[block.clone()].chunks_exact(LANES);
            for (last, bytes) in last.zip(bytes[block].chunks_exact(LANES)) {
                for ((lane, last), byte) in lanes.iter_mut().zip(last).zip(bytes) {
                    *lane += u8::from((last.wrapping_sub(own) >= distance as u8) & (*byte != 0));
                }
            }
            cost += lanes.iter().map(|&lane| usize::from(lane)).sum::<usize>();
            if cost > most {
                return None;
            }
        }
        Some(cost)
    }

    /// Chooses how many blocks the span at hand gets: so that starting the next one there costs least for each block;
    /// if costs are equal, as many as possible.
    pub fn choose(&self, bytes: &[u8]) -> usize {
        let mut best: Option<(usize, usize)> = None;
        for blocks in (self.least..=self.most).rev() {
            // The most that is still less for each block than the best so far.
            let most = best.map_or(usize::MAX, |(cost, of)| (cost * blocks - 1) / of);
            let cost = match self.mark(blocks).and_then(|mark| self.member_skip(mark)) {
                Some(skip) => Some(MEMBER_COST + skip as usize / SKIPPED_PER_COST).filter(|&cost| cost <= most),
                None => most.checked_sub(FIXED_COST).and_then(|most| {
                    let window = self.cost(bytes, self.origin + blocks * GRID, most)?;
                    Some(window + FIXED_COST)
                }),
            };
            if let Some(cost) = cost {
                best = Some((cost, blocks));
            }
        }
        best.map_or(self.most, |(_, blocks)| blocks)
    }

    /// Slides the buffer down by `blocks` blocks; `used` bytes of it are in use.
    pub fn slide(&mut self, blocks: usize, used: usize) {
        let shift = blocks * GRID;
        self.device += shift as u64;
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

impl Matches for Trail {
    #[inline]
    fn matched(&mut self, source: usize, length: usize, end: usize) {
        if end <= self.active {
            return;
        }
        let number = self.block_at(end - 1);
        let distance = end - length - source;
        self.last[source..source + length.min(distance)].fill(number);
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
