//! Where to cut spans: on blocks of the device, and so that little has to be decoded twice.
//!
//! ```text
//! small frames    │ a  │  b │c│   d   │ e │     f    │ g    cuts lie in small frames, or between two
//! device blocks   ├────┼────┼────┼────┼────┼────┼────┼──
//! spans           [ span n      ][ span n + 1  ][ span …    frame c is decoded for both n and n + 1
//!
//! large frames    │         F         │            G        a block that a large frame shares with others
//! spans               [ F alone   ][  ][ G alone            is a span of its own: only it needs both
//! ```
use super::{MAX_SPAN_SOURCE, ZstdError};
use crate::span::BLOCK;
use std::{cmp::Reverse, collections::VecDeque, ops::Range};

/// The frames from the span at hand on, as far as they are known.
pub struct Frames {
    /// Fewest and most bytes of a span that is made of small frames. A frame of more than the fewest is large.
    least: u64,
    most: u64,
    /// The frames in which blocks start, in order. The first is the one that the span at hand starts in.
    kept: VecDeque<Frame>,
    /// Device byte at which the span at hand starts.
    start: u64,
    /// Device and blob byte after the last frame that has bytes.
    end: u64,
    source_end: u64,
}

/// A frame that has bytes.
struct Frame {
    device: Range<u64>,
    source: Range<u64>,
    /// Blob byte after the frame before it that has bytes.
    before: u64,
}

/// A span that has been cut off.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its device bytes.
    pub device: Range<u64>,
    /// First blob byte of the frames that it needs.
    pub source_offset: u64,
    /// Bytes of these frames, and of what lies between them.
    pub source_len: u32,
    /// Bytes of the first frame before the span.
    pub skip: u32,
}

impl Frames {
    /// No frames yet; spans of small frames are to have at most `span_size` bytes.
    pub fn new(span_size: u32) -> Self {
        let most = u64::from(span_size).max(64 << 10) / BLOCK * BLOCK;
        Self { least: most / 2 / BLOCK * BLOCK, most, kept: VecDeque::new(), start: 0, end: 0, source_end: 0 }
    }

    /// The next frame: `len` device bytes from the blob's bytes `source`.
    pub fn push(&mut self, len: u64, source: Range<u64>) {
        if len == 0 {
            return;
        }
        let device = self.end..self.end + len;
        let before = std::mem::replace(&mut self.source_end, source.end);
        self.end = device.end;
        // A frame within one block is never the one that a span starts in, so there are no more frames than blocks.
        if device.start.next_multiple_of(BLOCK) < device.end {
            self.kept.push_back(Frame { device, source, before });
        }
    }

    /// Cuts the next span off, if enough frames are known; `ended` says that there are no more.
    pub fn cut(&mut self, ended: bool) -> Result<Option<Cut>, ZstdError> {
        self.border(ended).map_or(Ok(None), |border| self.cut_at(border))
    }

    /// Cuts the next span off, if there are whole blocks; the last of the frames are to be part of another span.
    pub fn cut_blocks(&mut self) -> Result<Option<Cut>, ZstdError> {
        let last = self.end / BLOCK * BLOCK;
        let border = self.border(true).map(|border| border.min(last)).filter(|_| self.start < last);
        border.map_or(Ok(None), |border| self.cut_at(border))
    }

    /// The part of a block that is left when all whole ones have been cut off: where in the blob the frame begins that it
    /// starts in, and how many bytes of that come before it. `None` if there is none.
    pub fn rest(&self) -> Option<(u64, u32)> {
        let first = self.kept.front().filter(|_| self.start < self.end)?;
        Some((first.source.start, (self.start - first.device.start) as u32))
    }

    /// Device byte after all frames.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn cut_at(&mut self, border: u64) -> Result<Option<Cut>, ZstdError> {
        let Some(first) = self.kept.front() else { return Ok(None) };
        let source_offset = first.source.start;
        let skip = (self.start - first.device.start) as u32;
        let source_end = match self.kept.iter().find(|frame| frame.device.end > border) {
            Some(frame) if frame.device.start < border => frame.source.end,
            Some(frame) if frame.device.start == border => frame.before,
            _ => self.source_end,
        };
        let source_len = u32::try_from(source_end - source_offset).ok().filter(|&len| len <= MAX_SPAN_SOURCE);
        let source_len = source_len.ok_or(ZstdError::SpanTooLong { offset: source_offset })?;
        let device = self.start..border;
        self.start = border;
        while self.kept.front().is_some_and(|frame| frame.device.end <= border) {
            self.kept.pop_front();
        }
        Ok(Some(Cut { device, source_offset, source_len, skip }))
    }

    fn is_large(&self, frame: &Frame) -> bool {
        frame.device.end - frame.device.start > self.least
    }

    /// Where the span at hand ends.
    fn border(&self, ended: bool) -> Option<u64> {
        let first = self.kept.front()?;
        let block_end = self.start + BLOCK;
        if self.is_large(first) && block_end <= first.device.end {
            // The whole blocks of a large frame; at the layer's end all of it.
            let (end, last) = (first.device.end / BLOCK * BLOCK, first.device.end == self.end);
            return match last && end < first.device.end {
                true => ended.then_some(first.device.end),
                false => Some(end),
            };
        }
        let reach = self.start + self.most;
        if self.end < reach && !ended {
            return None;
        }
        let large = self.kept.iter().find(|frame| self.is_large(frame) && frame.device.start < reach);
        match large {
            Some(large) if large.device.start < block_end => Some(block_end.min(self.end)),
            Some(large) => Some(large.device.start / BLOCK * BLOCK),
            None if self.end <= reach => Some(self.end),
            None => Some(self.cheapest(self.start + self.least..reach + 1)),
        }
    }

    /// The border in `range` at which the shortest frame is decoded for both spans; of several the last.
    fn cheapest(&self, range: Range<u64>) -> u64 {
        let borders = self.kept.iter().flat_map(|frame| {
            let Range { start, end } = frame.device;
            let between = (start % BLOCK == 0).then_some((0, start));
            let inside = (end - 1).min(range.end - 1) / BLOCK * BLOCK;
            let inside = (inside > start).then_some((end - start, inside));
            between.into_iter().chain(inside)
        });
        let borders = borders.filter(|(_, border)| range.contains(border));
        borders.min_by_key(|&(cost, border)| (cost, Reverse(border))).map_or(range.end - 1, |(_, border)| border)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: u32 = 64 << 10;

    /// The spans of frames of these lengths, each from 10 bytes of the blob: where they end, and which frames they need:
    /// the first, and the one after the last.
    fn cuts(lens: &[u64]) -> (Vec<u64>, Vec<[u64; 2]>) {
        let mut frames = Frames::new(SPAN);
        let mut cuts = Vec::new();
        for (i, len) in (0..).zip(lens) {
            frames.push(*len, i * 10..i * 10 + 10);
            cuts.extend(std::iter::from_fn(|| frames.cut(false).unwrap()));
        }
        cuts.extend(std::iter::from_fn(|| frames.cut(true).unwrap()));
        let mut start = 0;
        for cut in &cuts {
            assert_eq!(cut.device.start, start);
            start = cut.device.end;
            let first = (cut.source_offset / 10) as usize;
            assert_eq!(u64::from(cut.skip), cut.device.start - lens[..first].iter().sum::<u64>());
        }
        assert_eq!(start, lens.iter().sum::<u64>());
        let borders = cuts.iter().map(|cut| cut.device.end).collect();
        let needed = |cut: &Cut| [cut.source_offset / 10, (cut.source_offset + u64::from(cut.source_len)) / 10];
        (borders, cuts.iter().map(needed).collect())
    }

    #[test]
    fn frames_that_end_on_blocks_are_never_decoded_twice() {
        assert_eq!(
            cuts(&[65536, 65536, 65536, 1000]),
            (vec![65536, 131_072, 196_608, 197_608], vec![[0, 1], [1, 2], [2, 3], [3, 4]])
        );
        assert_eq!(cuts(&[16384; 6]), (vec![65536, 98304], vec![[0, 4], [4, 6]]));
        // 10 blocks end on a border and 15 don't; 16 are the most.
        assert_eq!(cuts(&[20480, 20480, 20000, 20000, 20000]).0[0], 40960);
    }

    #[test]
    fn cuts_lie_in_small_frames() {
        let lens = [30_000, 20_000, 100, 15_000, 30_000, 100];
        assert_eq!(cuts(&lens), (vec![61_440, 95_200], vec![[0, 4], [3, 6]]));
        let lens = [30_000, 11_000, 100, 30_000, 30_000, 100];
        assert_eq!(cuts(&lens).0[0], 40_960, "in the frame of 11 000 bytes");
    }

    #[test]
    fn large_frames_have_spans_of_their_own() {
        let (borders, needed) = cuts(&[1000, 300_000, 200_000, 5000]);
        assert_eq!(borders, [4096, 299_008, 303_104, 499_712, 503_808, 506_000]);
        assert_eq!(needed, [[0, 2], [1, 2], [1, 3], [2, 3], [2, 4], [3, 4]]);
        assert_eq!(cuts(&[300_001]), (vec![300_001], vec![[0, 1]]));
        assert_eq!(cuts(&[5000, 300_001]), (vec![4096, 8192, 305_001], vec![[0, 1], [0, 2], [1, 2]]));
        assert_eq!(cuts(&[300_000, 1]), (vec![299_008, 300_001], vec![[0, 1], [0, 2]]));
    }

    #[test]
    fn frames_without_bytes_and_tiny_ones() {
        assert_eq!(cuts(&[]), (vec![], vec![]));
        assert_eq!(cuts(&[0, 0]), (vec![], vec![]));
        assert_eq!(cuts(&[0, 5, 0, 0]), (vec![5], vec![[1, 2]]));
        let (borders, _) = cuts(&[1; 100_000]);
        assert_eq!(borders, [65536, 100_000]);
        let mut frames = Frames::new(SPAN);
        (0..50_000).for_each(|i| frames.push(1, i..i + 1));
        assert!(frames.kept.len() <= 13);
    }

    #[test]
    fn a_span_that_needs_too_much_is_an_error() {
        let mut frames = Frames::new(SPAN);
        frames.push(10, 0..10);
        frames.push(10, u64::from(MAX_SPAN_SOURCE)..u64::from(MAX_SPAN_SOURCE) + 1);
        assert_eq!(frames.cut(true), Err(ZstdError::SpanTooLong { offset: 0 }));
    }
}
