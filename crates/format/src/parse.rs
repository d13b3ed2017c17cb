//! How device bytes were put together where they come from: a compressor's choice of literals and matches.

/// A stretch of device bytes as literals and matches of Deflate (RFC 1951, section 2), which somebody has looked for
/// already. Four bytes for each match. It can be cut anywhere: what is left of a match on both sides of a cut stays one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parse {
    /// From the highest bit on: 9 bits of literals before the match, 8 of its length less [`SHORTEST`], 15 of its
    /// distance less 1. As many literals as [`RUN`] have no match behind them.
    entries: Vec<u32>,
    /// Literals after the last match.
    open: usize,
    /// Device bytes.
    len: usize,
}

/// A match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// Its first byte, counted from the start of the stretch.
    pub at: u32,
    /// Bytes.
    pub len: u16,
    /// How far before it the same bytes lie, which may be before the stretch.
    pub distance: u16,
}

/// Bytes of the shortest match of Deflate.
pub(crate) const SHORTEST: usize = 3;
/// Most literals of an entry.
const RUN: usize = 511;

/// Literals of an entry, length and distance of its match.
fn unpack(entry: u32) -> (usize, Option<(usize, usize)>) {
    let literals = (entry >> 23) as usize;
    let found = ((entry >> 15 & 0xff) as usize + SHORTEST, (entry & 0x7fff) as usize + 1);
    (literals, (literals < RUN).then_some(found))
}

impl Parse {
    /// Device bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.entries.len() * size_of::<u32>()
    }

    /// Appends literals.
    pub fn literals(&mut self, count: usize) {
        self.open += count;
        self.len += count;
    }

    /// Appends a match: 258 bytes at most, from 32768 before it at most. What is shorter than a match of Deflate counts
    /// as literals.
    #[inline]
    pub fn matched(&mut self, len: usize, distance: usize) {
        if len < SHORTEST {
            return self.literals(len);
        }
        while self.open >= RUN {
            self.entries.push((RUN as u32) << 23);
            self.open -= RUN;
        }
        self.entries
            .push((self.open as u32) << 23 | ((len - SHORTEST) as u32 & 0xff) << 15 | (distance as u32 - 1) & 0x7fff);
        self.open = 0;
        self.len += len;
    }

    /// Appends what follows.
    pub fn append(&mut self, next: Self) {
        let len = self.len + next.len;
        let mut entries = next.entries.into_iter();
        // Up to its first match; then nothing depends on what was before.
        for entry in entries.by_ref() {
            let (literals, found) = unpack(entry);
            self.open += literals;
            if let Some((len, distance)) = found {
                self.matched(len, distance);
                self.open = 0;
                self.entries.extend(entries);
                break;
            }
        }
        self.open += next.open;
        self.len = len;
    }

    /// Keeps the first `at` device bytes; gives the rest. Bytes beyond the end count as literals.
    pub fn split_off(&mut self, at: usize) -> Self {
        self.literals(at.saturating_sub(self.len));
        let (mut start, mut kept) = (0, 0);
        for entry in &self.entries {
            let (literals, found) = unpack(*entry);
            let end = start + literals + found.map_or(0, |(len, _)| len);
            if end > at {
                break;
            }
            (start, kept) = (end, kept + 1);
        }
        let mut after = self.entries.split_off(kept).into_iter();
        // Heads wait for their turn; what they have too much of waits with them.
        self.entries.shrink_to_fit();
        let (open, len) = (std::mem::take(&mut self.open), std::mem::replace(&mut self.len, start));
        let mut rest = Self::default();
        if let Some((literals, found)) = after.next().map(unpack) {
            let before = literals.min(at - start);
            self.literals(before);
            rest.literals(literals - before);
            if let Some((len, distance)) = found {
                let before = at - self.len;
                self.matched(before, distance);
                rest.matched(len - before, distance);
            }
            rest.append(Self { entries: after.collect(), open, len: open });
            rest.len = len - at;
        } else {
            self.literals(at - start);
            rest.literals(len - at);
        }
        rest
    }

    /// The matches, in order.
    pub fn matches(&self) -> impl Iterator<Item = Match> + '_ {
        let mut at = 0;
        self.entries.iter().filter_map(move |entry| {
            let (literals, found) = unpack(*entry);
            at += literals;
            let (len, distance) = found?;
            let found = Match { at: at as u32, len: len as u16, distance: distance as u16 };
            at += len;
            Some(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What becomes of each byte: the distance of its match, or none.
    fn bytes(parse: &Parse) -> Vec<Option<u16>> {
        let mut bytes = vec![None; parse.len()];
        for found in parse.matches() {
            bytes[found.at as usize..][..usize::from(found.len)].fill(Some(found.distance));
        }
        bytes
    }

    fn parse(steps: &[(usize, usize, usize)]) -> Parse {
        let mut parse = Parse::default();
        for (literals, len, distance) in steps {
            parse.literals(*literals);
            parse.matched(*len, *distance);
        }
        parse
    }

    #[test]
    fn extremes_are_kept() {
        let parse = parse(&[(0, 258, 32768), (510, 3, 1), (511, 258, 1), (512, 3, 32768), (5000, 2, 7)]);
        let matches: Vec<_> = parse.matches().map(|found| (found.at, found.len, found.distance)).collect();
        assert_eq!(matches, [(0, 258, 32768), (768, 3, 1), (1282, 258, 1), (2052, 3, 32768)]);
        assert_eq!(parse.len(), 2055 + 5002);
    }

    proptest! {
        /// Cut and put together again, it is the same; only stumps of fewer than three bytes become literals.
        #[test]
        fn cuts_lose_nothing_but_stumps(
            steps in prop::collection::vec((0usize..1200, 3usize..=258, 1usize..=32768), 0..20),
            tail in 0usize..1200,
            cut in 0usize..20_000,
        ) {
            let mut whole = parse(&steps);
            whole.literals(tail);
            let all = bytes(&whole);
            let mut head = whole.clone();
            let rest = head.split_off(cut);
            prop_assert_eq!(head.len(), cut.max(head.len().min(cut)));
            prop_assert_eq!(rest.len(), all.len().saturating_sub(cut));
            let differs = |found: &[Option<u16>], wanted: &[Option<u16>]| {
                found.iter().zip(wanted).filter(|(found, wanted)| found != wanted).count()
            };
            prop_assert!(differs(&bytes(&head), &all) <= 2);
            prop_assert!(differs(&bytes(&rest), all.get(cut..).unwrap_or_default()) <= 2);
            head.append(rest);
            prop_assert_eq!(head.len(), all.len().max(cut));
            prop_assert!(differs(&bytes(&head), &all) <= 4);
        }

        /// Appending is as good as going on.
        #[test]
        fn appending_goes_on(
            first in prop::collection::vec((0usize..1200, 3usize..=258, 1usize..=32768), 0..9),
            open in 0usize..1200,
            second in prop::collection::vec((0usize..1200, 3usize..=258, 1usize..=32768), 0..9),
        ) {
            let (mut appended, mut next) = (parse(&first), parse(&second));
            appended.literals(open);
            next.literals(open);
            appended.append(next);
            let mut wanted = parse(&first);
            wanted.literals(open);
            for (literals, len, distance) in second {
                wanted.literals(literals);
                wanted.matched(len, distance);
            }
            wanted.literals(open);
            prop_assert_eq!(appended, wanted);
        }
    }
}
