//! The body of one GET, handed out span by span.
use crate::source::{ByteStream, Source, SourceError};
use bytes::Bytes;
use clipper_format::span::Span;
use futures::StreamExt;
use std::{collections::VecDeque, ops::Range, sync::Arc};

/// The body of one GET, opened when its first bytes are wanted.
pub(crate) struct Body {
    source: Arc<dyn Source>,
    stream: Option<ByteStream>,
    /// Chunks that have arrived and are still needed, and where the first of them starts.
    chunks: VecDeque<Bytes>,
    start: u64,
    /// End of what has arrived.
    arrived: u64,
    /// End of what is asked for.
    end: u64,
}

impl Body {
    /// A body from `source` that holds all of `spans`.
    pub(crate) fn new(source: Arc<dyn Source>, spans: &[Span]) -> Self {
        let start = spans.first().map_or(0, |span| span.source_offset);
        let end = spans.iter().map(|span| span.source_range().end).max().unwrap_or(start);
        Self { source, stream: None, chunks: VecDeque::new(), start, arrived: start, end }
    }

    /// Asks for no more than these of the spans, unless it has asked for all of them.
    pub(crate) fn shorten(&mut self, spans: &[Span]) {
        if self.stream.is_none() {
            self.end = spans.iter().map(|span| span.source_range().end).max().unwrap_or(self.start);
        }
    }

    /// The bytes of `range`, which starts no earlier than those before. What lies before `keep` won't be asked for
    /// again. Bytes beyond what was asked for are ignored: they aren't anybody's.
    pub(crate) async fn take(&mut self, range: Range<u64>, keep: u64) -> Result<Vec<u8>, SourceError> {
        self.drop_before(range.start);
        while self.arrived < range.end {
            let chunk = self.next().await?;
            let room = usize::try_from(self.end - self.arrived).unwrap_or(usize::MAX);
            let chunk = chunk.slice(..chunk.len().min(room));
            self.arrived += chunk.len() as u64;
            self.chunks.push_back(chunk);
            self.drop_before(range.start);
        }
        let len = usize::try_from(range.end - range.start).map_err(SourceError::new)?;
        let mut taken = Vec::with_capacity(len);
        let mut skip = usize::try_from(range.start.saturating_sub(self.start)).map_err(SourceError::new)?;
        for chunk in &self.chunks {
            let part = chunk.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(chunk.len());
            taken.extend_from_slice(&part[..part.len().min(len - taken.len())]);
        }
        if taken.len() != len {
            return Err(SourceError::new("the span's source bytes run backwards"));
        }
        self.drop_before(keep);
        Ok(taken)
    }

    async fn next(&mut self) -> Result<Bytes, SourceError> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.source.read(self.start..self.end).await?),
        };
        match stream.next().await {
            Some(chunk) => chunk,
            None => Err(SourceError::new(format!("the body ended at byte {} instead of {}", self.arrived, self.end))),
        }
    }

    fn drop_before(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.front_mut() {
            let before = offset.saturating_sub(self.start);
            let len = chunk.len() as u64;
            if before == 0 {
                return;
            }
            if before < len {
                *chunk = chunk.slice(before as usize..);
                self.start = offset;
                return;
            }
            self.start += len;
            self.chunks.pop_front();
        }
    }
}
