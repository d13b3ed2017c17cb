//! A gzip stream: members one after another, each a header, a Deflate stream and a trailer (RFC 1952).
use super::{
    GzipError,
    bits::{Input, Matches, Output},
    header::{self, Header},
    inflate::{Block, Fault, Inflate, Stop},
};

/// Where in a gzip stream a decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before a member's header.
    Header,
    /// Inside a member's Deflate stream.
    Deflate,
    /// Before a member's trailer.
    Trailer,
    /// In the zeros after the last member.
    Padding,
}

/// Watches a gzip stream being decoded. Places are given as the next bit of the input and the next byte of the output;
/// the same place may be told twice.
pub trait Watch: Matches {
    /// A member starts here.
    fn member(&mut self, bit: usize, at: usize);
    /// A Deflate block starts here.
    fn block(&mut self, bit: usize, at: usize);
}

impl Watch for () {
    fn member(&mut self, _bit: usize, _at: usize) {}
    fn block(&mut self, _bit: usize, _at: usize) {}
}

/// Why [`Members::run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// There are as many bytes as were asked for; see [`Stop::Full`].
    Full {
        /// Bit at which the symbol starts that goes beyond them; the next symbol, if none does.
        bit: usize,
        /// Output position at which that symbol starts.
        at: usize,
    },
    /// More input is needed, or the stream has ended.
    Starved,
    /// A member has ended with this trailer.
    MemberEnd {
        /// CRC-32 of its bytes, as the trailer says.
        crc: u32,
        /// Their number modulo 2^32, as the trailer says.
        length: u32,
    },
}

/// The decoder's state between symbols.
pub struct Members {
    /// The decoder of the member at hand.
    pub inflate: Inflate,
    phase: Phase,
    /// Number of the member at hand.
    member: u64,
}

impl Members {
    /// A decoder before a member.
    pub fn new() -> Self {
        Self { inflate: Inflate::new(), phase: Phase::Header, member: 0 }
    }

    /// A decoder inside a member.
    pub fn inside(inflate: Inflate) -> Self {
        Self { inflate, phase: Phase::Deflate, member: 0 }
    }

    /// Whether the stream may end here.
    pub fn may_end(&self) -> bool {
        self.member > 0 && matches!(self.phase, Phase::Header | Phase::Padding)
    }

    /// Number of the member at hand.
    pub fn member(&self) -> u64 {
        self.member
    }

    /// Decodes until `output.at` reaches `limit`, or another reason to stop comes up. `base` is the byte of the blob
    /// that `input` starts with, for errors. `output` must have room for [`super::bits::OVERRUN`] bytes after
    /// `limit`.
    pub fn run(
        &mut self,
        input: &mut Input<'_>,
        base: u64,
        output: &mut Output<'_>,
        limit: usize,
        watch: &mut impl Watch,
    ) -> Result<Pause, GzipError> {
        loop {
            match self.phase {
                Phase::Header => {
                    let start = input.bit >> 3;
                    let offset = base + start as u64;
                    let bytes = input.bytes.get(start..).unwrap_or_default();
                    if bytes.first() == Some(&0) && self.member > 0 {
                        self.phase = Phase::Padding;
                        continue;
                    }
                    watch.member(input.bit, output.at);
                    match header::parse(bytes) {
                        Ok(Header::Complete(length)) => {
                            input.bit += length * 8;
                            self.inflate.restart();
                            self.phase = Phase::Deflate;
                            output.floor = output.at;
                        }
                        Ok(Header::Partial) => return Ok(Pause::Starved),
                        Ok(Header::Foreign) if self.member > 0 => {
                            return Err(GzipError::Garbage { member: self.member - 1, offset });
                        }
                        Ok(Header::Foreign) => return Err(GzipError::NotGzip { offset }),
                        Err(what) => return Err(GzipError::Header { member: self.member, offset, what }),
                    }
                }
                Phase::Deflate => match self.deflate(input, output, limit, watch) {
                    Ok(Stop::Full { bit, at }) => return Ok(Pause::Full { bit, at }),
                    Ok(Stop::Starved) => return Ok(Pause::Starved),
                    Ok(Stop::BlockEnd) => {}
                    Ok(Stop::StreamEnd) => {
                        input.align();
                        self.phase = Phase::Trailer;
                    }
                    Err(fault) => {
                        let offset = base + (input.bit >> 3) as u64;
                        return Err(GzipError::Deflate { member: self.member, offset, fault });
                    }
                },
                Phase::Trailer => {
                    let rest = input.bytes.get(input.bit >> 3..).unwrap_or_default();
                    let Some(&[a, b, c, d, e, f, g, h]) = rest.first_chunk() else { return Ok(Pause::Starved) };
                    input.bit += 64;
                    self.phase = Phase::Header;
                    self.member += 1;
                    return Ok(Pause::MemberEnd {
                        crc: u32::from_le_bytes([a, b, c, d]),
                        length: u32::from_le_bytes([e, f, g, h]),
                    });
                }
                Phase::Padding => {
                    let start = input.bit >> 3;
                    let rest = input.bytes.get(start..).unwrap_or_default();
                    if let Some(zeros) = rest.iter().position(|&byte| byte != 0) {
                        let offset = base + (start + zeros) as u64;
                        return Err(GzipError::Garbage { member: self.member - 1, offset });
                    }
                    input.bit += rest.len() * 8;
                    return Ok(Pause::Starved);
                }
            }
        }
    }

    /// Reads the end of a block if nothing else of the block is left, so that the next block's header is next.
    pub fn settle(&mut self, input: &mut Input<'_>) {
        if self.phase == Phase::Deflate {
            self.inflate.settle(input);
        }
    }

    /// Goes to the start of a member, wherever the decoder was.
    pub fn restart(&mut self) {
        self.phase = Phase::Header;
    }

    /// Reads a block's header if one is next, then the block.
    fn deflate(
        &mut self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
        limit: usize,
        watch: &mut impl Watch,
    ) -> Result<Stop, Fault> {
        if *self.inflate.block() == Block::Header {
            watch.block(input.bit, output.at);
            let Some(()) = self.inflate.read_header(input)? else { return Ok(Stop::Starved) };
        }
        self.inflate.run(input, output, limit, watch)
    }
}
