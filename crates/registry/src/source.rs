//! A blob as the source of an upload: read in order, and again from wherever the target stands.
use crate::{
    blob::{Blob, BlobStream},
    error::RegistryError,
    net::{Body, UploadStream},
};
use bytes::Bytes;
use futures::{TryStreamExt, stream::try_unfold};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// Told the offset up to which bytes have been handed on; it goes back when a target lost some.
pub(crate) type OnProgress = Arc<dyn Fn(u64) + Send + Sync>;

/// A blob that is being read for an upload.
pub(crate) struct Source {
    pub blob: Blob,
    on_progress: OnProgress,
    /// The read that the last body ended with, so that the next one needs no request of its own.
    parked: Arc<Mutex<Option<Read>>>,
}

/// A read of the blob up to its end.
struct Read {
    /// Offset of the next byte.
    at: u64,
    /// Of the last piece, what went beyond the body's end.
    rest: Bytes,
    stream: BlobStream,
}

impl Source {
    pub fn new(blob: Blob, on_progress: OnProgress) -> Self {
        Self { blob, on_progress, parked: Arc::default() }
    }

    /// Tells that all of it has been handed on.
    pub fn finished(&self) {
        (self.on_progress)(self.blob.size());
    }

    /// A range, which must lie in the blob, as a request's body.
    pub fn body(&self, range: Range<u64>) -> Body {
        Body::Stream(Arc::new(self.upload(range)))
    }

    /// As [`body`](Self::body).
    pub fn upload(&self, range: Range<u64>) -> UploadStream {
        let size = range.end - range.start;
        let (blob, on_progress, parked) = (self.blob.clone(), self.on_progress.clone(), self.parked.clone());
        let taken = park(&parked).take().filter(|read| read.at == range.start);
        let stream = try_unfold((taken, range), move |(read, range)| {
            let (blob, on_progress, parked) = (blob.clone(), on_progress.clone(), parked.clone());
            async move {
                if range.is_empty() {
                    return Ok::<_, RegistryError>(None);
                }
                let mut read = match read {
                    Some(read) => read,
                    None => Read::start(&blob, range.start).await?,
                };
                let bytes = read.next(range.end).await?;
                if bytes.is_empty() {
                    return Ok(None);
                }
                on_progress(read.at);
                let range = read.at..range.end;
                if !range.is_empty() {
                    return Ok(Some((bytes, (Some(read), range))));
                }
                *park(&parked) = Some(read);
                Ok(Some((bytes, (None, range))))
            }
        });
        UploadStream::new(size, stream)
    }
}

impl Read {
    async fn start(blob: &Blob, at: u64) -> Result<Self, RegistryError> {
        Ok(Self { at, rest: Bytes::new(), stream: blob.read(at..blob.size()).await? })
    }

    /// The next bytes, none beyond `end`. After the blob's end, no bytes; the upload's length is checked elsewhere.
    async fn next(&mut self, end: u64) -> Result<Bytes, RegistryError> {
        while self.rest.is_empty() {
            match self.stream.try_next().await? {
                Some(bytes) => self.rest = bytes,
                None => break,
            }
        }
        let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
        let bytes = self.rest.split_to(self.rest.len().min(room));
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

fn park(parked: &Mutex<Option<Read>>) -> std::sync::MutexGuard<'_, Option<Read>> {
    parked.lock().unwrap_or_else(PoisonError::into_inner)
}
