//! Decoding spans that start with a frame: frames in, of which the last may lack blocks, device bytes out.
use super::{ZstdError, walker};
use crate::span::{MAX_SKIP, Span, Start};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Bytes that are thrown away at a time.
const SCRATCH: usize = 64 << 10;

/// Decodes a run of consecutive spans; a frame that neighbours share is decoded once. It holds what libzstd needs: a
/// window of at most [`super::MAX_WINDOW`], of which no more than a frame has bytes is ever touched.
pub struct SpanDecoder {
    decoder: DCtx<'static>,
    /// Whether anything of a frame has been decoded.
    inside: bool,
    /// Decoded bytes to throw away.
    skip: usize,
    /// Next byte of the blob.
    at: u64,
    /// Device byte at which the next span must start; `None` after an error.
    next: Option<u64>,
}

impl SpanDecoder {
    /// A decoder that starts at `span`.
    ///
    /// # Errors
    /// [`ZstdError::Span`]: it isn't a span of zstd frames.
    pub fn start(span: &Span) -> Result<Self, ZstdError> {
        let refuse = |what| ZstdError::Span { device_offset: span.device_offset, what };
        match span.start {
            Start::ZstdFrame { skip } if skip <= MAX_SKIP => Ok(Self {
                decoder: DCtx::create(),
                inside: false,
                skip: skip as usize,
                at: span.source_offset,
                next: Some(span.device_offset),
            }),
            Start::ZstdFrame { .. } => Err(refuse("it begins too far inside its frame")),
            _ => Err(refuse("it isn't a span of a zstd layer")),
        }
    }

    /// Decodes all of `span` into `out`, which must be as long, from `source`, its source bytes, which must be frames;
    /// the last may end after any of its blocks. The first span must be the one the decoder was started at; then the spans after it may follow one by
    /// one. No more is decoded than `out` and what [`Start::ZstdFrame`] says to skip.
    ///
    /// # Errors
    /// The source bytes aren't whole frames, are damaged or too few. Wrong ones may also give wrong bytes: compare the
    /// BLAKE3. After an error the decoder can't be used any more.
    pub fn decode(&mut self, span: &Span, source: &[u8], out: &mut [u8]) -> Result<(), ZstdError> {
        let refuse = |what| ZstdError::Span { device_offset: span.device_offset, what };
        if self.next.take() != Some(span.device_offset) {
            return Err(refuse("it doesn't follow on from the span decoded before it, or that one failed"));
        }
        if out.len() as u64 != u64::from(span.device_len) || source.len() as u64 != u64::from(span.source_len) {
            return Err(refuse("the buffers aren't as long as it says"));
        }
        walker::must_be_blocks(source, span.source_offset)?;
        if span.start == (Start::ZstdFrame { skip: 0 }) {
            // What is left of the frame before has no bytes, and other frames may lie between.
            self.restart();
            self.at = span.source_offset;
        }
        let first = self.at.checked_sub(span.source_offset).and_then(|first| usize::try_from(first).ok());
        let rest = first.and_then(|first| source.get(first..));
        let mut input = InBuffer::around(rest.ok_or_else(|| refuse("its source bytes start too late"))?);
        while self.skip > 0 {
            let mut scratch = vec![0; self.skip.min(SCRATCH)];
            self.skip -= self.fill(span, &mut input, &mut scratch)?;
        }
        self.fill(span, &mut input, out)?;
        self.at += input.pos() as u64;
        self.next = span.device_offset.checked_add(out.len() as u64);
        Ok(())
    }

    fn restart(&mut self) {
        if std::mem::take(&mut self.inside) {
            let _ = self.decoder.reset(ResetDirective::SessionOnly);
        }
    }

    /// Decodes until `out` is full; gives its length.
    fn fill(&mut self, span: &Span, input: &mut InBuffer<'_>, out: &mut [u8]) -> Result<usize, ZstdError> {
        let mut output = OutBuffer::around(out);
        while output.pos() < output.capacity() {
            let before = (input.pos(), output.pos());
            self.inside = true;
            let hint = self.decoder.decompress_stream(&mut output, input).map_err(|code| {
                let what = get_error_name(code);
                ZstdError::Frame { frame: 0, offset: span.source_offset, what }
            })?;
            if hint == 0 {
                self.restart();
            }
            if before == (input.pos(), output.pos()) {
                return Err(ZstdError::Span {
                    device_offset: span.device_offset,
                    what: "its source bytes decode to too few",
                });
            }
        }
        Ok(output.pos())
    }
}
