//! Building the index of a zstd layer: decode its frames one after another, cut what comes out into spans.
use super::{
    MAX_FRAME, ZstdError,
    cut::{Cut, Frames},
    walker::{Step, Walker},
};
use crate::gzip::{IndexOptions, IndexedSpan};
use crate::span::Start;
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Room made for decoded bytes at a time: the most that a block has (RFC 8878, section 3.1.1.2.4).
const ROOM: usize = 128 << 10;

/// Decodes a zstd layer that is pushed in pieces, and cuts it into spans. What comes out doesn't depend on the pieces.
/// It holds no more than two frames and a span.
pub struct Indexer {
    walker: Walker,
    decoder: DCtx<'static>,
    frames: Frames,
    /// Decoded bytes from the span at hand on.
    bytes: Vec<u8>,
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
            walker: Walker::new(0),
            decoder: DCtx::create(),
            frames: Frames::new(options.span_size),
            bytes: Vec::new(),
            frame: 0,
            frame_len: 0,
            content_size: None,
            complete: false,
            failed: None,
        }
    }

    /// Takes the next bytes of the layer; spans that are complete are appended to `out`. After an error, every further
    /// call gives the same error.
    ///
    /// # Errors
    /// The bytes aren't zstd, are damaged, or have a frame that can't be indexed: see [`ZstdError`].
    pub fn push(&mut self, compressed: &[u8], out: &mut Vec<IndexedSpan>) -> Result<(), ZstdError> {
        self.once(|indexer| {
            let mut rest = compressed;
            while !rest.is_empty() {
                let (walked, step) = indexer.walker.step(rest)?;
                let (part, after) = rest.split_at(walked);
                indexer.take(part, step, out)?;
                rest = after;
            }
            Ok(())
        })
    }

    /// The layer has ended: checks that it is complete and appends the last spans to `out`.
    ///
    /// # Errors
    /// Likewise.
    pub fn finish(&mut self, out: &mut Vec<IndexedSpan>) -> Result<(), ZstdError> {
        self.once(|indexer| {
            if !indexer.walker.may_end() {
                return Err(ZstdError::Truncated { frame: indexer.walker.frame(), offset: indexer.walker.offset() });
            }
            indexer.cut(true, out)
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
    fn take(&mut self, part: &[u8], step: Step, out: &mut Vec<IndexedSpan>) -> Result<(), ZstdError> {
        match step {
            Step::Between => Ok(()),
            Step::Header(header) => {
                self.frame = self.walker.frame();
                if header.content_size.is_some_and(|size| size > MAX_FRAME.into()) {
                    return Err(self.too_large());
                }
                (self.frame_len, self.content_size, self.complete) = (0, header.content_size, false);
                let _ = self.decoder.reset(ResetDirective::SessionOnly);
                let header = self.walker.header().to_vec();
                self.decode(&header)
            }
            Step::Inside => self.decode(part),
            Step::End => {
                self.decode(part)?;
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
        }
    }

    /// Decodes a part of a frame.
    fn decode(&mut self, part: &[u8]) -> Result<(), ZstdError> {
        let mut input = InBuffer::around(part);
        loop {
            self.bytes.reserve(ROOM);
            let (before, room) = (self.bytes.len(), self.bytes.capacity());
            let mut output = OutBuffer::around_pos(&mut self.bytes, before);
            let hint = self.decoder.decompress_stream(&mut output, &mut input);
            self.frame_len += (self.bytes.len() - before) as u64;
            let hint = hint.map_err(|code| self.broken(get_error_name(code)))?;
            if self.frame_len > MAX_FRAME.into() {
                return Err(self.too_large());
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

    fn too_large(&self) -> ZstdError {
        ZstdError::FrameTooLarge { frame: self.frame, offset: self.walker.start() }
    }

    /// Cuts off all spans that can be.
    fn cut(&mut self, ended: bool, out: &mut Vec<IndexedSpan>) -> Result<(), ZstdError> {
        while let Some(Cut { device, source_offset, source_len, skip }) = self.frames.cut(ended)? {
            let len = (device.end - device.start) as usize;
            let bytes = self.bytes[..len].to_vec();
            self.bytes.drain(..len);
            let start = Start::ZstdFrame { skip };
            out.push(IndexedSpan {
                device_offset: device.start,
                source_offset,
                source_len,
                start,
                checkpoint: None,
                bytes,
            });
        }
        Ok(())
    }
}
