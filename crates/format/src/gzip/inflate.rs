//! A Deflate decoder (RFC 1951) that stops before any symbol and can be resumed there.
use super::{
    bits::{Input, Matches, Output},
    huffman::{MAX_DIST, MAX_LITLEN, Precode, Tables},
    symbol::Symbol,
};
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
                Block::Dynamic { codes: at.copy(start, at.bit).into() }
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
    /// `output` must have room for [`super::bits::OVERRUN`] bytes after `limit`.
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
            self.tables.fast(input, output, limit, matches)?;
            (bit, at) = (input.bit, output.at);
            if at == limit {
                break;
            }
            match self.tables.next(input, output, matches)? {
                Symbol::Decoded => {}
                Symbol::Starved => return Ok(Stop::Starved),
                Symbol::End => return Ok(self.end_block()),
            }
        }
        Ok(if output.at > limit { Stop::Full { bit, at } } else { Stop::Full { bit: input.bit, at: output.at } })
    }

    /// Reads the end of a block that isn't the last, if nothing else of the block is left.
    pub fn settle(&mut self, input: &mut Input<'_>) {
        let length = match &self.block {
            Block::Stored { left: 0 } => 0,
            Block::Fixed | Block::Dynamic { .. } => {
                let Some(length) = self.tables.end_of_block(input) else { return };
                length
            }
            _ => return,
        };
        if !self.last {
            input.bit += length;
            self.block = Block::Header;
        }
    }
}
