//! Who reads in sequence: finds sequential readers among the spans that are asked for, and how far to read ahead.
use clipper_format::span::{BLOCK, Span};
use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// Sequential readers that are told apart at a time.
const STREAMS: usize = 8;
/// Spans that a sequential reader may leave out.
const GAP: usize = 1;
/// No span starts here.
const NOWHERE: u64 = u64::MAX;

/// Recent readers, most of them sequential or not yet known to be.
///
/// The window of a reader starts at one span and doubles each time the reader touches its newest part, so that the
/// next window is on its way while the reader is still busy with this one. A reader that jumps becomes a new one,
/// without a window.
#[derive(Default)]
pub(crate) struct Readers {
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Clone, Copy)]
struct Stream {
    /// First span read.
    base: usize,
    /// Touching this span, or a later one up to `end`, makes the window grow.
    trigger: usize,
    /// First span not yet asked for.
    end: usize,
    /// Spans read ahead last.
    window: usize,
    used: u64,
}

/// The spans whose touch makes a window grow, so that a read of what is there already can notice without a lock.
pub(crate) struct Triggers([AtomicU64; STREAMS]);

impl Readers {
    /// Notes that `touched` spans are read; returns the end of the spans to fetch for that: `touched.end` if the
    /// reader isn't sequential. No more than `max_bytes` of source are read ahead.
    pub(crate) fn touch(
        &mut self,
        touched: &Range<usize>,
        spans: &[Span],
        max_bytes: u64,
        triggers: &Triggers,
    ) -> usize {
        self.clock += 1;
        let clock = self.clock;
        let grows = |s: &Stream| touched.end > s.trigger && touched.start <= s.end + GAP && touched.start >= s.base;
        if let Some(slot) = self.streams.iter().position(grows) {
            let s = &mut self.streams[slot];
            s.window = (s.window * 2).max(1);
            let start = s.end.max(touched.end).min(spans.len());
            let end = ahead(spans, start, s.window, max_bytes);
            s.window = (end - start).max(1);
            *s = Stream { trigger: start, end, used: clock, ..*s };
            triggers.set(slot, spans.get(start).filter(|_| end > start));
            return end.max(touched.end);
        }
        let within = |s: &&mut Stream| touched.start >= s.base && touched.end <= s.end;
        if let Some(s) = self.streams.iter_mut().find(within) {
            s.used = clock;
            return touched.end;
        }
        let stream = Stream { base: touched.start, trigger: touched.end, end: touched.end, window: 0, used: clock };
        if self.streams.len() < STREAMS {
            self.streams.push(stream);
        } else if let Some(slot) = (0..STREAMS).min_by_key(|i| self.streams[*i].used) {
            self.streams[slot] = stream;
            triggers.set(slot, None);
        }
        touched.end
    }
}

/// The end of at most `window` spans from `start` with at most `max_bytes` of source.
fn ahead(spans: &[Span], start: usize, window: usize, max_bytes: u64) -> usize {
    let mut bytes = 0;
    let fits = |span: &&Span| {
        bytes += u64::from(span.source_len);
        bytes <= max_bytes
    };
    start + spans.iter().skip(start).take(window).take_while(fits).count()
}

impl Default for Triggers {
    fn default() -> Self {
        Self([const { AtomicU64::new(NOWHERE) }; STREAMS])
    }
}

impl Triggers {
    /// A span's first block in the upper 40 bits, the number of its blocks in the lower 24.
    fn set(&self, slot: usize, span: Option<&Span>) {
        let packed =
            span.map(|s| ((s.device_offset / BLOCK) << 24) | (u64::from(s.device_len).div_ceil(BLOCK) & 0xff_ffff));
        self.0[slot].store(packed.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// Whether a read of these device bytes touches a trigger; it is disarmed, and the device byte where its span
    /// starts returned.
    pub(crate) fn hit(&self, bytes: &Range<u64>) -> Option<u64> {
        self.0.iter().find_map(|trigger| {
            let packed = trigger.load(Ordering::Relaxed);
            let start = (packed >> 24) * BLOCK;
            let end = start + (packed & 0xff_ffff) * BLOCK;
            let hit = packed != NOWHERE && bytes.start < end && bytes.end > start;
            let swap = || trigger.compare_exchange(packed, NOWHERE, Ordering::Relaxed, Ordering::Relaxed);
            (hit && swap().is_ok()).then_some(start)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::span::Start;

    fn spans(n: u64) -> Vec<Span> {
        let span = |i| Span {
            device_offset: i * 8192,
            device_len: 8192,
            source_offset: i * 1000,
            source_len: 1000,
            start: Start::Stored,
            blake3: [0; 32],
        };
        (0..n).map(span).collect()
    }

    #[test]
    fn the_window_of_a_sequential_reader_doubles_up_to_the_limit() {
        let (spans, triggers, mut readers) = (spans(100), Triggers::default(), Readers::default());
        let mut touch = |i: usize| readers.touch(&(i..i + 1), &spans, 10_000, &triggers);
        assert_eq!(touch(5), 6);
        assert_eq!(touch(6), 8);
        assert_eq!(triggers.hit(&(6 * 8192..7 * 8192)), None);
        assert_eq!(triggers.hit(&(7 * 8192 + 5..7 * 8192 + 6)), Some(7 * 8192));
        assert_eq!(triggers.hit(&(7 * 8192..8 * 8192)), None);
        assert_eq!(touch(7), 10);
        assert_eq!(touch(7), 8, "reading it again changes nothing");
        assert_eq!(touch(8), 14);
        assert_eq!(touch(10), 22);
        assert_eq!(touch(14), 32, "ten spans are 10 000 bytes");
        assert_eq!(touch(22), 42);
    }

    #[test]
    fn random_readers_have_no_window_and_do_not_disturb_sequential_ones() {
        let (spans, triggers, mut readers) = (spans(1000), Triggers::default(), Readers::default());
        let mut touch = |i: usize| readers.touch(&(i..i + 1), &spans, u64::MAX, &triggers);
        assert_eq!((touch(0), touch(1)), (1, 3));
        for i in [900, 700, 500, 300, 800] {
            assert_eq!(touch(i), i + 1);
        }
        assert_eq!(touch(2), 5);
    }

    #[test]
    fn a_window_ends_with_the_device() {
        let (spans, triggers, mut readers) = (spans(5), Triggers::default(), Readers::default());
        assert_eq!(readers.touch(&(0..3), &spans, u64::MAX, &triggers), 3);
        assert_eq!(readers.touch(&(3..4), &spans, u64::MAX, &triggers), 5);
        assert_eq!(readers.touch(&(4..5), &spans, u64::MAX, &triggers), 5);
        assert_eq!(triggers.hit(&(0..u64::MAX)), None);
    }
}
