//! Where a device's bytes come from: something that reads ranges of one blob.
use bytes::Bytes;
use futures::Stream;
use std::{error::Error, fmt, ops::Range, pin::Pin, sync::Arc};

/// Bytes of a range, in order, as they arrive.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Piece, SourceError>> + Send>>;

/// Some of them.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// Who sent them, for counters and logs: `registry.example`.
    pub host: Arc<str>,
}

/// A blob that can be read by ranges. What it yields is never trusted: every span is verified.
#[async_trait::async_trait]
pub trait Source: Send + Sync + 'static {
    /// Starts reading `range` of the blob. The stream should yield exactly that many bytes; one that is shorter or
    /// longer is treated as a failure of this source. Retries with backoff are the source's own business.
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError>;

    /// Which blob this is and where, for logs and errors: `sha256:… at registry.example`. Two sources with the same
    /// description are taken to be the same.
    fn describe(&self) -> String;

    /// Told when bytes of `range` turned out wrong, so that they are asked for elsewhere the next time. True if there is
    /// such a place.
    fn distrust(&self, _range: Range<u64>) -> bool {
        false
    }
}

/// Why a source didn't give the bytes it was asked for.
#[derive(Clone)]
pub struct SourceError {
    error: Arc<dyn Error + Send + Sync>,
    lasting: bool,
}

impl SourceError {
    /// Wraps any error, or a text: one that may pass, so that readers wait for it to do so.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { error: Arc::from(error.into()), lasting: false }
    }

    /// As [`new`](Self::new), one for whose end it's no use to wait: the blob isn't there.
    pub fn lasting(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { lasting: true, ..Self::new(error) }
    }

    /// Whether it's no use to wait for its end.
    pub fn is_lasting(&self) -> bool {
        self.lasting
    }

    /// Adds what was being done, in front.
    pub(crate) fn during(&self, action: impl fmt::Display) -> Self {
        Self { lasting: self.lasting, ..Self::new(format!("{action}: {self}")) }
    }
}

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}
