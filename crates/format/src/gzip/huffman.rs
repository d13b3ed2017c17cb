//! Huffman codes as lookup tables: packed entries, a primary table indexed by the next bits, subtables for long codes.
//!
//! An entry is a `u32`. Its low 8 bits are the bits to consume: code and extra bits together, so that a symbol takes
//! one shift. Literals have [`LITERAL`] set and the byte in bits 16..24. Matches have their base length or distance
//! in bits 16..31 and the length of the code alone in bits 8..12. [`EXCEPTIONAL`] marks what is neither: a subtable
//! (bits 16..31: its first entry; bits 8..12: its index bits), the end of the block, or a code that nothing has.

use super::inflate::Fault;

/// The entry is a literal.
pub const LITERAL: u32 = 1 << 31;
/// The entry is a subtable, the end of the block, or no code at all.
pub const EXCEPTIONAL: u32 = 1 << 15;
/// The entry leads to a subtable.
pub const SUBTABLE: u32 = 1 << 14;
/// The entry ends the block.
pub const END_OF_BLOCK: u32 = 1 << 13;
/// No code has these bits.
const UNUSED: u32 = EXCEPTIONAL;

/// Index bits of the primary table for literals and lengths.
pub const LITLEN_BITS: u32 = 11;
/// Index bits of the primary table for distances.
pub const DIST_BITS: u32 = 8;
/// Index bits of the table for code lengths; as long as its longest code.
const PRECODE_BITS: u32 = 7;

/// Entries for literals and lengths: 2342 are enough for 288 symbols, 11 index bits and codes of 15 bits (zlib's
/// `enough`); a power of two lets the compiler see that a masked index is inside.
pub const LITLEN_SIZE: usize = 4096;
/// Entries for distances: 402 are enough.
pub const DIST_SIZE: usize = 512;
const PRECODE_SIZE: usize = 1 << PRECODE_BITS;

/// Most literal and length codes that a block may define (RFC 1951, section 3.2.7).
pub const MAX_LITLEN: usize = 286;
/// Most distance codes that a block may define.
pub const MAX_DIST: usize = 30;
const MAX_CODE_BITS: usize = 15;

/// Base and extra bits of length symbols 257..=285 (RFC 1951, section 3.2.5).
const LENGTHS: [(u16, u8); 29] = [
    (3, 0),
    (4, 0),
    (5, 0),
    (6, 0),
    (7, 0),
    (8, 0),
    (9, 0),
    (10, 0),
    (11, 1),
    (13, 1),
    (15, 1),
    (17, 1),
    (19, 2),
    (23, 2),
    (27, 2),
    (31, 2),
    (35, 3),
    (43, 3),
    (51, 3),
    (59, 3),
    (67, 4),
    (83, 4),
    (99, 4),
    (115, 4),
    (131, 5),
    (163, 5),
    (195, 5),
    (227, 5),
    (258, 0),
];

/// Base and extra bits of distance symbols 0..=29 (RFC 1951, section 3.2.5).
const DISTANCES: [(u16, u8); 30] = [
    (1, 0),
    (2, 0),
    (3, 0),
    (4, 0),
    (5, 1),
    (7, 1),
    (9, 2),
    (13, 2),
    (17, 3),
    (25, 3),
    (33, 4),
    (49, 4),
    (65, 5),
    (97, 5),
    (129, 6),
    (193, 6),
    (257, 7),
    (385, 7),
    (513, 8),
    (769, 8),
    (1025, 9),
    (1537, 9),
    (2049, 10),
    (3073, 10),
    (4097, 11),
    (6145, 11),
    (8193, 12),
    (12289, 12),
    (16385, 13),
    (24577, 13),
];

/// What the entry of a symbol says besides the length of its code: value, and extra bits in the low byte.
const fn litlen_values() -> [u32; 288] {
    let mut values = [UNUSED; 288];
    let mut symbol = 0;
    while symbol < 256 {
        values[symbol] = LITERAL | (symbol as u32) << 16;
        symbol += 1;
    }
    values[256] = EXCEPTIONAL | END_OF_BLOCK;
    let mut i = 0;
    while i < LENGTHS.len() {
        values[257 + i] = (LENGTHS[i].0 as u32) << 16 | LENGTHS[i].1 as u32;
        i += 1;
    }
    values
}

const fn dist_values() -> [u32; 32] {
    let mut values = [UNUSED; 32];
    let mut i = 0;
    while i < DISTANCES.len() {
        values[i] = (DISTANCES[i].0 as u32) << 16 | DISTANCES[i].1 as u32;
        i += 1;
    }
    values
}

const fn precode_values() -> [u32; 19] {
    let mut values = [0; 19];
    let mut i = 0;
    while i < 19 {
        values[i] = (i as u32) << 16;
        i += 1;
    }
    values
}

static LITLEN_VALUES: [u32; 288] = litlen_values();
static DIST_VALUES: [u32; 32] = dist_values();
static PRECODE_VALUES: [u32; 19] = precode_values();

/// The tables of a block.
pub struct Tables {
    /// Literals and lengths.
    pub litlen: [u32; LITLEN_SIZE],
    /// Distances.
    pub dist: [u32; DIST_SIZE],
    /// Whether these are the fixed codes: a stream of many small blocks needn't set them again and again.
    fixed: bool,
}

impl Tables {
    /// Tables of nothing; a block must be read first.
    pub fn new() -> Box<Self> {
        Box::new(Self { litlen: [UNUSED; LITLEN_SIZE], dist: [UNUSED; DIST_SIZE], fixed: false })
    }

    /// Sets the codes of a block that defines its own.
    pub fn set(&mut self, litlen_lengths: &[u8], dist_lengths: &[u8]) -> Result<(), Fault> {
        self.fixed = false;
        if litlen_lengths.get(256).is_none_or(|&length| length == 0) {
            return Err(Fault::NoEndOfBlock);
        }
        build(&mut self.litlen, LITLEN_BITS, litlen_lengths, &LITLEN_VALUES, true).ok_or(Fault::LitlenLengths)?;
        build(&mut self.dist, DIST_BITS, dist_lengths, &DIST_VALUES, true).ok_or(Fault::DistLengths)
    }

    /// Sets the codes of a fixed block (RFC 1951, section 3.2.6).
    pub fn set_fixed(&mut self) -> Result<(), Fault> {
        if !self.fixed {
            let mut lengths = [8; 288];
            lengths[144..256].fill(9);
            lengths[256..280].fill(7);
            self.set(&lengths, &[5; 32])?;
            self.fixed = true;
        }
        Ok(())
    }
}

/// The code for code lengths (RFC 1951, section 3.2.7): a table whose entries hold the symbol in bits 16..24.
pub struct Precode([u32; PRECODE_SIZE]);

impl Precode {
    /// The code with these 19 lengths.
    pub fn new(lengths: &[u8; 19]) -> Result<Self, Fault> {
        let mut table = [UNUSED; PRECODE_SIZE];
        build(&mut table, PRECODE_BITS, lengths, &PRECODE_VALUES, false).ok_or(Fault::PrecodeLengths)?;
        Ok(Self(table))
    }

    /// Symbol of the code that `bits` start with, and its length.
    pub fn get(&self, bits: u64) -> (u32, u32) {
        let entry = self.0[(bits as usize) & (PRECODE_SIZE - 1)];
        (entry >> 16, entry & 0xff)
    }
}

/// Fills `table` for the canonical code with these `lengths`; `None` if it is over-subscribed or incomplete. As in
/// zlib, a code without symbols, or with a single one of length 1, passes if `lenient`: its other bits are unused.
fn build(table: &mut [u32], table_bits: u32, lengths: &[u8], values: &[u32], lenient: bool) -> Option<()> {
    let mut counts = [0u16; MAX_CODE_BITS + 1];
    for &length in lengths {
        *counts.get_mut(usize::from(length))? += 1;
    }
    let used = lengths.len() - usize::from(counts[0]);
    counts[0] = 0;
    let mut left = 1i32;
    for &count in &counts[1..] {
        left = (left << 1) - i32::from(count);
        if left < 0 {
            return None;
        }
    }
    let primary = 1usize << table_bits;
    if left > 0 {
        if !lenient || used > 1 || used != usize::from(counts[1]) {
            return None;
        }
        table[..primary].fill(UNUSED);
    }

    // Symbols in the order of their codes.
    let mut offsets = [0u16; MAX_CODE_BITS + 2];
    for length in 1..=MAX_CODE_BITS {
        offsets[length + 1] = offsets[length] + counts[length];
    }
    let mut sorted = [0u16; 288];
    for (symbol, &length) in lengths.iter().enumerate() {
        if length != 0 {
            let offset = &mut offsets[usize::from(length)];
            sorted[usize::from(*offset)] = symbol as u16;
            *offset += 1;
        }
    }
    let mut symbols = sorted[..used].iter().map(|&symbol| values[usize::from(symbol)]);

    // Codes are stored with their first bit lowest, so `code` counts up with its bits reversed.
    let mut code = 0usize;
    let mut filled = 1usize;
    let mut next_subtable = primary;
    let mut subtable_prefix = usize::MAX;
    let mut subtable_start = 0;
    let mut subtable_size = 0;
    for length in 1..=MAX_CODE_BITS as u32 {
        let primary_length = length <= table_bits;
        if primary_length {
            if left == 0 {
                // Double the table: shorter codes repeat for every further bit.
                table.copy_within(0..filled, filled);
            }
            filled <<= 1;
        }
        let mut remaining = counts[length as usize];
        while remaining > 0 {
            let value = symbols.next()?;
            let entry = |consumed: u32| value.wrapping_add(consumed) | consumed << 8;
            if primary_length {
                let entry = entry(length);
                let step = if left == 0 { primary } else { 1 << length };
                for slot in table[..primary].iter_mut().skip(code).step_by(step) {
                    *slot = entry;
                }
            } else {
                let prefix = code & (primary - 1);
                if prefix != subtable_prefix {
                    subtable_prefix = prefix;
                    let mut bits = length - table_bits;
                    let mut space = u32::from(remaining);
                    while space < 1 << bits {
                        bits += 1;
                        space = (space << 1) + u32::from(*counts.get((table_bits + bits) as usize)?);
                    }
                    subtable_start = next_subtable;
                    subtable_size = 1 << bits;
                    next_subtable += subtable_size;
                    table[prefix] = EXCEPTIONAL | SUBTABLE | (subtable_start as u32) << 16 | bits << 8 | table_bits;
                }
                let entry = entry(length - table_bits);
                let subtable = table.get_mut(subtable_start..subtable_start + subtable_size)?;
                for slot in subtable.iter_mut().skip(code >> table_bits).step_by(1 << (length - table_bits)) {
                    *slot = entry;
                }
            }
            // The next code of this length, bits reversed: clear the run of ones at the top, set the zero below it.
            let ones = (1usize << length) - 1;
            if code == ones {
                code = 0;
            } else {
                let bit = 1usize << (usize::BITS - 1 - (code ^ ones).leading_zeros());
                code = (code & (bit - 1)) | bit;
            }
            remaining -= 1;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes by comparing codes, the slow way.
    fn reference(lengths: &[u8]) -> Vec<(usize, u32, u32)> {
        let mut code = 0u32;
        let mut codes = Vec::new();
        for length in 1..=15u32 {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| u32::from(**l) == length) {
                codes.push((symbol, length, code.reverse_bits() >> (32 - length)));
                code += 1;
            }
            code <<= 1;
        }
        codes
    }

    fn lookup(tables: &Tables, bits: usize) -> (u32, u32) {
        let mut entry = tables.litlen[bits & ((1 << LITLEN_BITS) - 1)];
        let mut consumed = 0;
        if entry & (EXCEPTIONAL | SUBTABLE) == EXCEPTIONAL | SUBTABLE {
            consumed = LITLEN_BITS;
            let index = (bits >> LITLEN_BITS) & ((1 << (entry >> 8 & 15)) - 1);
            entry = tables.litlen[(entry >> 16) as usize + index];
        }
        (entry >> 16, consumed + (entry >> 8 & 15))
    }

    #[test]
    fn every_code_of_a_skewed_alphabet_is_found() {
        // Lengths 1, 2, …, 14, then 15s: the deepest tree, with subtables; 256 is among them.
        let mut lengths = [0u8; 286];
        for (i, length) in lengths[..13].iter_mut().enumerate() {
            *length = i as u8 + 1;
        }
        lengths[256] = 14;
        lengths[60] = 15;
        lengths[61] = 15;
        let mut tables = Tables::new();
        tables.set(&lengths, &[1, 1]).unwrap();
        for (symbol, length, code) in reference(&lengths) {
            for rest in [0usize, 0x5555, 0xffff] {
                let bits = code as usize | rest << length;
                let (value, found) = lookup(&tables, bits);
                assert_eq!(found, length, "symbol {symbol}");
                if symbol < 256 {
                    assert_eq!(value & 0xff, symbol as u32);
                }
            }
        }
    }

    #[test]
    fn refuses_what_zlib_refuses() {
        let mut tables = Tables::new();
        let mut lengths = [0u8; 286];
        assert_eq!(tables.set(&lengths, &[1, 1]), Err(Fault::NoEndOfBlock));
        lengths[256] = 1;
        assert_eq!(tables.set(&lengths, &[1, 1]), Ok(()), "a single code of length 1 is allowed");
        assert_eq!(tables.set(&lengths, &[0]), Ok(()), "no distance codes are allowed");
        assert_eq!(tables.set(&lengths, &[1]), Ok(()), "one distance code of length 1 is allowed");
        assert_eq!(tables.set(&lengths, &[2]), Err(Fault::DistLengths), "incomplete");
        assert_eq!(tables.set(&lengths, &[1, 1, 1]), Err(Fault::DistLengths), "over-subscribed");
        lengths[256] = 2;
        assert_eq!(tables.set(&lengths, &[1, 1]), Err(Fault::LitlenLengths), "incomplete");
        lengths[..3].fill(1);
        assert_eq!(tables.set(&lengths, &[1, 1]), Err(Fault::LitlenLengths), "over-subscribed");
        assert!(Precode::new(&[0; 19]).is_err());
        let mut one = [0; 19];
        one[0] = 1;
        assert!(Precode::new(&one).is_err(), "zlib wants the code for lengths complete");
    }
}
