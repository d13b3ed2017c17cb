//! A bitmap that many threads read and set without locks.
use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// Bits that are set once and read often. Setting a bit publishes what was written before it (release), and reading
/// it set sees that (acquire).
pub(crate) struct Bitmap {
    words: Box<[AtomicU64]>,
    bits: u64,
}

impl Bitmap {
    /// `words` as by [`Bitmap::snapshot`]: missing ones are 0; bits past `bits` are ignored.
    pub(crate) fn new(bits: u64, words: &[u64]) -> Self {
        let len = bits.div_ceil(64) as usize;
        let map = Self { words: (0..len).map(|_| AtomicU64::new(0)).collect(), bits };
        for (i, (word, value)) in map.words.iter().zip(words).enumerate() {
            word.store(value & mask(i as u64, &(0..bits)), Ordering::Relaxed);
        }
        map
    }

    /// Bits there are.
    pub(crate) fn len(&self) -> u64 {
        self.bits
    }

    /// Whether all bits of `range` are set; false for a range past the end, true for an empty one.
    pub(crate) fn all(&self, range: Range<u64>) -> bool {
        range.is_empty()
            || range.end <= self.bits
                && words(&range).all(|i| {
                    let mask = mask(i, &range);
                    self.words[i as usize].load(Ordering::Acquire) & mask == mask
                })
    }

    /// Sets the bits of `range`, as far as there are any.
    pub(crate) fn set(&self, range: Range<u64>) {
        let range = range.start..range.end.min(self.bits);
        for i in words(&range) {
            self.words[i as usize].fetch_or(mask(i, &range), Ordering::Release);
        }
    }

    /// Clears the bits of `range`, as far as there are any; returns how many were set.
    pub(crate) fn clear(&self, range: Range<u64>) -> u64 {
        let range = range.start..range.end.min(self.bits);
        words(&range)
            .map(|i| {
                let mask = mask(i, &range);
                u64::from((self.words[i as usize].fetch_and(!mask, Ordering::AcqRel) & mask).count_ones())
            })
            .sum()
    }

    /// Clears every bit that isn't set in `words` too.
    pub(crate) fn retain(&self, words: &[u64]) {
        for (i, word) in self.words.iter().enumerate() {
            word.fetch_and(words.get(i).copied().unwrap_or(0), Ordering::AcqRel);
        }
    }

    /// Sets exactly the bits that `words` has, as by [`Bitmap::new`].
    pub(crate) fn assign(&self, words: &[u64]) {
        for (i, word) in self.words.iter().enumerate() {
            let value = words.get(i).copied().unwrap_or(0);
            word.store(value & mask(i as u64, &(0..self.bits)), Ordering::Release);
        }
    }

    /// Sets every bit that `words` has, too.
    pub(crate) fn merge(&self, words: &[u64]) {
        for (i, (word, value)) in self.words.iter().zip(words).enumerate() {
            word.fetch_or(value & mask(i as u64, &(0..self.bits)), Ordering::AcqRel);
        }
    }

    /// Number of set bits in `range`.
    pub(crate) fn count_in(&self, range: Range<u64>) -> u64 {
        let range = range.start..range.end.min(self.bits);
        let ones = |i: u64| self.words[i as usize].load(Ordering::Acquire) & mask(i, &range);
        words(&range).map(|i| u64::from(ones(i).count_ones())).sum()
    }

    /// The longest runs of bits in `range` that are all set, or all clear if `set` is false; in order.
    pub(crate) fn runs(&self, range: Range<u64>, set: bool) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for bit in range.start..range.end.min(self.bits) {
            if self.all(bit..bit + 1) != set {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == bit => run.end += 1,
                _ => runs.push(bit..bit + 1),
            }
        }
        runs
    }

    /// Number of set bits.
    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    /// The bits, least significant first in each word.
    pub(crate) fn snapshot(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Ordering::Acquire)).collect()
    }
}

/// Words that `range` touches.
fn words(range: &Range<u64>) -> Range<u64> {
    if range.start >= range.end { 0..0 } else { range.start / 64..range.end.div_ceil(64) }
}

/// Bits of `range` in word `word`.
fn mask(word: u64, range: &Range<u64>) -> u64 {
    let from = range.start.saturating_sub(word * 64).min(64);
    let to = range.end.saturating_sub(word * 64).min(64);
    if from >= to {
        return 0;
    }
    (u64::MAX >> (64 - (to - from))) << from
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn does_what_a_vector_of_bools_does(bits in 1u64..300, steps in prop::collection::vec((any::<bool>(), 0u64..320, 0u64..320), 0..20)) {
            let map = Bitmap::new(bits, &[]);
            let mut model = vec![false; bits as usize];
            for (set, a, b) in steps {
                let range = a.min(b)..a.max(b);
                if set {
                    map.set(range.clone());
                } else {
                    let want = model.iter().enumerate().filter(|(i, b)| **b && range.contains(&(*i as u64))).count();
                    prop_assert_eq!(map.clear(range.clone()), want as u64);
                }
                for i in range.clone().filter(|i| *i < bits) {
                    model[i as usize] = set;
                }
                prop_assert_eq!(map.all(range.clone()), range.clone().all(|i| model.get(i as usize) == Some(&true)));
                let here = range.clone().filter(|i| model.get(*i as usize) == Some(&true)).count() as u64;
                prop_assert_eq!(map.count_in(range.clone()), here);
                let set: Vec<u64> = map.runs(range.clone(), true).into_iter().flatten().collect();
                let clear: Vec<u64> = map.runs(range.clone(), false).into_iter().flatten().collect();
                prop_assert_eq!(set.len() as u64, here);
                prop_assert!(set.iter().all(|i| model[*i as usize]) && clear.iter().all(|i| !model[*i as usize]));
                prop_assert_eq!(set.len() + clear.len(), range.filter(|i| *i < bits).count());
            }
            prop_assert_eq!(map.count(), model.iter().filter(|b| **b).count() as u64);
            let copy = Bitmap::new(bits, &map.snapshot());
            for i in 0..bits {
                prop_assert_eq!(copy.all(i..i + 1), model[i as usize]);
            }
        }
    }

    #[test]
    fn ignores_bits_past_the_end_and_retains_only_what_both_have() {
        let map = Bitmap::new(3, &[u64::MAX, u64::MAX]);
        assert_eq!((map.len(), map.count()), (3, 3));
        map.retain(&[0b101]);
        assert_eq!(map.snapshot(), [0b101]);
        map.retain(&[]);
        assert_eq!(map.count(), 0);
        map.assign(&[0b1001]);
        map.merge(&[0b1100, 1]);
        assert_eq!((map.snapshot(), map.runs(0..9, true)), (vec![0b101], vec![0..1, 2..3]));
        map.assign(&[0b1010]);
        assert_eq!((map.count(), map.runs(0..9, false)), (1, vec![0..1, 2..3]));
    }
}
