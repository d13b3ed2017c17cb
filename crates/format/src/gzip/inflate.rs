//! A Deflate decoder (RFC 1951) that stops before any symbol and can be resumed there.
use super::{LONGEST_MATCH, huffman::*};
use std::sync::Arc;

/// What is wrong with a Deflate stream.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// Block type 3.
    #[error("reserved block type")]
    BlockType,
    /// The length of a stored block and its complement don't match.
    #[error("the length of a stored block and its complement don't match")]
    StoredLength,
    /// More than 286 literal and length codes, or more than 30 distance codes.
    #[error("too many length or distance codes")]
    TooManyCodes,
    /// The code for code lengths is over-subscribed or incomplete.
    #[error("the code for code lengths is over-subscribed or incomplete")]
    PrecodeLengths,
    /// A repeat of code lengths has nothing to repeat or runs over the end.
    #[error("a repeated code length has nothing before it or runs over the end")]
    Repeat,
    /// The code for literals and lengths is over-subscribed or incomplete.
    #[error("the code for literals and lengths is over-subscribed or incomplete")]
    LitlenLengths,
    /// The code for distances is over-subscribed or incomplete.
    #[error("the code for distances is over-subscribed or incomplete")]
    DistLengths,
    /// The end of the block has no code.
    #[error("the end of the block has no code")]
    NoEndOfBlock,
    /// Bits that are no code for a literal or a length.
    #[error("invalid literal or length code")]
    LitlenCode,
    /// Bits that are no code for a distance.
    #[error("invalid distance code")]
    DistCode,
    /// A match reaches back beyond the member's start.
    #[error("a match reaches back beyond the start of the member")]
    TooFarBack,
}

/// Bytes that [`Inflate::run`] may write after the place where it stops: the rest of a match, and wide copies.
pub const OVERRUN: usize = LONGEST_MATCH + 64;

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
    fn left(&self) -> usize {
        (self.bytes.len() * 8).saturating_sub(self.bit)
    }

    /// The next bits, 57 or more of them valid; zeros after the last.
    fn peek(&self) -> u64 {
        let rest = self.bytes.get(self.bit >> 3..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(chunk) => u64::from_le_bytes(*chunk),
            None => rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte)),
        };
        word >> (self.bit & 7)
    }

    /// The next `count` bits (at most 16), if there are as many.
    fn take(&mut self, count: u32) -> Option<u32> {
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
}

/// Decoded bytes, and the place among them.
pub struct Output<'a> {
    /// History, then decoded bytes, then space.
    pub bytes: &'a mut [u8],
    /// Where the next decoded byte goes.
    pub at: usize,
    /// First byte of history that matches may refer to.
    pub floor: usize,
}

/// Hears which decoded bytes matches refer to.
pub trait Matches {
    /// Bytes `source..source + length` of the output are referred to by a match whose copy of them ends at `end`.
    fn matched(&mut self, source: usize, length: usize, end: usize);
}

/// Hears nothing.
impl Matches for () {
    fn matched(&mut self, _source: usize, _length: usize, _end: usize) {}
}

/// Where in a Deflate stream a decoder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Before a block's header.
    Header,
    /// In a stored block.
    Stored {
        /// Bytes of it to come.
        left: u16,
    },
    /// In a block of fixed codes.
    Fixed,
    /// In a block with codes of its own.
    Dynamic {
        /// The bits that define its codes: from HLIT on (RFC 1951, section 3.2.7), the first one lowest.
        codes: Arc<[u8]>,
    },
}

/// Why [`Inflate::run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// There are as many bytes as were asked for, or a few more: a match may go beyond them.
    Full {
        /// Bit at which the symbol starts that goes beyond them; the next symbol, if none does.
        bit: usize,
        /// Output position at which that symbol starts.
        at: usize,
    },
    /// The next symbol isn't wholly there.
    Starved,
    /// The block has ended; a block header is next.
    BlockEnd,
    /// The last block has ended.
    StreamEnd,
}

/// The decoder's state between symbols.
pub struct Inflate {
    tables: Box<Tables>,
    block: Block,
    last: bool,
}

impl Inflate {
    /// A decoder at the start of a stream.
    pub fn new() -> Self {
        Self { tables: Tables::new(), block: Block::Header, last: false }
    }

    /// Where the decoder is.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Whether the block it is in is the stream's last.
    pub fn last(&self) -> bool {
        self.last
    }

    /// Puts the decoder inside a stream. Fails if the codes of a dynamic block aren't well formed.
    pub fn resume(&mut self, block: &Block, last: bool) -> Result<(), Fault> {
        match block {
            Block::Header | Block::Stored { .. } => {}
            Block::Fixed => self.tables.set_fixed()?,
            Block::Dynamic { codes } => {
                let mut input = Input { bytes: codes, bit: 0 };
                self.read_codes(&mut input)?.ok_or(Fault::TooManyCodes)?;
            }
        }
        self.block = block.clone();
        self.last = last;
        Ok(())
    }

    /// Puts the decoder before the first block of a stream.
    pub fn restart(&mut self) {
        self.block = Block::Header;
        self.last = false;
    }

    /// Reads a block's header. `None`, and nothing is read, if it isn't wholly there.
    pub fn read_header(&mut self, input: &mut Input<'_>) -> Result<Option<()>, Fault> {
        let mut at = *input;
        let Some(bits) = at.take(3) else { return Ok(None) };
        let block = match bits >> 1 {
            0 => {
                let start = at.align();
                let Some(&[a, b, c, d]) = at.bytes.get(start..).and_then(|rest| rest.first_chunk()) else {
                    return Ok(None);
                };
                let left = u16::from_le_bytes([a, b]);
                if left != !u16::from_le_bytes([c, d]) {
                    return Err(Fault::StoredLength);
                }
                at.bit += 32;
                Block::Stored { left }
            }
            1 => {
                self.tables.set_fixed()?;
                Block::Fixed
            }
            2 => {
                let start = at.bit;
                let Some(()) = self.read_codes(&mut at)? else { return Ok(None) };
                Block::Dynamic { codes: bits_between(at.bytes, start, at.bit) }
            }
            _ => return Err(Fault::BlockType),
        };
        *input = at;
        self.block = block;
        self.last = bits & 1 != 0;
        Ok(Some(()))
    }

    /// Reads the definition of a dynamic block's codes (RFC 1951, section 3.2.7) and builds its tables.
    fn read_codes(&mut self, input: &mut Input<'_>) -> Result<Option<()>, Fault> {
        /// Places in which lengths for the code for code lengths come.
        const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

        let Some(counts) = input.take(14) else { return Ok(None) };
        let litlen_count = (counts & 31) as usize + 257;
        let dist_count = (counts >> 5 & 31) as usize + 1;
        let precode_count = (counts >> 10) as usize + 4;
        if litlen_count > MAX_LITLEN || dist_count > MAX_DIST {
            return Err(Fault::TooManyCodes);
        }
        let mut precode_lengths = [0; 19];
        for &place in &ORDER[..precode_count] {
            let Some(length) = input.take(3) else { return Ok(None) };
            precode_lengths[place] = length as u8;
        }
        let precode = Precode::new(&precode_lengths)?;
        let mut lengths = [0u8; MAX_LITLEN + MAX_DIST];
        let lengths = &mut lengths[..litlen_count + dist_count];
        let mut filled = 0;
        while filled < lengths.len() {
            let bits = input.peek();
            let (symbol, code_bits) = precode.get(bits);
            let (extra, base) = match symbol {
                16 => (2, 3),
                17 => (3, 3),
                18 => (7, 11),
                _ => (0, 1),
            };
            let consumed = (code_bits + extra) as usize;
            if input.left() < consumed {
                return Ok(None);
            }
            input.bit += consumed;
            let repeat = base + (bits >> code_bits) as usize % (1 << extra);
            let value = match symbol {
                16 => *lengths[..filled].last().ok_or(Fault::Repeat)?,
                17 | 18 => 0,
                length => length as u8,
            };
            lengths.get_mut(filled..filled + repeat).ok_or(Fault::Repeat)?.fill(value);
            filled += repeat;
        }
        let (litlen, dist) = lengths.split_at(litlen_count);
        self.tables.set(litlen, dist)?;
        Ok(Some(()))
    }

    /// Decodes the block that the decoder is in until `output.at` reaches `limit`, or a reason to stop comes up.
    /// `output` must have room for [`OVERRUN`] bytes after `limit`.
    pub fn run(
        &mut self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        limit: usize,
        matches: &mut impl Matches,
    ) -> Result<Stop, Fault> {
        match &mut self.block {
            Block::Header => Ok(Stop::BlockEnd),
            Block::Stored { left } => {
                let start = input.align();
                let source = input.bytes.get(start..).unwrap_or_default();
                let length = usize::from(*left).min(limit.saturating_sub(output.at)).min(source.len());
                output.bytes[output.at..output.at + length].copy_from_slice(&source[..length]);
                output.at += length;
                input.bit += length * 8;
                *left -= length as u16;
                Ok(match *left {
                    _ if output.at >= limit => Stop::Full { bit: input.bit, at: output.at },
                    0 => self.end_block(),
                    _ => Stop::Starved,
                })
            }
            Block::Fixed | Block::Dynamic { .. } => self.run_codes(input, output, limit, matches),
        }
    }

    fn end_block(&mut self) -> Stop {
        self.block = Block::Header;
        if self.last { Stop::StreamEnd } else { Stop::BlockEnd }
    }

    fn run_codes(
        &mut self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        limit: usize,
        matches: &mut impl Matches,
    ) -> Result<Stop, Fault> {
        let (mut bit, mut at) = (input.bit, output.at);
        while output.at < limit {
            self.fast(input, output, limit, matches)?;
            (bit, at) = (input.bit, output.at);
            if at == limit {
                break;
            }
            match self.symbol(input, output, matches)? {
                Symbol::Decoded => {}
                Symbol::Starved => return Ok(Stop::Starved),
                Symbol::End => return Ok(self.end_block()),
            }
        }
        Ok(if output.at > limit { Stop::Full { bit, at } } else { Stop::Full { bit: input.bit, at: output.at } })
    }

    /// Decodes symbols as long as whole words of input can be loaded and the symbols surely end at or before `limit`.
    /// Leaves the rest, and the end of the block, to [`Self::symbol`].
    fn fast(
        &self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        limit: usize,
        matches: &mut impl Matches,
    ) -> Result<(), Fault> {
        let Tables { litlen, dist, .. } = &*self.tables;
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
            loop {
                refill!();
                if at + 3 > limit {
                    break;
                }
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
                if distance >= 16 {
                    let (mut from, mut to) = (from, at);
                    loop {
                        bytes.copy_within(from..from + 16, to);
                        from += 16;
                        to += 16;
                        if to >= end {
                            break;
                        }
                    }
                } else if distance == 1 {
                    let byte = bytes[from];
                    bytes[at..end].fill(byte);
                } else {
                    for to in at..end {
                        bytes[to] = bytes[to - distance];
                    }
                }
                matches.matched(from, length.min(distance), end);
                at = end;
            }
            None
        };
        input.bit = next * 8 - have as usize;
        output.at = at;
        fault.map_or(Ok(()), Err)
    }

    /// Reads the end of a block that isn't the last, if nothing else of the block is left.
    pub fn settle(&mut self, input: &mut Input<'_>) {
        let length = match &self.block {
            Block::Stored { left: 0 } => 0,
            Block::Fixed | Block::Dynamic { .. } => {
                let (entry, before) = self.litlen(input.peek());
                if entry & LITERAL != 0 || entry & (EXCEPTIONAL | END_OF_BLOCK) != EXCEPTIONAL | END_OF_BLOCK {
                    return;
                }
                (before + (entry & 0xff)) as usize
            }
            _ => return,
        };
        if !self.last && length <= input.left() {
            input.bit += length;
            self.block = Block::Header;
        }
    }

    /// The entry for the literal or length that `bits` start with, and the bits to consume before it.
    fn litlen(&self, bits: u64) -> (u32, u32) {
        let entry = self.tables.litlen[bits as usize & ((1 << LITLEN_BITS) - 1)];
        if entry & LITERAL == 0 && entry & (EXCEPTIONAL | SUBTABLE) == EXCEPTIONAL | SUBTABLE {
            let index = subtable_index(entry, bits >> LITLEN_BITS);
            return (self.tables.litlen[index & (LITLEN_SIZE - 1)], LITLEN_BITS);
        }
        (entry, 0)
    }

    /// Decodes one symbol, near the end of the input or of what is wanted.
    fn symbol(
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
        let mut entry = self.tables.dist[bits as usize & ((1 << DIST_BITS) - 1)];
        if entry & EXCEPTIONAL != 0 && entry & SUBTABLE != 0 {
            consumed += DIST_BITS;
            bits >>= DIST_BITS;
            entry = self.tables.dist[subtable_index(entry, bits) & (DIST_SIZE - 1)];
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
        matches.matched(source, length.min(distance), output.at);
        Ok(Symbol::Decoded)
    }
}

enum Symbol {
    Decoded,
    Starved,
    End,
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

/// Bits `start..end` of `bytes`, the first one lowest.
fn bits_between(bytes: &[u8], start: usize, end: usize) -> Arc<[u8]> {
    let count = end - start;
    let mut input = Input { bytes, bit: start };
    (0..count.div_ceil(8))
        .map(|i| {
            let bits = (count - i * 8).min(8) as u32;
            input.take(bits).unwrap_or_default() as u8
        })
        .collect()
}
