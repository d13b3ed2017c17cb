//! Building the index of a zstd layer: decode its frames one after another, cut what comes out into spans.
use super::{
    MAX_WHOLE_FRAME, ZstdError,
    blocks::BlockIndexer,
    cut::{Cut, Frames},
    frame::FrameHeader,
    replay::Lead,
    sink::Sink,
    walker::{Step, Walker},
};
use crate::gzip::{IndexOptions, IndexedSpan};
use crate::span::Start;
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Room made for decoded bytes at a time: the most that a block has (RFC 8878, section 3.1.1.2.4).
const ROOM: usize = 128 << 10;

/// Input is taken in pieces of so many bytes, so that one large push isn't copied as a whole.
const PIECE: usize = 64 << 10;
/// A frame may be as many times as long as a span of small frames and still be decoded as a whole.
const WHOLE: u32 = 8;

/// Decodes a zstd layer that is pushed in pieces, and cuts it into spans. What comes out doesn't depend on the pieces.
/// It holds no more than two small frames and a span; from the first large frame on a few windows, the source bytes of a
/// span, one and a half times, and those of spans whose borders aren't settled, at most 8 MiB.
pub struct Indexer {
    /// Most bytes of a frame that is decoded as a whole.
    whole: u32,
    least: u32,
    walker: Walker,
    decoder: DCtx<'static>,
    frames: Frames,
    /// Decoded bytes from the span at hand on.
    bytes: Vec<u8>,
    /// The frame at hand, in case that it turns out to be large: its header, that header's bytes, and the rest so far.
    header: Option<FrameHeader>,
    head: Vec<u8>,
    source: Vec<u8>,
    /// Takes everything from the first large frame on.
    blocks: Option<Box<BlockIndexer>>,
    /// Number of the frame at hand, and its decoded bytes.
    frame: u64,
    frame_len: u64,
    /// Decoded bytes that its header promises.
    content_size: Option<u64>,
    /// Whether libzstd has come to the frame's end.
    complete: bool,
    failed: Option<ZstdError>,
}

impl Indexer {
    /// An indexer at the start of a layer.
    pub fn new(options: IndexOptions) -> Self {
        Self {
            whole: options.span_size.saturating_mul(WHOLE).min(MAX_WHOLE_FRAME),
            least: options.span_size,
            walker: Walker::new(0),
            decoder: DCtx::create(),
            frames: Frames::new(options.span_size),
            bytes: Vec::new(),
            header: None,
            head: Vec::new(),
            source: Vec::new(),
            blocks: None,
            frame: 0,
            frame_len: 0,
            content_size: None,
            complete: false,
            failed: None,
        }
    }

    /// Takes the next bytes of the layer; spans go to `out` as they come out. After an error, every further call gives the
    /// same error.
    ///
    /// # Errors
    /// The bytes aren't zstd, are damaged, or have a frame that can't be indexed: see [`ZstdError`].
    pub fn push(&mut self, compressed: &[u8], out: &mut impl Sink) -> Result<(), ZstdError> {
        self.once(|indexer| {
            for mut rest in compressed.chunks(PIECE) {
                while !rest.is_empty() {
                    let (walked, step) = indexer.walker.step(rest)?;
                    let (part, after) = rest.split_at(walked);
                    indexer.take(part, step, out)?;
                    rest = after;
                }
            }
            Ok(())
        })
    }

    /// The layer has ended: checks that it is complete and gives `out` the last spans.
    ///
    /// # Errors
    /// Likewise.
    pub fn finish(&mut self, out: &mut impl Sink) -> Result<(), ZstdError> {
        self.once(|indexer| {
            if !indexer.walker.may_end() {
                return Err(ZstdError::Truncated { frame: indexer.walker.frame(), offset: indexer.walker.offset() });
            }
            match &mut indexer.blocks {
                Some(blocks) => blocks.finish(out),
                None => indexer.cut(true, out),
            }
        })
    }

    fn once(&mut self, work: impl FnOnce(&mut Self) -> Result<(), ZstdError>) -> Result<(), ZstdError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = work(self);
        self.failed = result.clone().err();
        result
    }

    /// Takes what the walker has gone over.
    fn take(&mut self, part: &[u8], step: Step, out: &mut impl Sink) -> Result<(), ZstdError> {
        match (step, &mut self.blocks) {
            (Step::Between, _) => Ok(()),
            (Step::Header(header), Some(blocks)) => {
                blocks.start_frame(self.walker.frame(), self.walker.start(), header, self.walker.header());
                Ok(())
            }
            (Step::Inside | Step::End, Some(blocks)) => blocks.take(part, step, out),
            (Step::Header(header), None) => {
                self.frame = self.walker.frame();
                (self.frame_len, self.content_size, self.complete) = (0, header.content_size, false);
                self.header = Some(header);
                self.head = self.walker.header().to_vec();
                self.source.clear();
                if header.content_size.is_some_and(|size| size > self.whole.into()) {
                    self.enlarge(out)?;
                    return Ok(());
                }
                let _ = self.decoder.reset(ResetDirective::SessionOnly);
                let head = std::mem::take(&mut self.head);
                let decoded = self.decode(&head);
                self.head = head;
                decoded
            }
            (Step::Inside | Step::End, None) => {
                self.source.extend_from_slice(part);
                self.decode(part)?;
                // Blocks without bytes count, too.
                if self.frame_len.max(self.source.len() as u64 / 2) > self.whole.into() {
                    let source = std::mem::take(&mut self.source);
                    return self.enlarge(out)?.take(&source, step, out);
                }
                if step == Step::End { self.end_frame(out) } else { Ok(()) }
            }
        }
    }

    /// The frame at hand is large: from its header on, everything is indexed block by block.
    fn enlarge(&mut self, out: &mut impl Sink) -> Result<&mut BlockIndexer, ZstdError> {
        self.bytes.truncate(self.bytes.len() - self.frame_len as usize);
        while let Some(cut) = self.frames.cut_blocks()? {
            out.span(self.span(cut));
        }
        let lead = self.frames.rest().map(|(source_offset, skip)| Lead {
            source_offset,
            skip,
            bytes: std::mem::take(&mut self.bytes),
        });
        let blocks = Box::new(BlockIndexer::new(self.frames.end(), self.least.into(), lead));
        let blocks = self.blocks.insert(blocks);
        if let Some(header) = self.header {
            blocks.start_frame(self.frame, self.walker.start(), header, &self.head);
        }
        Ok(blocks)
    }

    fn end_frame(&mut self, out: &mut impl Sink) -> Result<(), ZstdError> {
        if !self.complete {
            return Err(self.broken("it has more bytes than its blocks"));
        }
        if self.content_size.is_some_and(|size| size != self.frame_len) {
            // libzstd overlooks this after an empty last block, but only when it is given a frame in pieces.
            return Err(self.broken("its content isn't as long as its header says"));
        }
        self.frames.push(self.frame_len, self.walker.last());
        self.cut(false, out)
    }

    /// Decodes a part of a frame, unless it is large.
    fn decode(&mut self, part: &[u8]) -> Result<(), ZstdError> {
        let mut input = InBuffer::around(part);
        loop {
            self.bytes.reserve(ROOM);
            let (before, room) = (self.bytes.len(), self.bytes.capacity());
            let mut output = OutBuffer::around_pos(&mut self.bytes, before);
            let hint = self.decoder.decompress_stream(&mut output, &mut input);
            self.frame_len += (self.bytes.len() - before) as u64;
            let hint = hint.map_err(|code| self.broken(get_error_name(code)))?;
            if self.frame_len > self.whole.into() {
                return Ok(());
            }
            if hint == 0 {
                self.complete = true;
                return match input.pos() == part.len() {
                    true => Ok(()),
                    false => Err(self.broken("it ends before its last block")),
                };
            }
            if input.pos() == part.len() && self.bytes.len() < room {
                return Ok(());
            }
        }
    }

    fn broken(&self, what: &'static str) -> ZstdError {
        ZstdError::Frame { frame: self.frame, offset: self.walker.start(), what }
    }

    /// Cuts off all spans that can be.
    fn cut(&mut self, ended: bool, out: &mut impl Sink) -> Result<(), ZstdError> {
        while let Some(cut) = self.frames.cut(ended)? {
            out.span(self.span(cut));
        }
        Ok(())
    }

    fn span(&mut self, Cut { device, source_offset, source_len, skip }: Cut) -> IndexedSpan {
        let len = (device.end - device.start) as usize;
        let bytes = self.bytes[..len].to_vec();
        self.bytes.drain(..len);
        let start = Start::ZstdFrame { skip };
        IndexedSpan {
            device_offset: device.start,
            source_offset,
            source_len,
            start,
            checkpoint: None,
            bytes,
            parse: None,
        }
    }
}
