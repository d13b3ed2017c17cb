//! Decoding spans: source bytes in, device bytes out, starting at any span.
use super::{
    Checkpoint, GzipError, WINDOW,
    bits::{Input, OVERRUN, Output},
    inflate::Inflate,
    member::{Members, Pause},
};
use crate::span::{MAX_SKIP, Span, Start};

/// Bytes decoded at a time; with the window before them they stay in a core's cache.
const CHUNK: usize = 96 << 10;

/// Decodes a run of consecutive spans. It holds about 160 KiB.
pub struct SpanDecoder {
    members: Members,
    /// Window, then decoded bytes.
    bytes: Vec<u8>,
    /// Decoded bytes not yet handed out start here.
    taken: usize,
    /// Decoded bytes end here.
    at: usize,
    floor: usize,
    /// Decoded bytes to throw away.
    skip: usize,
    /// Next bit of the blob.
    bit: u64,
    /// Device byte at which the next span must start; `None` after an error.
    next: Option<u64>,
}

impl SpanDecoder {
    /// A decoder that starts at `span`. A span whose [`Start`] names a checkpoint needs it; other spans don't.
    pub fn start(span: &Span, checkpoint: Option<&Checkpoint>) -> Result<Self, GzipError> {
        let refuse = |what| GzipError::Span { device_offset: span.device_offset, what };
        let mut bytes = vec![0; WINDOW + CHUNK + OVERRUN];
        let (members, bit, skip) = match span.start {
            Start::GzipMember { skip } if skip > MAX_SKIP => return Err(refuse("it begins too far inside its member")),
            Start::GzipMember { skip } => (Members::new(), 0, skip as usize),
            Start::Gzip { bit, skip, .. } => {
                let checkpoint = checkpoint.ok_or_else(|| refuse("its checkpoint is missing"))?;
                if bit > 7 {
                    return Err(refuse("its first bit isn't one of 0 to 7"));
                }
                let mut inflate = Inflate::new();
                inflate
                    .resume(&checkpoint.block, checkpoint.last)
                    .map_err(|_| GzipError::Checkpoint("the codes of its block make no sense"))?;
                if let Some(window) = bytes.first_chunk_mut() {
                    checkpoint.fill(window);
                }
                (Members::inside(inflate), u64::from(bit), usize::from(skip))
            }
            Start::Stored | Start::ZstdFrame { .. } | Start::ZstdBlock { .. } => {
                return Err(refuse("it isn't a span of a gzip layer"));
            }
        };
        let bit = span.source_offset.checked_mul(8).and_then(|first| first.checked_add(bit));
        Ok(Self {
            members,
            bytes,
            taken: WINDOW,
            at: WINDOW,
            floor: 0,
            skip,
            bit: bit.ok_or_else(|| refuse("its source offset is out of range"))?,
            next: Some(span.device_offset),
        })
    }

    /// Decodes all of `span` into `out`, which must be as long, from `source`, its source bytes. The first span must
    /// be the one the decoder was started at; then the spans after it may follow one by one, without checkpoints.
    ///
    /// Wrong source bytes or a wrong checkpoint give an error or wrong bytes: compare the BLAKE3. After an error the
    /// decoder can't be used any more.
    pub fn decode(&mut self, span: &Span, source: &[u8], out: &mut [u8]) -> Result<(), GzipError> {
        let refuse = |what| GzipError::Span { device_offset: span.device_offset, what };
        if self.next.take() != Some(span.device_offset) {
            return Err(refuse("it doesn't follow on from the span decoded before it, or that one failed"));
        }
        if out.len() as u64 != u64::from(span.device_len) || source.len() as u64 != u64::from(span.source_len) {
            return Err(refuse("the buffers aren't as long as it says"));
        }
        if span.start == (Start::GzipMember { skip: 0 }) && self.taken == self.at {
            // Empty members may lie between this one and what was decoded before.
            self.members.restart();
            self.bit = span.source_offset.saturating_mul(8);
        }
        let first = span.source_offset.checked_mul(8).and_then(|first| self.bit.checked_sub(first));
        let bit = first.and_then(|bit| usize::try_from(bit).ok());
        let bit = bit.ok_or_else(|| refuse("its source bytes start too late"))?;
        let mut input = Input { bytes: source, bit };
        let mut filled = self.hand_out(out);
        while filled < out.len() {
            self.decode_chunk(span, &mut input, out.len() - filled)?;
            filled += self.hand_out(&mut out[filled..]);
        }
        self.members.settle(&mut input);
        self.bit += (input.bit - bit) as u64;
        self.next = span.device_offset.checked_add(out.len() as u64);
        Ok(())
    }

    /// Moves decoded bytes to `out`, after those to be skipped; gives their number.
    fn hand_out(&mut self, out: &mut [u8]) -> usize {
        let skipped = self.skip.min(self.at - self.taken);
        self.skip -= skipped;
        self.taken += skipped;
        let count = out.len().min(self.at - self.taken);
        out[..count].copy_from_slice(&self.bytes[self.taken..self.taken + count]);
        self.taken += count;
        count
    }

    /// Decodes up to `wanted` bytes, and those to be skipped, as far as there is room. Everything decoded before must
    /// have been handed out.
    fn decode_chunk(&mut self, span: &Span, input: &mut Input<'_>, wanted: usize) -> Result<(), GzipError> {
        if self.at >= WINDOW + CHUNK {
            let shift = self.at - WINDOW;
            self.bytes.copy_within(shift..self.at, 0);
            self.at = WINDOW;
            self.taken = WINDOW;
            self.floor = self.floor.saturating_sub(shift);
        }
        let limit = self.at.saturating_add(self.skip).saturating_add(wanted).min(WINDOW + CHUNK);
        loop {
            let mut output = Output { bytes: &mut self.bytes, at: self.at, floor: self.floor };
            let pause = self.members.run(input, span.source_offset, &mut output, limit, &mut ());
            (self.at, self.floor) = (output.at, output.floor);
            match pause? {
                Pause::Full { .. } => return Ok(()),
                Pause::MemberEnd { .. } => {}
                Pause::Starved => {
                    let offset = span.source_offset + u64::from(span.source_len);
                    return Err(GzipError::Truncated { member: self.members.member(), offset });
                }
            }
        }
    }
}
