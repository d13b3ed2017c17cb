//! Spans: runs of device bytes that can be produced alone, and the table of all spans of a layer.

use crate::gzip::CHECKPOINTS_PER_GROUP;

/// Bytes in a block of a device's presence map. Every span but a layer's last starts and ends on a block boundary
/// of the device, so that a block belongs to exactly one span.
pub const BLOCK: u64 = 4096;

/// Most decoded bytes that are thrown away before a span's first device byte: four times the longest zstd frame that is
/// decoded as a whole ([`crate::zstd::MAX_WHOLE_FRAME`]), and twice the longest span that the converter can be asked for.
pub const MAX_SKIP: u32 = 32 << 20;

/// A run of device bytes, where its source bytes lie, how they are decoded, and what must come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First device byte; a multiple of [`BLOCK`].
    pub device_offset: u64,
    /// Device bytes; a multiple of [`BLOCK`] except in the last span of a layer. Never 0.
    pub device_len: u32,
    /// First byte of the layer blob that decoding needs.
    pub source_offset: u64,
    /// Bytes of the layer blob that decoding needs, from `source_offset`. Neighbours may share a byte or more.
    pub source_len: u32,
    /// How the decoder starts.
    pub start: Start,
    /// BLAKE3 of the `device_len` bytes that must come out.
    pub blake3: [u8; 32],
}

/// How a decoder starts at a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The layer isn't compressed: source bytes are device bytes.
    Stored,
    /// A gzip member's header is the first source byte, and nothing before it is needed.
    GzipMember {
        /// Decoded bytes to throw away before the first device byte: members begin where files do, spans on blocks; at
        /// most [`MAX_SKIP`].
        skip: u32,
    },
    /// Inside a gzip member.
    Gzip {
        /// Bit of the first source byte (0 = least significant) at which the next unread Deflate symbol or block
        /// header begins; 0 to 7.
        bit: u8,
        /// Decoded bytes to throw away before the first device byte: a symbol may straddle the block boundary; 0 to 257.
        skip: u16,
        /// Number of the checkpoint, counted within the layer.
        checkpoint: u32,
    },
    /// The source bytes are zstd frames, skippable ones among them; the last may lack its last blocks.
    ZstdFrame {
        /// Decoded bytes to throw away before the first device byte; at most [`MAX_SKIP`]. What is decoded after the
        /// last device byte is thrown away, too.
        skip: u32,
    },
    /// Inside a zstd frame, at the header of a block; the source bytes go on as with [`Start::ZstdFrame`].
    ZstdBlock {
        /// Decoded bytes to throw away before the first device byte; less than [`BLOCK`].
        skip: u16,
        /// Number of the checkpoint, counted within the layer.
        checkpoint: u32,
    },
}

impl Start {
    /// Number of the checkpoint without which decoding can't start here.
    pub fn checkpoint(&self) -> Option<u32> {
        match self {
            Self::Gzip { checkpoint, .. } | Self::ZstdBlock { checkpoint, .. } => Some(*checkpoint),
            Self::Stored | Self::GzipMember { .. } | Self::ZstdFrame { .. } => None,
        }
    }

    /// The group that holds that checkpoint, counted within the layer, and its place in it. A checkpoint of a zstd layer
    /// has a group of its own: each is large enough to be compressed alone, and fetched for one span.
    pub fn checkpoint_group(&self) -> Option<(usize, usize)> {
        let each = match self {
            Self::ZstdBlock { .. } => 1,
            _ => CHECKPOINTS_PER_GROUP,
        };
        self.checkpoint().map(|number| (number as usize / each, number as usize % each))
    }

    /// Bytes that no other start has, to be hashed: kind, bit, skip, checkpoint.
    pub fn to_bytes(&self) -> [u8; 10] {
        let (kind, bit, skip, checkpoint) = match *self {
            Self::Stored => (0, 0, 0, 0),
            Self::GzipMember { skip } => (1, 0, skip, 0),
            Self::Gzip { bit, skip, checkpoint } => (2, bit, skip.into(), checkpoint),
            Self::ZstdFrame { skip } => (3, 0, skip, 0),
            Self::ZstdBlock { skip, checkpoint } => (4, 0, skip.into(), checkpoint),
        };
        let mut bytes = [kind, bit, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..6].copy_from_slice(&skip.to_le_bytes());
        bytes[6..].copy_from_slice(&checkpoint.to_le_bytes());
        bytes
    }
}

impl Span {
    /// The device bytes of this span.
    pub fn device_range(&self) -> std::ops::Range<u64> {
        self.device_offset..self.device_offset + u64::from(self.device_len)
    }

    /// The blob bytes of this span.
    pub fn source_range(&self) -> std::ops::Range<u64> {
        self.source_offset..self.source_offset + u64::from(self.source_len)
    }
}

/// All spans of a layer, in device order, without gaps from 0 to the device's size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpanTable {
    spans: Vec<Span>,
}

/// Why spans don't make a table.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpanTableError {
    /// A span doesn't begin where its forerunner ended, is empty, or isn't on block boundaries.
    #[error("span {0} does not follow on from the one before it")]
    Gap(usize),
    /// A span's source bytes lie outside the blob or run backwards.
    #[error("span {0} lies outside its source blob")]
    Source(usize),
}

impl SpanTable {
    /// Checks and wraps `spans` of a layer blob of `source_size` bytes.
    pub fn new(spans: Vec<Span>, source_size: u64) -> Result<Self, SpanTableError> {
        let mut end = 0u64;
        let mut source = 0u64;
        for (i, span) in spans.iter().enumerate() {
            let last = i + 1 == spans.len();
            if span.device_offset != end
                || span.device_len == 0
                || (!last && u64::from(span.device_len) % BLOCK != 0)
                || end.checked_add(u64::from(span.device_len)).is_none()
            {
                return Err(SpanTableError::Gap(i));
            }
            end += u64::from(span.device_len);
            let source_end = span.source_offset.checked_add(u64::from(span.source_len));
            if span.source_offset < source || source_end.is_none_or(|e| e > source_size) {
                return Err(SpanTableError::Source(i));
            }
            source = span.source_offset;
        }
        Ok(Self { spans })
    }

    /// The spans, in device order.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Bytes of the device.
    pub fn device_size(&self) -> u64 {
        self.spans.last().map_or(0, |s| s.device_range().end)
    }

    /// Index of the span that holds device byte `offset`, if the device is that large.
    pub fn find(&self, offset: u64) -> Option<usize> {
        let i = self.spans.partition_point(|s| s.device_range().end <= offset);
        (i < self.spans.len()).then_some(i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(device_offset: u64, device_len: u32, source_offset: u64, source_len: u32) -> Span {
        Span { device_offset, device_len, source_offset, source_len, start: Start::Stored, blake3: [0; 32] }
    }

    #[test]
    fn finds_the_span_of_every_byte() {
        let table = SpanTable::new(vec![span(0, 8192, 0, 10), span(8192, 100, 9, 5)], 14).unwrap();
        assert_eq!(table.device_size(), 8292);
        for (offset, want) in [(0, Some(0)), (8191, Some(0)), (8192, Some(1)), (8291, Some(1)), (8292, None)] {
            assert_eq!(table.find(offset), want, "{offset}");
        }
    }

    #[test]
    fn refuses_gaps_overlaps_and_sources_outside_the_blob() {
        assert_eq!(SpanTable::new(vec![span(4096, 4096, 0, 1)], 9), Err(SpanTableError::Gap(0)));
        assert_eq!(SpanTable::new(vec![span(0, 100, 0, 1), span(100, 1, 1, 1)], 9), Err(SpanTableError::Gap(0)));
        assert_eq!(SpanTable::new(vec![span(0, 0, 0, 1)], 9), Err(SpanTableError::Gap(0)));
        assert_eq!(SpanTable::new(vec![span(0, 1, 0, 10)], 9), Err(SpanTableError::Source(0)));
        assert_eq!(SpanTable::new(vec![span(0, 4096, 5, 1), span(4096, 1, 4, 1)], 9), Err(SpanTableError::Source(1)));
        assert_eq!(SpanTable::new(vec![span(0, 1, u64::MAX, 1)], 9), Err(SpanTableError::Source(0)));
    }
}
