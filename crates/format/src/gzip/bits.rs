//! Bits of source bytes, least significant first, and the output that they decode to.
use super::LONGEST_MATCH;

/// Source bytes, and the place in them.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The bytes at hand.
    pub bytes: &'a [u8],
    /// The next bit, counted from the first byte at hand, least significant bits first.
    pub bit: usize,
}

impl Input<'_> {
    /// Bits left.
    pub fn left(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.bit)
    }

    /// The next bits, 57 or more of them valid; zeros after the last.
    pub fn peek(&self) -> u64 {
        let rest = self.bytes.get(self.bit >> 3..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        word >> (self.bit & 7)
    }

    /// The next `count` bits (at most 16), if there are as many.
    pub fn take(&mut self, count: u32) -> Option<u32> {
        if self.left() < count as usize {
            return None;
        }
        let bits = self.peek() as u32 & ((1 << count) - 1);
        self.bit += count as usize;
        Some(bits)
    }

    /// Moves on to the next byte boundary, and gives the byte it is at.
    pub fn align(&mut self) -> usize {
        self.bit = self.bit.next_multiple_of(8);
        self.bit >> 3
    }

    /// Bits `start..end`, wherever the place is, as bytes; the first bit is the lowest.
    pub fn copy(&self, start: usize, end: usize) -> Vec<u8> {
        let mut input = Input { bytes: self.bytes, bit: start };
        let mut bytes = Vec::with_capacity((end - start).div_ceil(8));
        while input.bit < end {
            let count = (end - input.bit).min(8) as u32;
            let Some(bits) = input.take(count) else { break };
            bytes.push(bits as u8);
        }
        bytes
    }
}

/// Bytes after the place where a decoder is told to stop that it may write to: the rest of a match, and wide copies.
pub const OVERRUN: usize = LONGEST_MATCH + 64;

/// Decoded bytes, and the place among them.
pub struct Output<'a> {
    /// History, then decoded bytes, then space.
    pub bytes: &'a mut [u8],
    /// Where the next decoded byte goes.
    pub at: usize,
    /// First byte of history that matches may refer to.
    pub floor: usize,
}

/// Hears of matches.
pub trait Matches {
    /// A match of `length` bytes of the output that end at `end` repeats those from `source` on; where they overlap, its own.
    fn matched(&mut self, source: usize, length: usize, end: usize);
}

/// Hears nothing.
impl Matches for () {
    fn matched(&mut self, _source: usize, _length: usize, _end: usize) {}
}
