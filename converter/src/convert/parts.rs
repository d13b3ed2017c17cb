//! The spans by which a conversion reads a layer again: those that are published, and of long ones their parts, which have
//! checkpoints that nobody else gets.
use clipper_format::span::{Span, SpanTable, SpanTableError};
use std::collections::BTreeMap;

/// Checkpoints, encoded, by the device byte of the part that starts with each.
pub type Checkpoints = BTreeMap<u64, Vec<u8>>;

/// Where a layer can be read from, for as long as it is being converted.
pub struct Parts {
    spans: SpanTable,
    checkpoints: Checkpoints,
}

impl Parts {
    /// The `published` spans of a layer of `source_size` bytes, but of those that have `parts`, these; with the parts'
    /// own checkpoints by their first device bytes.
    ///
    /// # Errors
    /// They don't fit each other.
    pub fn new(
        published: &SpanTable,
        parts: Vec<Span>,
        checkpoints: Checkpoints,
        source_size: u64,
    ) -> Result<Self, SpanTableError> {
        let (mut spans, mut parts) = (Vec::new(), parts.into_iter().peekable());
        for span in published.spans() {
            let before = spans.len();
            while let Some(part) = parts.next_if(|part| part.device_offset < span.device_range().end) {
                spans.push(part);
            }
            if spans.len() == before {
                spans.push(span.clone());
            }
        }
        Ok(Self { spans: SpanTable::new(spans, source_size)?, checkpoints })
    }

    /// All of them.
    pub fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// The checkpoint that `span` starts with, encoded, unless it is a published one.
    pub fn checkpoint(&self, span: &Span) -> Option<&[u8]> {
        self.checkpoints.get(&span.device_offset).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::span::Start;

    fn span(device_offset: u64, device_len: u32) -> Span {
        let start = Start::ZstdBlock { skip: 0, checkpoint: 0 };
        Span { device_offset, device_len, source_offset: device_offset, source_len: device_len, start, blake3: [0; 32] }
    }

    #[test]
    fn parts_stand_in_for_the_span_that_they_are_of() {
        let published = SpanTable::new(vec![span(0, 4096), span(4096, 12288), span(16384, 100)], 20_000).unwrap();
        let parts = vec![span(4096, 8192), span(12288, 4096)];
        let all = Parts::new(&published, parts, BTreeMap::from([(12288, vec![7])]), 20_000).unwrap();
        let starts: Vec<u64> = all.spans().spans().iter().map(|span| span.device_offset).collect();
        assert_eq!(starts, [0, 4096, 12288, 16384]);
        assert_eq!(all.checkpoint(&span(12288, 4096)), Some(&[7][..]));
        assert_eq!(all.checkpoint(&span(4096, 8192)), None);
        assert!(Parts::new(&published, vec![span(4096, 4096)], BTreeMap::new(), 20_000).is_err(), "a gap");
    }
}
