//! The body of one GET, handed out span by span.
use crate::{
    device::Device,
    run::Why,
    source::{ByteStream, Source, SourceError},
    tally::Purpose,
};
use bytes::Bytes;
use clipper_format::span::Span;
use futures::StreamExt;
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};
use tokio::time::timeout;

/// The body of one GET, opened when its first bytes are wanted.
pub(crate) struct Body {
    device: Arc<Device>,
    source: Arc<dyn Source>,
    stream: Option<ByteStream>,
    /// Chunks that have arrived and are still needed, and where the first of them starts.
    chunks: VecDeque<Bytes>,
    start: u64,
    /// End of what has arrived.
    arrived: u64,
    /// End of what is asked for.
    end: u64,
    /// Silence after which nothing more is hoped for. However slow a link is, as long as something arrives it goes on.
    patience: Duration,
}

impl Body {
    /// A body from `source` that holds all of `spans` of `device`, and may be silent for as long as `patience`.
    pub(crate) fn new(device: Arc<Device>, source: Arc<dyn Source>, spans: &[Span], patience: Duration) -> Self {
        let start = spans.first().map_or(0, |span| span.source_offset);
        let end = spans.iter().map(|span| span.source_range().end).max().unwrap_or(start);
        Self { device, source, stream: None, chunks: VecDeque::new(), start, arrived: start, end, patience }
    }

    /// Asks for no more than these of the spans, unless it has asked for all of them.
    pub(crate) fn shorten(&mut self, spans: &[Span]) {
        if self.stream.is_none() {
            self.end = spans.iter().map(|span| span.source_range().end).max().unwrap_or(self.start);
        }
    }

    /// The bytes of `range`, which starts no earlier than those before. What lies before `keep` won't be asked for
    /// again. Bytes beyond what was asked for are ignored: they aren't anybody's. What arrives counts as being for
    /// `purpose`.
    pub(crate) async fn take(&mut self, range: Range<u64>, keep: u64, purpose: Purpose) -> Result<Vec<u8>, Why> {
        self.drop_before(range.start);
        while self.arrived < range.end {
            let chunk = self.next(purpose).await?;
            let room = usize::try_from(self.end - self.arrived).unwrap_or(usize::MAX);
            let chunk = chunk.slice(..chunk.len().min(room));
            self.arrived += chunk.len() as u64;
            self.chunks.push_back(chunk);
            self.drop_before(range.start);
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut taken = Vec::with_capacity(len);
        let mut skip = usize::try_from(range.start.saturating_sub(self.start)).unwrap_or(usize::MAX);
        for chunk in &self.chunks {
            let part = chunk.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(chunk.len());
            taken.extend_from_slice(&part[..part.len().min(len - taken.len())]);
        }
        if taken.len() != len {
            return Err(Why::Source(SourceError::lasting("the span's source bytes run backwards")));
        }
        self.drop_before(keep);
        Ok(taken)
    }

    async fn next(&mut self, purpose: Purpose) -> Result<Bytes, Why> {
        let late = |_| Why::Late(self.patience);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let opened = timeout(self.patience, self.source.read(self.start..self.end)).await.map_err(late)?;
                self.stream.insert(opened.map_err(Why::Source)?)
            }
        };
        let ended = || SourceError::new(format!("the body ended at byte {} instead of {}", self.arrived, self.end));
        let chunk = timeout(self.patience, stream.next()).await.map_err(late)?;
        let piece = chunk.unwrap_or_else(|| Err(ended())).map_err(Why::Source)?;
        self.device.received(&piece, purpose);
        Ok(piece.bytes)
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
