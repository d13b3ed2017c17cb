//! Blobs of a registry or an OCI layout as sources.
use crate::source::{ByteStream, Source, SourceError};
use clipper_registry::Blob;
use futures::StreamExt;
use std::ops::Range;

#[async_trait::async_trait]
impl Source for Blob {
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError> {
        let stream = Blob::read(self, range).await.map_err(SourceError::new)?;
        Ok(stream.map(|chunk| chunk.map_err(SourceError::new)).boxed())
    }

    fn describe(&self) -> String {
        Blob::describe(self)
    }

    fn distrust(&self) {
        self.distrust_mirrors();
    }
}
