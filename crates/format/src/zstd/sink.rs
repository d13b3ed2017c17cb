//! Where the spans of a layer go as they come out: long ones in pieces, so that nobody has to hold one whole.

use crate::gzip::IndexedSpan;

/// Takes spans in their order. After an error, the last one may lack bytes.
pub trait Sink {
    /// The next span, with the first of its bytes or none.
    fn span(&mut self, span: IndexedSpan);

    /// From here on, the bytes are those of a part of the last span that can be decoded alone, as if it were a span. A span
    /// that is long is announced in parts, the first of which starts as it does itself; each of the others has a checkpoint
    /// of its own, whatever number its start gives. They are for whoever indexes the layer, to read some of it again
    /// without decoding all of a span; nodes never see them.
    fn part(&mut self, part: IndexedSpan);

    /// The next bytes of the last span.
    fn more(&mut self, bytes: Vec<u8>);

    /// An empty buffer for `len` bytes to come: a used one, or a new one.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        Vec::with_capacity(len)
    }
}

/// Whole spans.
impl Sink for Vec<IndexedSpan> {
    fn span(&mut self, span: IndexedSpan) {
        self.push(span);
    }

    fn part(&mut self, _part: IndexedSpan) {}

    fn more(&mut self, bytes: Vec<u8>) {
        if let Some(last) = self.last_mut() {
            last.bytes.extend_from_slice(&bytes);
        }
    }
}
