//! Building the index of a gzip layer: inflate it once, cut it into spans, note how to start at each.
use super::{
    Checkpoint, GzipError, WINDOW,
    bits::{Input, Matches, OVERRUN, Output},
    cut::{GRID, Mark, Trail},
    member::{Members, Pause, Watch},
};
use crate::parse::Parse;
use crate::span::{Span, Start};

/// Most source bytes that a span may need. Real spans need about as many as they have device bytes; only a stream full
/// of empty blocks or members needs more.
pub const MAX_SPAN_SOURCE: u32 = 64 << 20;

/// How to index.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Most device bytes of a span; rounded down to whole blocks, and up to 64 KiB.
    pub span_size: u32,
}

/// A span that the indexer has cut.
#[derive(Clone, Debug)]
pub struct IndexedSpan {
    /// First device byte.
    pub device_offset: u64,
    /// First byte of the blob that decoding needs.
    pub source_offset: u64,
    /// Bytes of the blob that decoding needs.
    pub source_len: u32,
    /// How the decoder starts.
    pub start: Start,
    /// The checkpoint, if `start` names one; they are numbered from 0 in the order of spans.
    pub checkpoint: Option<SpanCheckpoint>,
    /// The span's device bytes, never none; but those of a span that goes to a [`crate::zstd::Sink`] may follow.
    pub bytes: Vec<u8>,
    /// How they were put together in the layer, where that is known and was asked for.
    pub parse: Option<Parse>,
}

/// A checkpoint that an indexer has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanCheckpoint {
    /// Inside a Deflate stream; neighbours are to be encoded together.
    Gzip(Checkpoint),
    /// Inside a zstd frame: as [`crate::zstd::Checkpoint::encode`] gives it.
    Zstd(Vec<u8>),
}

impl SpanCheckpoint {
    /// That of a gzip layer.
    pub fn as_gzip(&self) -> Option<&Checkpoint> {
        match self {
            Self::Gzip(checkpoint) => Some(checkpoint),
            Self::Zstd(_) => None,
        }
    }

    /// That of a zstd layer, encoded.
    pub fn as_zstd(&self) -> Option<&[u8]> {
        match self {
            Self::Zstd(encoded) => Some(encoded),
            Self::Gzip(_) => None,
        }
    }
}

impl IndexedSpan {
    /// The span as a table has it, with the digest of its bytes.
    pub fn to_span(&self) -> Span {
        Span {
            device_offset: self.device_offset,
            device_len: self.bytes.len() as u32,
            source_offset: self.source_offset,
            source_len: self.source_len,
            start: self.start,
            blake3: *blake3::hash(&self.bytes).as_bytes(),
        }
    }
}

/// History kept before the span at hand: a window before the symbol that straddles the span's start, in whole blocks.
const HISTORY: usize = WINDOW + GRID;
/// A span is cut when so much after the farthest possible cut is decoded that nothing further refers across it.
const LOOKAHEAD: usize = WINDOW;
/// Input is taken in pieces of so many bytes, so that one large push isn't copied as a whole.
const PIECE: usize = 64 << 10;
/// Output is hashed when there is so much of it.
const HASHED: usize = 32 << 10;

/// Inflates a gzip layer that is pushed in pieces, and cuts it into spans. What comes out doesn't depend on the pieces.
pub struct Indexer {
    span_blocks: usize,
    /// Input not yet decoded, from byte `base` of the blob on.
    input: Vec<u8>,
    base: u64,
    /// Next bit of the input.
    bit: usize,
    /// More input than this is needed to go on.
    waiting_for: usize,
    members: Members,
    /// History, the span at hand, and what comes after it.
    bytes: Vec<u8>,
    at: usize,
    floor: usize,
    trail: Trail,
    /// Matches from the start of the span at hand on, if they are kept.
    parse: Option<Parse>,
    device_offset: u64,
    checkpoints: u32,
    /// CRC and length of the member at hand, as far as position `hashed`.
    crc: crc32fast::Hasher,
    length: u32,
    hashed: usize,
    /// Byte of the blob after the last member that had bytes.
    data_end: u64,
    failed: Option<GzipError>,
}

impl Indexer {
    /// An indexer at the start of a layer.
    pub fn new(options: IndexOptions) -> Self {
        let span_blocks = (options.span_size as usize).max(64 << 10) / GRID;
        let size = HISTORY + span_blocks * GRID + LOOKAHEAD + GRID + OVERRUN;
        Self {
            span_blocks,
            input: Vec::new(),
            base: 0,
            bit: 0,
            waiting_for: 0,
            members: Members::new(),
            bytes: vec![0; size],
            at: HISTORY,
            floor: HISTORY,
            trail: Trail::new(size, HISTORY, span_blocks),
            parse: None,
            device_offset: 0,
            checkpoints: 0,
            crc: crc32fast::Hasher::new(),
            length: 0,
            hashed: HISTORY,
            data_end: 0,
            failed: None,
        }
    }

    /// The same, with spans that tell their [`Parse`].
    pub fn with_parse(options: IndexOptions) -> Self {
        Self { parse: Some(Parse::default()), ..Self::new(options) }
    }

    /// Takes the next bytes of the layer; spans that are complete are appended to `out`. After an error, every further
    /// call gives the same error.
    pub fn push(&mut self, compressed: &[u8], out: &mut Vec<IndexedSpan>) -> Result<(), GzipError> {
        for piece in compressed.chunks(PIECE) {
            self.input.extend_from_slice(piece);
            if self.input.len() > self.waiting_for {
                self.try_advance(out)?;
            }
        }
        Ok(())
    }

    /// The layer has ended: checks that it is complete and appends the last spans to `out`.
    pub fn finish(&mut self, out: &mut Vec<IndexedSpan>) -> Result<(), GzipError> {
        self.try_advance(out)?;
        if !self.members.may_end() || self.bit < self.input.len() * 8 {
            let offset = self.base + self.input.len() as u64;
            return self.fail(GzipError::Truncated { member: self.members.member(), offset });
        }
        while self.at > HISTORY {
            if let Err(error) = self.cut(out) {
                return self.fail(error);
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: GzipError) -> Result<(), GzipError> {
        self.failed = Some(error.clone());
        Err(error)
    }

    fn try_advance(&mut self, out: &mut Vec<IndexedSpan>) -> Result<(), GzipError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.advance(out) {
            Ok(()) => Ok(()),
            Err(error) => self.fail(error),
        }
    }

    /// Decodes as much as the input allows.
    fn advance(&mut self, out: &mut Vec<IndexedSpan>) -> Result<(), GzipError> {
        let cap = HISTORY + self.span_blocks * GRID + LOOKAHEAD;
        loop {
            let limit = (self.at / GRID + 1) * GRID;
            let mut input = Input { bytes: &self.input, bit: self.bit };
            let mut output = Output { bytes: &mut self.bytes, at: self.at, floor: self.floor };
            let mut notes = Notes { trail: &mut self.trail, parse: self.parse.as_mut() };
            let pause = self.members.run(&mut input, self.base, &mut output, limit, &mut notes);
            (self.bit, self.at, self.floor) = (input.bit, output.at, output.floor);
            match pause? {
                Pause::Full { bit, at } => {
                    let inflate = &self.members.inflate;
                    let state = (inflate.block(), inflate.last());
                    self.trail.reached(limit, bit, limit - at, state, self.bit);
                    if self.at - self.hashed >= HASHED {
                        self.hash();
                    }
                    if limit == cap {
                        self.cut(out)?;
                    }
                }
                Pause::MemberEnd { crc, length } => self.end_member(crc, length)?,
                Pause::Starved => break,
            }
        }
        let done = (self.bit >> 3).min(self.input.len());
        self.input.drain(..done);
        self.base += done as u64;
        self.bit -= done * 8;
        self.trail.base_bits = self.base * 8;
        // A long header is looked at again when there is twice as much of it, not after every byte.
        self.waiting_for = if self.input.len() > 512 { self.input.len() * 2 } else { 0 };
        Ok(())
    }

    /// Hashes what has come out of the member at hand.
    fn hash(&mut self) {
        let new = &self.bytes[self.hashed..self.at];
        self.crc.update(new);
        self.length = self.length.wrapping_add(new.len() as u32);
        self.hashed = self.at;
    }

    /// Compares the member that has just ended with its trailer.
    fn end_member(&mut self, crc: u32, length: u32) -> Result<(), GzipError> {
        self.hash();
        self.trail.member_ends(self.at);
        let member = self.members.member() - 1;
        let offset = self.base + (self.bit >> 3) as u64 - 8;
        if self.length != 0 {
            self.data_end = offset;
        }
        let found = std::mem::take(&mut self.crc).finalize();
        if found != crc {
            return Err(GzipError::Crc { member, offset, found, wanted: crc });
        }
        let found = std::mem::take(&mut self.length);
        if found != length {
            return Err(GzipError::Length { member, offset, found, wanted: length });
        }
        Ok(())
    }

    /// Cuts the span at hand off.
    fn cut(&mut self, out: &mut Vec<IndexedSpan>) -> Result<(), GzipError> {
        self.hash();
        let decoded = self.at - HISTORY;
        let Some(start) = self.trail.mark(0).cloned() else { return Ok(()) };
        let (length, end) = if decoded <= self.span_blocks * GRID {
            (decoded, self.data_end)
        } else {
            let blocks = self.trail.choose(&self.bytes);
            (blocks * GRID, self.trail.mark(blocks).map_or(self.data_end, |mark| mark.end))
        };
        let member_skip = self.trail.member_skip(&start);
        let source_offset = member_skip.map_or(start.bit, |_| start.member) >> 3;
        let Some(source_len) = u32::try_from(end.saturating_sub(source_offset)).ok().filter(|l| *l <= MAX_SPAN_SOURCE)
        else {
            return Err(GzipError::SpanTooLong { member: self.members.member(), offset: source_offset });
        };
        let (start, checkpoint) = match member_skip {
            Some(skip) => (Start::GzipMember { skip }, None),
            None => {
                let number = self.checkpoints;
                self.checkpoints += 1;
                let (bit, skip) = ((start.bit & 7) as u8, start.skip);
                let checkpoint = SpanCheckpoint::Gzip(self.checkpoint(&start));
                (Start::Gzip { bit, skip, checkpoint: number }, Some(checkpoint))
            }
        };
        let bytes = self.bytes[HISTORY..HISTORY + length].to_vec();
        let parse = self.parse.as_mut().map(|parse| {
            let rest = parse.split_off(length);
            std::mem::replace(parse, rest)
        });
        out.push(IndexedSpan {
            device_offset: self.device_offset,
            source_offset,
            source_len,
            start,
            checkpoint,
            bytes,
            parse,
        });
        self.device_offset += length as u64;
        if length == decoded {
            self.at = HISTORY;
            return Ok(());
        }
        self.trail.slide(length / GRID, self.at);
        self.bytes.copy_within(length..self.at, 0);
        self.at -= length;
        self.hashed -= length;
        self.floor = self.floor.saturating_sub(length);
        Ok(())
    }

    /// The checkpoint of the span at hand, which starts at `start`.
    fn checkpoint(&self, start: &Mark) -> Checkpoint {
        let (block, last) = &start.state;
        let end = HISTORY - usize::from(start.skip);
        let from = end - WINDOW;
        let needed = |at| self.trail.crosses(from + at, HISTORY);
        Checkpoint::new(block.clone(), *last, &self.bytes[from..end], needed)
    }
}

/// What is noted of a stream while it is decoded.
struct Notes<'a> {
    trail: &'a mut Trail,
    parse: Option<&'a mut Parse>,
}

impl Matches for Notes<'_> {
    #[inline]
    fn matched(&mut self, source: usize, length: usize, end: usize) {
        self.trail.matched(source, length, end);
        if let Some(parse) = &mut self.parse {
            let start = end - length;
            parse.literals(start - HISTORY - parse.len());
            parse.matched(length, start - source);
        }
    }
}

impl Watch for Notes<'_> {
    fn member(&mut self, bit: usize, at: usize) {
        self.trail.member(bit, at);
    }

    fn block(&mut self, bit: usize, at: usize) {
        self.trail.block(bit, at);
    }
}
