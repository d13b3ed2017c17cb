//! Where a device's bytes come from: something that reads ranges of one blob.
use bytes::Bytes;
use futures::Stream;
use std::{error::Error, fmt, ops::Range, pin::Pin, sync::Arc};

/// Bytes of a range, in order, as they arrive.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// A blob that can be read by ranges. What it yields is never trusted: every span is verified.
#[async_trait::async_trait]
pub trait Source: Send + Sync + 'static {
    /// Starts reading `range` of the blob. The stream should yield exactly that many bytes; one that is shorter or
    /// longer is treated as a failure of this source. Retries with backoff are the source's own business.
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError>;

    /// Which blob this is and where, for logs and errors: `sha256:… at registry.example`. Two sources with the same
    /// description are taken to be the same.
    fn describe(&self) -> String;

    /// Told when bytes of this source turned out wrong, so that it can ask elsewhere the next time.
    fn distrust(&self) {}
}

/// Why a source didn't give the bytes it was asked for.
#[derive(Clone)]
pub struct SourceError(Arc<dyn Error + Send + Sync>);

impl SourceError {
    /// Wraps any error, or a text.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

impl fmt::Debug for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for SourceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
