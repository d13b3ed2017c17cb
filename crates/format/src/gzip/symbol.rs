//! Decoding the symbols of a block: a fast path, and a careful one near the ends of input and output.
use super::{
    bits::{Input, Matches, Output},
    huffman::*,
    inflate::Fault,
};

/// What [`Tables::next`] has found.
pub enum Symbol {
    /// A literal or a match; it is in the output.
    Decoded,
    /// Not all bits of it are there; nothing is read.
    Starved,
    /// The end of the block.
    End,
}

impl Tables {
    /// Decodes symbols as long as whole words of input can be loaded and the symbols surely end at or before `limit`.
    /// Leaves the rest, and the end of the block, to [`Tables::next`].
    pub fn fast(
        &self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        limit: usize,
        matches: &mut impl Matches,
    ) -> Result<(), Fault> {
        let Tables { litlen, dist, .. } = self;
        let source = input.bytes;
        let bytes = &mut *output.bytes;
        let floor = output.floor;
        let mut at = output.at;
        // `word` holds the next bits, `have` of them counted; those above are right too, but loaded again.
        let mut next = input.bit >> 3;
        let mut word = 0u64;
        let mut have = 0u32;
        macro_rules! refill {
            () => {
                let Some(chunk) = source.get(next..).and_then(|rest| rest.first_chunk()) else { break };
                word |= u64::from_le_bytes(*chunk) << have;
                next += (63 - have as usize) >> 3;
                have |= 56;
            };
        }
        macro_rules! consume {
            ($count:expr) => {
                word >>= $count & 63;
                have -= $count;
            };
        }
        let fault = 'decode: {
            let Some(chunk) = source.get(next..).and_then(|rest| rest.first_chunk()) else { return Ok(()) };
            word |= u64::from_le_bytes(*chunk);
            next += 7;
            have |= 56;
            consume!((input.bit & 7) as u32);
            while at + 3 <= limit {
                refill!();
                let mut entry = litlen[word as usize & ((1 << LITLEN_BITS) - 1)];
                if entry & LITERAL != 0 {
                    consume!(entry & 0xff);
                    bytes[at] = (entry >> 16) as u8;
                    at += 1;
                    entry = litlen[word as usize & ((1 << LITLEN_BITS) - 1)];
                    if entry & LITERAL != 0 {
                        consume!(entry & 0xff);
                        bytes[at] = (entry >> 16) as u8;
                        at += 1;
                        entry = litlen[word as usize & ((1 << LITLEN_BITS) - 1)];
                        if entry & LITERAL != 0 {
                            consume!(entry & 0xff);
                            bytes[at] = (entry >> 16) as u8;
                            at += 1;
                            continue;
                        }
                    }
                    refill!();
                }
                // Where the symbol starts, to leave it to the slow decoder.
                let have_before = have;
                if entry & EXCEPTIONAL != 0 {
                    if entry & SUBTABLE == 0 {
                        break;
                    }
                    consume!(LITLEN_BITS);
                    entry = litlen[subtable_index(entry, word) & (LITLEN_SIZE - 1)];
                    if entry & LITERAL != 0 {
                        consume!(entry & 0xff);
                        bytes[at] = (entry >> 16) as u8;
                        at += 1;
                        continue;
                    }
                    if entry & EXCEPTIONAL != 0 {
                        have = have_before;
                        break;
                    }
                }
                let length = base_plus_extra(entry, word);
                consume!(entry & 0xff);
                let mut entry = dist[word as usize & ((1 << DIST_BITS) - 1)];
                if entry & EXCEPTIONAL != 0 {
                    if entry & SUBTABLE != 0 {
                        consume!(DIST_BITS);
                        entry = dist[subtable_index(entry, word) & (DIST_SIZE - 1)];
                    }
                    if entry & EXCEPTIONAL != 0 {
                        have = have_before;
                        break 'decode Some(Fault::DistCode);
                    }
                }
                let distance = base_plus_extra(entry, word);
                consume!(entry & 0xff);
                let end = at + length;
                if end > limit {
                    have = have_before;
                    break;
                }
                if distance > at - floor {
                    have = have_before;
                    break 'decode Some(Fault::TooFarBack);
                }
                let from = at - distance;
                copy(bytes, from, at, end);
                matches.matched(from, length, end);
                at = end;
            }
            None
        };
        input.bit = next * 8 - have as usize;
        output.at = at;
        fault.map_or(Ok(()), Err)
    }

    /// Bits of the end of the block, if it comes next in `input`.
    pub fn end_of_block(&self, input: &Input<'_>) -> Option<usize> {
        let (entry, before) = self.litlen(input.peek());
        let length = (before + (entry & 0xff)) as usize;
        (entry & LITERAL == 0 && entry & EXCEPTIONAL != 0 && entry & END_OF_BLOCK != 0 && length <= input.left())
            .then_some(length)
    }

    /// The entry for the literal or length that `bits` start with, and the bits to consume before it.
    fn litlen(&self, bits: u64) -> (u32, u32) {
        let entry = self.litlen[bits as usize & ((1 << LITLEN_BITS) - 1)];
        if entry & LITERAL == 0 && entry & (EXCEPTIONAL | SUBTABLE) == EXCEPTIONAL | SUBTABLE {
            let index = subtable_index(entry, bits >> LITLEN_BITS);
            return (self.litlen[index & (LITLEN_SIZE - 1)], LITLEN_BITS);
        }
        (entry, 0)
    }

    /// Decodes one symbol, near the end of the input or of what is wanted.
    pub fn next(
        &self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        matches: &mut impl Matches,
    ) -> Result<Symbol, Fault> {
        let left = input.left();
        let bits = input.peek();
        let (entry, mut consumed) = self.litlen(bits);
        let mut bits = bits >> consumed;
        consumed += entry & 0xff;
        if entry & LITERAL == 0 && entry & EXCEPTIONAL != 0 && entry & END_OF_BLOCK == 0 {
            return if left < 15 { Ok(Symbol::Starved) } else { Err(Fault::LitlenCode) };
        }
        if left < consumed as usize {
            return Ok(Symbol::Starved);
        }
        if entry & LITERAL != 0 {
            output.bytes[output.at] = (entry >> 16) as u8;
            output.at += 1;
            input.bit += consumed as usize;
            return Ok(Symbol::Decoded);
        }
        if entry & EXCEPTIONAL != 0 {
            input.bit += consumed as usize;
            return Ok(Symbol::End);
        }
        let length = base_plus_extra(entry, bits);
        bits >>= entry & 0xff;
        let mut entry = self.dist[bits as usize & ((1 << DIST_BITS) - 1)];
        if entry & EXCEPTIONAL != 0 && entry & SUBTABLE != 0 {
            consumed += DIST_BITS;
            bits >>= DIST_BITS;
            entry = self.dist[subtable_index(entry, bits) & (DIST_SIZE - 1)];
        }
        if entry & EXCEPTIONAL != 0 {
            return if left < consumed as usize + 15 { Ok(Symbol::Starved) } else { Err(Fault::DistCode) };
        }
        consumed += entry & 0xff;
        if left < consumed as usize {
            return Ok(Symbol::Starved);
        }
        let distance = base_plus_extra(entry, bits);
        if distance > output.at - output.floor {
            return Err(Fault::TooFarBack);
        }
        input.bit += consumed as usize;
        let source = output.at - distance;
        for i in 0..length {
            output.bytes[output.at + i] = output.bytes[source + i];
        }
        output.at += length;
        matches.matched(source, length, output.at);
        Ok(Symbol::Decoded)
    }
}

/// Copies `bytes[from..]` to `bytes[at..end]`, where the two may overlap: what is copied may be copied again. Writes up
/// to 15 bytes after `end`.
#[inline(always)]
fn copy(bytes: &mut [u8], from: usize, at: usize, end: usize) {
    /// By distance: what makes 8 bytes of so few when multiplied, and how many whole repeats are bytes.
    const REPEATS: [(u64, usize); 8] = [
        (0, 8),
        (0x0101_0101_0101_0101, 8),
        (0x0001_0001_0001_0001, 8),
        (0x0001_0000_0100_0001, 6),
        (0x0000_0001_0000_0001, 8),
        (0x0000_0100_0000_0001, 5),
        (0x0001_0000_0000_0001, 6),
        (0x0100_0000_0000_0001, 7),
    ];
    let distance = at - from;
    let mut to = at;
    if distance >= 16 {
        let mut from = from;
        loop {
            bytes.copy_within(from..from + 16, to);
            from += 16;
            to += 16;
            if to >= end {
                break;
            }
        }
    } else if distance >= 8 {
        let mut from = from;
        loop {
            bytes.copy_within(from..from + 8, to);
            from += 8;
            to += 8;
            if to >= end {
                break;
            }
        }
    } else if distance == 1 {
        let byte = bytes[from];
        bytes[at..end].fill(byte);
    } else if let Some(word) = bytes[from..].first_chunk() {
        let (repeats, step) = REPEATS[distance & 7];
        let word = u64::from_le_bytes(*word) & ((1 << (distance * 8)) - 1);
        let word = word.wrapping_mul(repeats).to_le_bytes();
        while to < end {
            bytes[to..to + 8].copy_from_slice(&word);
            to += step;
        }
    }
}

/// Index of the entry that `bits` select in the subtable that `entry` leads to.
fn subtable_index(entry: u32, bits: u64) -> usize {
    (entry >> 16) as usize + (bits as usize & ((1 << (entry >> 8 & 15)) - 1))
}

/// Length or distance of a match: `bits` start with its code.
fn base_plus_extra(entry: u32, bits: u64) -> usize {
    let code_bits = entry >> 8 & 15;
    let extra_bits = (entry & 0xff) - code_bits;
    (entry >> 16) as usize + ((bits >> code_bits) as usize & ((1 << extra_bits) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_repeat_what_they_have_copied() {
        for distance in 1..40 {
            for length in 3..60 {
                let mut bytes: Vec<u8> = (0..40).chain([0xee; 100]).collect();
                let mut wanted = bytes[..40].to_vec();
                for _ in 0..length {
                    wanted.push(wanted[wanted.len() - distance]);
                }
                copy(&mut bytes, 40 - distance, 40, 40 + length);
                assert_eq!(bytes[..40 + length], wanted, "{length} bytes from {distance} before");
                assert!(
                    bytes[40 + length + 15..].iter().all(|&byte| byte == 0xee),
                    "{length} from {distance}: overrun"
                );
            }
        }
    }
}
