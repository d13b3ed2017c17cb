//! Finding the frames of a zstd stream, by their headers and those of their blocks, without decoding them.
use super::{
    MAX_WINDOW, ZstdError,
    frame::{self, BlockHeader, FrameHeader, Header, MAX_HEADER},
};
use std::ops::Range;

/// Walks along a zstd stream, whatever the pieces that it comes in.
pub struct Walker {
    place: Place,
    /// The frame's header: its first `have` bytes.
    header: [u8; MAX_HEADER],
    have: usize,
    /// Byte of the blob at which the header or body at hand goes on.
    offset: u64,
    /// Byte of the blob at which the frame at hand starts.
    start: u64,
    frame: u64,
    checksum: bool,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Place {
    /// The header of a frame, or the end of the stream.
    Frame,
    /// The rest of a block's header, after its first bytes.
    Block { have: usize, header: [u8; 3] },
    /// The rest of a block.
    Body { left: u32, last: bool },
    /// The rest of a frame's checksum.
    Checksum { left: u32 },
    /// The rest of a skippable frame.
    Skip { left: u32 },
}

/// Before a block.
const BLOCK: Place = Place::Block { have: 0, header: [0; 3] };

/// What [`Walker::step`] has gone over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Part of a header between frames, or of a skippable frame.
    Between,
    /// The last of a frame's header, of which [`Walker::header`] gives all bytes.
    Header(FrameHeader),
    /// Part of a frame.
    Inside,
    /// The last part of a frame.
    End,
}

impl Walker {
    /// A walker before a frame at byte `offset` of the blob.
    pub fn new(offset: u64) -> Self {
        Self { place: Place::Frame, header: [0; MAX_HEADER], have: 0, offset, start: offset, frame: 0, checksum: false }
    }

    /// A walker before a block, at byte `offset` of the blob, of a frame that ends with a checksum or doesn't.
    pub fn at_block(offset: u64, checksum: bool) -> Self {
        Self { place: BLOCK, checksum, ..Self::new(offset) }
    }

    /// Number of the frame at hand; of the next one after [`Step::End`].
    pub fn frame(&self) -> u64 {
        self.frame
    }

    /// Byte of the blob at which the frame at hand starts.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Byte of the blob after those walked over.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes of the frame that [`Step::End`] tells of.
    pub fn last(&self) -> Range<u64> {
        self.start..self.offset
    }

    /// The header that [`Step::Header`] tells of.
    pub fn header(&self) -> &[u8] {
        &self.header[..self.have]
    }

    /// Whether the stream may end here.
    pub fn may_end(&self) -> bool {
        matches!(self.place, Place::Frame) && self.have == 0 && self.frame > 0
    }

    /// Whether all that was walked over can be decoded, because no frame's header or block is cut off; else what is
    /// wrong. A checksum may be.
    pub fn must_be_between_blocks(&self) -> Result<(), ZstdError> {
        match self.place {
            Place::Frame if self.have == 0 && self.offset > self.start => Ok(()),
            Place::Block { have: 0, .. } | Place::Body { left: 0, .. } | Place::Checksum { .. } => Ok(()),
            _ => Err(ZstdError::Truncated { frame: self.frame, offset: self.offset }),
        }
    }

    /// Bytes of the checksum at the end of what was walked over; `None` if the last block of a frame hasn't been.
    pub fn checksum_walked(&self) -> Option<usize> {
        match self.place {
            Place::Frame => Some(if self.checksum { 4 } else { 0 }),
            Place::Checksum { left } => Some(4 - left as usize),
            _ => None,
        }
    }

    /// Goes over at least one of `bytes`, of which there must be one, and as far as the same step reaches. Gives the
    /// number of bytes. After an error there is nowhere to go.
    pub fn step(&mut self, bytes: &[u8]) -> Result<(usize, Step), ZstdError> {
        let (walked, step) = match self.place {
            Place::Frame => self.frame_header(bytes)?,
            Place::Skip { left } => {
                let walked = bytes.len().min(left as usize);
                self.skip(left - walked as u32);
                (walked, Step::Between)
            }
            Place::Block { .. } | Place::Body { .. } | Place::Checksum { .. } => self.inside(bytes)?,
        };
        self.offset += walked as u64;
        Ok((walked, step))
    }

    fn frame_header(&mut self, bytes: &[u8]) -> Result<(usize, Step), ZstdError> {
        if self.have == 0 {
            self.start = self.offset;
        }
        let (frame, offset) = (self.frame, self.start);
        for (walked, &byte) in (1..).zip(bytes) {
            self.header[self.have] = byte;
            self.have += 1;
            match frame::parse(&self.header[..self.have]) {
                Ok(Header::Partial) => {}
                Ok(Header::Frame(header)) => {
                    if header.dictionary != 0 {
                        return Err(ZstdError::Dictionary { frame, offset, id: header.dictionary });
                    }
                    if header.window > MAX_WINDOW {
                        return Err(ZstdError::Window { frame, offset, window: header.window });
                    }
                    self.checksum = header.checksum;
                    self.place = BLOCK;
                    return Ok((walked, Step::Header(header)));
                }
                Ok(Header::Skippable { len }) => {
                    self.skip(len);
                    return Ok((walked, Step::Between));
                }
                Ok(Header::Foreign) if frame == 0 => return Err(ZstdError::NotZstd { offset }),
                Ok(Header::Foreign) => return Err(ZstdError::Garbage { frame: frame - 1, offset }),
                Err(what) => return Err(ZstdError::Header { frame, offset, what }),
            }
        }
        Ok((bytes.len(), Step::Between))
    }

    fn skip(&mut self, left: u32) {
        self.place = Place::Skip { left };
        if left == 0 {
            self.next_frame();
        }
    }

    fn next_frame(&mut self) {
        self.place = Place::Frame;
        self.have = 0;
        self.frame += 1;
    }

    /// Goes over blocks and the checksum.
    fn inside(&mut self, bytes: &[u8]) -> Result<(usize, Step), ZstdError> {
        let mut walked = 0;
        loop {
            let rest = &bytes[walked..];
            match self.place {
                Place::Frame | Place::Skip { .. } => return Ok((walked, Step::End)),
                Place::Body { left: 0, last: true } if self.checksum => self.place = Place::Checksum { left: 4 },
                Place::Body { left: 0, last: true } | Place::Checksum { left: 0 } => self.next_frame(),
                Place::Body { left: 0, last: false } => self.place = BLOCK,
                _ if rest.is_empty() => return Ok((walked, Step::Inside)),
                Place::Block { have, mut header } => {
                    header[have] = rest[0];
                    walked += 1;
                    self.place = Place::Block { have: have + 1, header };
                    if have + 1 == header.len() {
                        let offset = self.offset + walked as u64 - 3;
                        let block = BlockHeader::parse(&header).map_err(|what| ZstdError::Header {
                            frame: self.frame,
                            offset,
                            what,
                        })?;
                        self.place = Place::Body { left: block.len, last: block.last };
                    }
                }
                Place::Body { left, last } => {
                    let taken = rest.len().min(left as usize);
                    self.place = Place::Body { left: left - taken as u32, last };
                    walked += taken;
                }
                Place::Checksum { left } => {
                    let taken = rest.len().min(left as usize);
                    self.place = Place::Checksum { left: left - taken as u32 };
                    walked += taken;
                }
            }
        }
    }
}

/// Whether `source`, from byte `offset` of the blob on, is frames, of which the last may lack blocks; else what is wrong.
pub fn must_be_blocks(source: &[u8], offset: u64) -> Result<(), ZstdError> {
    let mut walker = Walker::new(offset);
    let mut rest = source;
    while !rest.is_empty() {
        let (walked, _) = walker.step(rest)?;
        rest = &rest[walked..];
    }
    walker.must_be_between_blocks()
}
