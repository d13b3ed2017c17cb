//! The FSE tables that sequences are coded with (RFC 8878, section 4.1): their descriptions, and tables to decode by.

/// Cells of the largest table: literals lengths and match lengths have an accuracy of at most 9 bits.
const CELLS: usize = 512;
/// Most symbols of any kind.
const SYMBOLS: usize = 53;
/// Least accuracy that a description can have, bits.
const LEAST_LOG: u32 = 5;

/// What a table codes. The order is that of a block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LiteralsLengths,
    Offsets,
    MatchLengths,
}

/// All kinds, in the order of a block's header.
pub const KINDS: [Kind; 3] = [Kind::LiteralsLengths, Kind::Offsets, Kind::MatchLengths];

/// First value and number of extra bits of each literals length code from 16 on; those before stand for themselves.
const LITERALS_LENGTHS: [(u32, u8); 20] = [
    (16, 1),
    (18, 1),
    (20, 1),
    (22, 1),
    (24, 2),
    (28, 2),
    (32, 3),
    (40, 3),
    (48, 4),
    (64, 6),
    (128, 7),
    (256, 8),
    (512, 9),
    (1024, 10),
    (2048, 11),
    (4096, 12),
    (8192, 13),
    (16384, 14),
    (32768, 15),
    (65536, 16),
];
/// The same of match length codes from 32 on; those before stand for 3 more than themselves.
const MATCH_LENGTHS: [(u32, u8); 21] = [
    (35, 1),
    (37, 1),
    (39, 1),
    (41, 1),
    (43, 2),
    (47, 2),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 5),
    (131, 7),
    (259, 8),
    (515, 9),
    (1027, 10),
    (2051, 11),
    (4099, 12),
    (8195, 13),
    (16387, 14),
    (32771, 15),
    (65539, 16),
];

impl Kind {
    /// Number of symbols.
    fn symbols(self) -> usize {
        match self {
            Self::LiteralsLengths => 36,
            Self::Offsets => 32,
            Self::MatchLengths => 53,
        }
    }

    /// Largest accuracy, bits.
    fn most_log(self) -> u32 {
        match self {
            Self::Offsets => 8,
            Self::LiteralsLengths | Self::MatchLengths => 9,
        }
    }

    /// First value of a symbol, and the number of its extra bits. An offset's value is not yet the offset: the three
    /// smallest stand for offsets used before.
    fn value(self, symbol: u8) -> (u32, u8) {
        let number = usize::from(symbol);
        match self {
            Self::LiteralsLengths if symbol < 16 => (symbol.into(), 0),
            Self::LiteralsLengths => LITERALS_LENGTHS[number - 16],
            Self::Offsets => (1 << symbol, symbol),
            Self::MatchLengths if symbol < 32 => (u32::from(symbol) + 3, 0),
            Self::MatchLengths => MATCH_LENGTHS[number - 32],
        }
    }

    /// The distribution that is used without being described (RFC 8878, section 3.1.1.3.2.2).
    pub fn predefined(self) -> Distribution {
        let (runs, log): (&[(i16, usize)], u32) = match self {
            Self::LiteralsLengths => (&[(4, 1), (3, 1), (2, 11), (1, 3), (2, 9), (3, 1), (2, 1), (1, 5), (-1, 4)], 6),
            Self::Offsets => (&[(1, 6), (2, 3), (1, 15), (-1, 5)], 5),
            Self::MatchLengths => (&[(1, 1), (4, 1), (3, 1), (2, 6), (1, 37), (-1, 7)], 6),
        };
        let mut counts = [0; SYMBOLS];
        let all = runs.iter().flat_map(|&(count, times)| std::iter::repeat_n(count, times));
        counts.iter_mut().zip(all).for_each(|(count, wanted)| *count = wanted);
        Distribution { counts, log }
    }
}

/// How often each symbol stands in a table; -1 stands for less than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    counts: [i16; SYMBOLS],
    /// Logarithm of the table's size.
    log: u32,
}

impl Distribution {
    /// Understands the description that `bytes` start with, and gives its length; or says what is wrong with it.
    pub fn parse(kind: Kind, bytes: &[u8]) -> Result<(Self, usize), &'static str> {
        let mut bits = Forward { bytes, bit: 0 };
        let log = bits.take(4) + LEAST_LOG;
        if log > kind.most_log() {
            return Err("a table of its sequences is too large");
        }
        let mut counts = [0i16; SYMBOLS];
        // One more than what is left to give away, since less than one takes a cell, too.
        let (mut left, mut symbol) = ((1i32 << log) + 1, 0);
        while left > 1 {
            let count =
                counts[..kind.symbols()].get_mut(symbol).ok_or("a table of its sequences has too many symbols")?;
            symbol += 1;
            let threshold = 1i32 << left.ilog2();
            // Values below `short` take a bit less.
            let short = 2 * threshold - 1 - left;
            let low = bits.peek(threshold.ilog2()) as i32;
            let value = if low < short {
                bits.bit += threshold.ilog2() as usize;
                low
            } else {
                let all = bits.take(threshold.ilog2() + 1) as i32;
                if all < threshold { all } else { all - short }
            };
            *count = (value - 1) as i16;
            left -= (value - 1).abs();
            if value == 1 {
                loop {
                    let zeros = bits.take(2);
                    symbol += zeros as usize;
                    if zeros < 3 || symbol >= SYMBOLS {
                        break;
                    }
                }
            }
        }
        let len = bits.bit.div_ceil(8);
        if left != 1 || len > bytes.len() {
            return Err("a table of its sequences isn't well described");
        }
        Ok((Self { counts, log }, len))
    }

    /// The description, as [`Distribution::parse`] understands it.
    pub fn describe(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let (mut word, mut have) = (u64::from(self.log - LEAST_LOG), 4);
        let mut put = |bits: u32, count: u32| {
            word |= u64::from(bits) << have;
            have += count;
            while have >= 8 {
                out.push(word as u8);
                word >>= 8;
                have -= 8;
            }
            (word, have)
        };
        let (mut left, mut symbol) = ((1i32 << self.log) + 1, 0);
        let mut rest = (0, 4);
        while left > 1 && symbol < SYMBOLS {
            let count = i32::from(self.counts[symbol]);
            symbol += 1;
            let threshold = 1i32 << left.ilog2();
            let (short, value, bits) = (2 * threshold - 1 - left, count + 1, threshold.ilog2());
            rest = match value {
                _ if value < short => put(value as u32, bits),
                _ if value < threshold => put(value as u32, bits + 1),
                _ => put((value + short) as u32, bits + 1),
            };
            left -= count.abs();
            if count == 0 {
                let mut zeros = self.counts[symbol..].iter().take_while(|&&count| count == 0).count() as u32;
                symbol += zeros as usize;
                while zeros >= 3 {
                    put(3, 2);
                    zeros -= 3;
                }
                rest = put(zeros, 2);
            }
        }
        if rest.1 > 0 {
            out.push(rest.0 as u8);
        }
        out
    }
}

/// Reads bits, the lowest of a byte first; zeros follow the last byte.
struct Forward<'a> {
    bytes: &'a [u8],
    bit: usize,
}

impl Forward<'_> {
    /// The next bits, at most 16.
    fn peek(&self, count: u32) -> u32 {
        let byte = |at: usize| u32::from(self.bytes.get(self.bit / 8 + at).copied().unwrap_or_default());
        let word = byte(0) | byte(1) << 8 | byte(2) << 16;
        word >> (self.bit % 8) & ((1 << count) - 1)
    }

    fn take(&mut self, count: u32) -> u32 {
        let bits = self.peek(count);
        self.bit += count as usize;
        bits
    }
}

/// What a state stands for, and the state after it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    /// Value, to which `extra` bits of the stream are added.
    pub base: u32,
    pub extra: u8,
    /// Bits of the stream that are added to `next`.
    pub bits: u8,
    pub next: u16,
}

/// A table to decode by.
#[derive(Clone)]
pub struct Table {
    cells: Box<[Cell; CELLS]>,
    log: u32,
}

impl Table {
    /// A table in which one symbol takes no bits (`RLE_Mode`).
    pub fn single(kind: Kind, symbol: u8) -> Result<Self, &'static str> {
        if usize::from(symbol) >= kind.symbols() {
            return Err("a table of its sequences has an unknown symbol");
        }
        let (base, extra) = kind.value(symbol);
        let mut cells = Box::new([Cell::default(); CELLS]);
        cells[0] = Cell { base, extra, bits: 0, next: 0 };
        Ok(Self { cells, log: 0 })
    }

    /// The table of a distribution (RFC 8878, section 4.1.1).
    pub fn new(kind: Kind, distribution: &Distribution) -> Self {
        let size = 1usize << distribution.log;
        let mut symbols = [0u8; CELLS];
        let mut next = [0u16; SYMBOLS];
        let mut high = size;
        for (symbol, &count) in (0u8..).zip(&distribution.counts) {
            next[usize::from(symbol)] = count.unsigned_abs();
            if count < 0 {
                high -= 1;
                symbols[high] = symbol;
            }
        }
        let step = (size >> 1) + (size >> 3) + 3;
        let mut at = 0;
        for (symbol, &count) in (0u8..).zip(&distribution.counts) {
            for _ in 0..count {
                symbols[at] = symbol;
                at = (at + step) & (size - 1);
                while at >= high {
                    at = (at + step) & (size - 1);
                }
            }
        }
        let mut cells = Box::new([Cell::default(); CELLS]);
        for (cell, &symbol) in cells[..size].iter_mut().zip(&symbols) {
            let state = &mut next[usize::from(symbol)];
            let bits = distribution.log - state.ilog2();
            let (base, extra) = kind.value(symbol);
            *cell = Cell { base, extra, bits: bits as u8, next: (*state << bits).wrapping_sub(size as u16) };
            *state += 1;
        }
        Self { cells, log: distribution.log }
    }

    /// Bits of a first state.
    pub fn log(&self) -> u32 {
        self.log
    }

    /// The cell of a state, which has at most 9 bits.
    #[inline]
    pub fn cell(&self, state: usize) -> Cell {
        self.cells[state % CELLS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_are_understood_as_they_are_described() {
        for kind in KINDS {
            let predefined = kind.predefined();
            assert_eq!(predefined.counts.iter().map(|count| count.abs()).sum::<i16>(), 1 << predefined.log);
            let mut all = vec![predefined];
            for symbol in [0, 1, 7, kind.symbols() - 1] {
                for log in LEAST_LOG..=kind.most_log() {
                    let mut counts = [0; SYMBOLS];
                    counts[symbol] = 1 << log;
                    all.push(Distribution { counts, log });
                    counts[symbol] -= 3;
                    counts[(symbol + 12) % kind.symbols()] = 2;
                    counts[(symbol + 5) % kind.symbols()] = -1;
                    all.push(Distribution { counts, log });
                }
            }
            for distribution in all {
                let described = distribution.describe();
                let followed = [&described[..], &[0xff; 5]].concat();
                assert_eq!(Distribution::parse(kind, &followed), Ok((distribution, described.len())));
                assert!(Distribution::parse(kind, &described[..described.len() - 1]).is_err(), "{described:x?}");
            }
        }
    }

    #[test]
    fn every_cell_leads_to_cells_of_the_table() {
        for kind in KINDS {
            let table = Table::new(kind, &kind.predefined());
            for state in 0..1 << table.log() {
                let cell = table.cell(state);
                assert!(usize::from(cell.next) + (1 << cell.bits) <= 1 << table.log(), "{kind:?} {state} {cell:?}");
            }
        }
        let mut single = [0; SYMBOLS];
        single[3] = 32;
        let table = Table::new(Kind::Offsets, &Distribution { counts: single, log: 5 });
        assert!((0..32).all(|state| table.cell(state).bits == 0 && table.cell(state).base == 8));
    }

    #[test]
    fn wrong_descriptions() {
        assert!(Distribution::parse(Kind::Offsets, &[]).is_err());
        assert!(Distribution::parse(Kind::Offsets, &[4, 0, 0, 0]).is_err(), "an accuracy of 9 bits");
        assert!(Distribution::parse(Kind::MatchLengths, &[5, 0, 0, 0]).is_err(), "of 10 bits");
        assert!(Distribution::parse(Kind::Offsets, &[[1].as_slice(), &[0; 64]].concat()).is_err(), "64 symbols");
        assert!(Table::single(Kind::Offsets, 31).is_ok() && Table::single(Kind::Offsets, 32).is_err());
    }
}
