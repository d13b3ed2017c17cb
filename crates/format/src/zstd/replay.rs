//! Decoding spans as nodes will: each from its own source bytes and its checkpoint, as it will stand in the checkpoints
//! blob. What comes out is what is hashed, so the layer's digest, and the frames' checksums before it, prove every
//! checkpoint.

use super::{
    Checkpoint, ZstdError,
    checkpoint::{Dictionary, QUICK},
    frame::FrameHeader,
    parser::{MAX_BLOCK, Origin, Use, Uses},
    pieces::{Before, PIECE, PieceDecoder},
    planned::{Part, Planned},
    planner::Mark,
    sequences::Reference,
    sink::Sink,
    window::Window,
    xxh64::Xxh64,
};
use crate::gzip::{IndexedSpan, SpanCheckpoint};
use crate::span::Start;
use std::collections::VecDeque;

/// What stands before the first large frame in the block of the device that it begins in.
pub struct Lead {
    /// Where the frame with the first of it begins, and how many bytes of that frame aren't part of it.
    pub source_offset: u64,
    pub skip: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A frame that is looked at.
#[derive(Clone)]
pub struct Frame {
    pub number: u64,
    pub offset: u64,
    pub header: Option<FrameHeader>,
    /// Device byte after its last, and the checksum that it ends with.
    pub end: u64,
    pub checksum: Option<u32>,
}

/// Decodes spans one after another. It holds a window, and of a span no more than a piece.
pub struct Replay {
    past: Past,
    decoder: PieceDecoder,
    dictionary: Dictionary,
    /// Stands before the first span.
    lead: Option<Lead>,
    checkpoints: u32,
    /// Bytes of the checkpoints of all parts.
    parts: usize,
}

/// Most bytes of the checkpoints of a layer's parts; then spans have no more of them.
const MOST_PARTS: usize = 32 << 20;

/// What has been decoded.
struct Past {
    window: Window,
    /// Frames that have been gone through, but not yet decoded.
    ended: VecDeque<Frame>,
    hash: Xxh64,
}

impl Replay {
    /// Before a frame at the device byte `at`.
    pub fn new(at: u64, lead: Option<Lead>) -> Self {
        Self {
            past: Past { window: Window::new(at), ended: VecDeque::new(), hash: Xxh64::new() },
            decoder: PieceDecoder::new(),
            dictionary: Dictionary::default(),
            lead,
            checkpoints: 0,
            parts: 0,
        }
    }

    /// What stands before the first span, until that is decoded.
    pub fn lead(&self) -> Option<&Lead> {
        self.lead.as_ref()
    }

    /// A frame has been gone through, and all spans that were cut off before it ended have been decoded.
    pub fn frame_ended(&mut self, frame: Frame) -> Result<(), ZstdError> {
        self.past.ended.push_back(frame);
        self.past.check_ended()
    }

    /// The checkpoint of a span that starts at `start`, all before which has been decoded, in frames of at most this window,
    /// whose blocks use tables so, and refer to these bytes; `None` if it starts with a frame.
    pub fn checkpoint(&mut self, start: &Mark, window: usize, uses: Uses, references: &[Reference]) -> Option<Vec<u8>> {
        self.past.window.reserve(window);
        (!start.fresh).then(|| self.past.checkpoint(start, uses, references).encode())
    }

    /// Decodes a span from its checkpoint.
    pub fn run(
        &mut self,
        planned: &Planned,
        checkpoint: Option<Vec<u8>>,
        out: &mut impl Sink,
    ) -> Result<(), ZstdError> {
        let start = &planned.start;
        let decoded = checkpoint.as_deref().map(Checkpoint::decode).transpose()?;
        let lead = self.lead.take();
        let head = self.head(planned, lead.as_ref(), checkpoint);
        let parts = if self.parts < MOST_PARTS { planned.parts.iter() } else { [].iter() };
        let spent = &mut self.parts;
        let mut run = Run { planned, past: &mut self.past, out, at: start.at, parts, spent, begins: None };
        run.begin(head, lead);
        let (decoder, source, window) = (&mut self.decoder, &planned.source, start.header.window);
        let take = |piece| run.take(piece);
        match &decoded {
            None => decoder.decode(Before::Nothing, window, source, start.source.blob, take),
            Some(checkpoint) => self.dictionary.with(checkpoint, |dictionary| {
                let before = Before::Blocks { dictionary, checksum: checkpoint.checksum };
                decoder.decode(before, window, source, start.source.blob, take)
            }),
        }
        .and_then(|()| run.end())
        .map_err(|error| match error {
            ZstdError::Frame { what, frame: 0, offset } if offset == start.source.blob => {
                ZstdError::Frame { frame: start.frame, offset, what }
            }
            error => error,
        })
    }

    /// A span as it is announced.
    fn head(&mut self, planned: &Planned, lead: Option<&Lead>, checkpoint: Option<Vec<u8>>) -> IndexedSpan {
        let mark = &planned.start;
        let skip = mark.device.saturating_sub(mark.at);
        let start = match (lead, mark.fresh) {
            (Some(lead), _) => Start::ZstdFrame { skip: lead.skip },
            (None, true) => Start::ZstdFrame { skip: skip as u32 },
            (None, false) => {
                self.checkpoints += 1;
                Start::ZstdBlock { skip: skip as u16, checkpoint: self.checkpoints - 1 }
            }
        };
        IndexedSpan {
            device_offset: mark.device,
            source_offset: mark.source.blob,
            source_len: planned.source_len,
            start,
            checkpoint: checkpoint.map(SpanCheckpoint::Zstd),
            bytes: Vec::new(),
            parse: None,
        }
    }
}

/// A span that is being decoded.
struct Run<'a, S> {
    planned: &'a Planned,
    past: &'a mut Past,
    out: &'a mut S,
    /// Device byte that comes out next.
    at: u64,
    /// Parts before whose first block the window isn't yet complete.
    parts: std::slice::Iter<'a, Part>,
    /// What the checkpoints of parts have taken.
    spent: &'a mut usize,
    /// A part whose first device byte is still to come.
    begins: Option<IndexedSpan>,
}

impl<S: Sink> Run<'_, S> {
    fn begin(&mut self, head: IndexedSpan, lead: Option<Lead>) {
        let first = self.parts.next().map(|part| IndexedSpan {
            source_len: (part.end.blob - head.source_offset) as u32,
            checkpoint: None,
            ..head.clone()
        });
        self.out.span(head);
        if let Some(first) = first {
            self.out.part(first);
        }
        if let Some(lead) = lead {
            self.out.more(lead.bytes);
        }
    }

    /// Takes the next decoded bytes; gives a buffer for more.
    fn take(&mut self, mut piece: Vec<u8>) -> Result<Vec<u8>, ZstdError> {
        while !piece.is_empty() {
            if let Some(part) = self.begins.take_if(|part| part.device_offset == self.at) {
                self.out.part(part);
            }
            if let Some(part) = self.parts.as_slice().first().filter(|part| part.mark.at == self.at) {
                self.begins = Some(self.part(part));
                self.parts.next();
                continue;
            }
            let stop = match &self.begins {
                Some(part) => Some(part.device_offset),
                None => self.parts.as_slice().first().map(|part| part.mark.at),
            };
            let len = stop.map_or(piece.len(), |stop| piece.len().min((stop - self.at) as usize));
            let rest = piece.split_off(len);
            self.put(piece)?;
            piece = rest;
        }
        Ok(self.out.buffer(PIECE))
    }

    fn put(&mut self, mut piece: Vec<u8>) -> Result<(), ZstdError> {
        let before = |end: u64, at: u64| end.saturating_sub(at).min(piece.len() as u64) as usize;
        let known = before(self.planned.next, self.at);
        let (from, to) = (before(self.planned.start.device, self.at), before(self.planned.end, self.at));
        self.past.decoded(&piece[..known])?;
        self.at += piece.len() as u64;
        piece.truncate(to);
        piece.drain(..from.min(to));
        if !piece.is_empty() {
            self.out.more(piece);
        }
        Ok(())
    }

    /// A part, all before whose first block has just been decoded.
    fn part(&mut self, part: &Part) -> IndexedSpan {
        let mark = &part.mark;
        let skip = mark.device - mark.at;
        let (start, checkpoint) = if mark.fresh {
            (Start::ZstdFrame { skip: skip as u32 }, None)
        } else {
            let references = &self.planned.references[part.references.clone()];
            let encoded = self.past.checkpoint(mark, part.uses, references).encode_at(QUICK);
            *self.spent += encoded.len();
            (Start::ZstdBlock { skip: skip as u16, checkpoint: 0 }, Some(SpanCheckpoint::Zstd(encoded)))
        };
        IndexedSpan {
            device_offset: mark.device,
            source_offset: mark.source.blob,
            source_len: (part.end.blob - mark.source.blob) as u32,
            start,
            checkpoint,
            bytes: Vec::new(),
            parse: None,
        }
    }

    fn end(&self) -> Result<(), ZstdError> {
        let (least, most) = (self.planned.end, self.planned.end + u64::from(MAX_BLOCK));
        let what = match self.at {
            at if at < least => "its blocks decode to too few bytes",
            at if at > most => "its blocks decode to too many bytes",
            _ => return Ok(()),
        };
        Err(ZstdError::Frame { frame: 0, offset: self.planned.start.source.blob, what })
    }
}

impl Past {
    /// The checkpoint of blocks at `mark`, all before which has been decoded.
    fn checkpoint(&mut self, mark: &Mark, uses: Uses, references: &[Reference]) -> Checkpoint {
        let [literals, rest @ ..] = uses.0;
        let mut tables = [None, None, None];
        for ((description, table), first) in tables.iter_mut().zip(&mark.state.tables).zip(rest) {
            if let (Origin::Described(bytes), Use::Repeated) = (table, first) {
                *description = Some(bytes.to_vec());
            }
        }
        let reach = mark.header.window.min(mark.at - mark.frame_at);
        let (runs, bytes) = self.window.keep(reach, references);
        let huffman = mark.state.huffman.as_deref().filter(|_| literals == Use::Repeated).map(<[u8]>::to_vec);
        Checkpoint { checksum: mark.header.checksum, huffman, tables, repeats: mark.state.repeats, runs, bytes }
    }

    /// These bytes have been decoded: they become the window's, and frames that have ended are checked.
    fn decoded(&mut self, bytes: &[u8]) -> Result<(), ZstdError> {
        let mut rest = bytes;
        while let Some(frame) = self.ended.front() {
            let left = (frame.end - self.window.end()) as usize;
            let Some((part, after)) = rest.split_at_checked(left) else { break };
            self.window.append(part);
            self.hash.update(part);
            rest = after;
            self.check_ended()?;
        }
        self.window.append(rest);
        self.hash.update(rest);
        Ok(())
    }

    /// Checks the frame whose last byte has been decoded, if one has ended there, and those without bytes after it.
    fn check_ended(&mut self) -> Result<(), ZstdError> {
        while self.ended.front().is_some_and(|frame| frame.end == self.window.end())
            && let Some(frame) = self.ended.pop_front()
        {
            let hash = std::mem::replace(&mut self.hash, Xxh64::new()).finish();
            if frame.checksum.is_some_and(|checksum| checksum != hash as u32) {
                let what = "its content doesn't have the checksum that it ends with";
                return Err(ZstdError::Frame { frame: frame.number, offset: frame.offset, what });
            }
        }
        Ok(())
    }
}
