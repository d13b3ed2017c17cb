//! Blobs of a registry or an OCI layout as sources.
use crate::source::{ByteStream, Piece, Source, SourceError};
use clipper_registry::{Blob, ErrorKind, RegistryError};
use futures::StreamExt;
use std::ops::Range;

#[async_trait::async_trait]
impl Source for Blob {
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let stream = Blob::read_pieces(self, range).await.map_err(failed)?;
        let piece = |clipper_registry::Piece { bytes, host }| Piece { bytes, host };
        Ok(stream.map(move |sent| sent.map(piece).map_err(failed)).boxed())
    }

    fn describe(&self) -> String {
        Blob::describe(self)
    }

    fn distrust(&self, range: Range<u64>) -> bool {
        Blob::distrust(self, range)
    }
}

/// A registry that is down, busy or refuses may be up, idle or satisfied with other credentials a moment later; one that
/// doesn't have the blob, or answers nonsense, is no more worth a wait than a broken file.
fn failed(error: RegistryError) -> SourceError {
    let passing = error.is_transient() || matches!(error.kind(), ErrorKind::Denied { .. } | ErrorKind::Tls { .. });
    if passing { SourceError::new(error) } else { SourceError::lasting(error) }
}
