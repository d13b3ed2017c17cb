//! The last bytes that were decoded, and which of them later ones refer to.

use super::{
    checkpoint::{Keeper, Runs},
    sequences::Reference,
};

/// The last bytes of the device. It grows to the largest window that is asked for.
pub struct Window {
    /// As a ring, whose length is a power of two.
    ring: Vec<u8>,
    /// Device byte after the last.
    end: u64,
    /// A bit for each byte of the window that is looked at.
    needed: Vec<u64>,
}

impl Window {
    /// No bytes yet; the first is the device byte `start`.
    pub fn new(start: u64) -> Self {
        Self { ring: Vec::new(), end: start, needed: Vec::new() }
    }

    /// Device byte after the last.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// From now on, at least `len` bytes are kept.
    pub fn reserve(&mut self, len: usize) {
        let size = len.next_power_of_two();
        if size <= self.ring.len() {
            return;
        }
        let mut last = Vec::new();
        let from = self.end.saturating_sub(self.ring.len() as u64);
        if !self.ring.is_empty() {
            self.copy(from, self.end, &mut last);
        }
        self.ring = vec![0; size];
        self.end -= last.len() as u64;
        self.append(&last);
    }

    /// Adds the bytes that follow.
    pub fn append(&mut self, bytes: &[u8]) {
        let skipped = bytes.len().saturating_sub(self.ring.len());
        self.end += skipped as u64;
        let mut rest = &bytes[skipped..];
        while !rest.is_empty() {
            let at = self.place(self.end);
            let (part, after) = rest.split_at(rest.len().min(self.ring.len() - at));
            self.ring[at..at + part.len()].copy_from_slice(part);
            self.end += part.len() as u64;
            rest = after;
        }
    }

    fn place(&self, at: u64) -> usize {
        at as usize & (self.ring.len() - 1)
    }

    /// Appends the device bytes from `from` to `to`, which must still be here, to `out`.
    fn copy(&self, mut from: u64, to: u64, out: &mut Vec<u8>) {
        while from < to {
            let at = self.place(from);
            let part = ((to - from) as usize).min(self.ring.len() - at);
            out.extend_from_slice(&self.ring[at..at + part]);
            from += part as u64;
        }
    }

    /// Those of the last `reach` bytes that `references` need.
    pub fn keep(&mut self, reach: u64, references: &[Reference]) -> (Runs, Vec<u8>) {
        let (base, end) = (self.end - reach, self.end);
        let words = (reach as usize).div_ceil(64);
        if self.needed.len() < words {
            self.needed.resize(words, 0);
        }
        let (mut first, mut from_first) = (words, end);
        for reference in references.iter().filter(|reference| reference.from() < end && reference.from() >= base) {
            let from = (reference.from() - base) as usize;
            let to = from + reference.len().min(end - reference.from()) as usize;
            first = first.min(from / 64);
            from_first = from_first.min(reference.from());
            set(&mut self.needed, from, to);
        }
        let (mut keeper, mut bytes) = (Keeper::new(from_first, end), Vec::new());
        let mut at = first * 64;
        while let Some((from, to)) = next_run(&self.needed[..words], at) {
            bytes.clear();
            self.copy(base + from as u64, base + to as u64, &mut bytes);
            keeper.keep(base + from as u64, &bytes, |from, to, out| self.copy(from, to, out));
            at = to;
        }
        self.needed[first..words].fill(0);
        keeper.finish()
    }
}

/// Sets the bits from `from` to before `to`.
fn set(words: &mut [u64], from: usize, to: usize) {
    let (first, last) = (from / 64, (to - 1) / 64);
    let (low, high) = (u64::MAX << (from % 64), u64::MAX >> (63 - (to - 1) % 64));
    if first == last {
        words[first] |= low & high;
        return;
    }
    words[first] |= low;
    words[first + 1..last].fill(u64::MAX);
    words[last] |= high;
}

/// The next bits that are set, from bit `at` on.
fn next_run(words: &[u64], at: usize) -> Option<(usize, usize)> {
    let from = find(words, at, 0)?;
    Some((from, find(words, from, u64::MAX).unwrap_or(words.len() * 64)))
}

/// The first bit from `at` on that is set in the words, each of them xored with `flip`.
fn find(words: &[u64], at: usize, flip: u64) -> Option<usize> {
    let mut word = at / 64;
    let mut bits = (words.get(word)? ^ flip) & u64::MAX << (at % 64);
    while bits == 0 {
        word += 1;
        bits = words.get(word)? ^ flip;
    }
    Some(word * 64 + bits.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_stay() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
        let mut window = Window::new(5);
        window.reserve(50);
        for piece in bytes[..300].chunks(37) {
            window.append(piece);
        }
        window.reserve(60);
        window.reserve(200);
        window.append(&bytes[300..400]);
        assert_eq!(window.end(), 405);
        let mut out = Vec::new();
        window.copy(405 - 164, 405, &mut out);
        assert_eq!(out, bytes[400 - 164..400]);
        window.append(&bytes[400..]);
        out.clear();
        window.copy(1005 - 200, 1005, &mut out);
        assert_eq!(out, bytes[800..]);
    }

    #[test]
    fn bits() {
        let mut words = vec![0; 10];
        for (from, to) in [(3, 4), (60, 70), (128, 192), (200, 500), (639, 640)] {
            set(&mut words, from, to);
        }
        let runs: Vec<_> = std::iter::successors(next_run(&words, 0), |&(_, to)| next_run(&words, to)).collect();
        assert_eq!(runs, [(3, 4), (60, 70), (128, 192), (200, 500), (639, 640)]);
        assert_eq!((next_run(&words, 64), next_run(&words, 640)), (Some((64, 70)), None));
    }
}
