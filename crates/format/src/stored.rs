//! Spans of uncompressed layers: source bytes are device bytes.
use crate::{
    gzip::{IndexOptions, IndexedSpan},
    span::{BLOCK, Start},
};

/// Cuts a layer that isn't compressed into spans of equal size. It can't fail: any bytes are a stored layer.
pub struct StoredIndexer {
    span_size: usize,
    offset: u64,
    bytes: Vec<u8>,
}

impl StoredIndexer {
    /// An indexer at the start of a layer. The span size is rounded down to whole blocks, and up to 64 KiB.
    pub fn new(options: IndexOptions) -> Self {
        let span_size = (options.span_size as usize).max(64 << 10) / BLOCK as usize * BLOCK as usize;
        Self { span_size, offset: 0, bytes: Vec::new() }
    }

    /// Takes the next bytes of the layer; spans that are complete are appended to `out`.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<IndexedSpan>) {
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(self.span_size - self.bytes.len()));
            self.bytes.extend_from_slice(head);
            bytes = rest;
            if self.bytes.len() == self.span_size {
                self.finish(out);
            }
        }
    }

    /// The layer has ended: appends the last span to `out`.
    pub fn finish(&mut self, out: &mut Vec<IndexedSpan>) {
        if self.bytes.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let length = bytes.len();
        out.push(IndexedSpan {
            device_offset: self.offset,
            source_offset: self.offset,
            source_len: length as u32,
            start: Start::Stored,
            checkpoint: None,
            bytes,
            parse: None,
        });
        self.offset += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_the_bytes_however_they_are_pushed() {
        let data: Vec<u8> = (0..200_001u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        for size in [1usize, 4097, 65536, 100_000, data.len()] {
            let mut indexer = StoredIndexer::new(IndexOptions { span_size: 70_000 });
            let mut spans = Vec::new();
            for piece in data.chunks(size) {
                indexer.push(piece, &mut spans);
            }
            indexer.finish(&mut spans);
            indexer.finish(&mut spans);
            let lengths: Vec<u32> = spans.iter().map(|span| span.source_len).collect();
            assert_eq!(lengths, [69632, 69632, 60737], "pushed {size} at a time");
            let mut offset = 0;
            for span in spans {
                assert_eq!((span.device_offset, span.source_offset, span.start), (offset, offset, Start::Stored));
                assert_eq!(span.bytes, data[offset as usize..][..span.source_len as usize]);
                offset += u64::from(span.source_len);
            }
        }
    }
}
