//! A blob: ranged, streamed and verified reads.
use crate::{
    error::{ErrorKind, RegistryError},
    ranged::RangedRead,
    remote::Remote,
    repository::Place,
};
use bytes::{Bytes, BytesMut};
use clipper_format::digest::Digest;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};
use std::{ops::Range, pin::Pin, sync::Arc};

/// Bytes as they arrive.
pub type BlobStream = Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>>;

/// Bytes of a blob, and who sent them.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The bytes.
    pub bytes: Bytes,
    /// The server that they came from in the end, `host` or `host:port`: a mirror, or where the registry redirects to;
    /// the directory of a layout.
    pub host: Arc<str>,
}

/// As [`BlobStream`], with who sent each part of it.
pub type PieceStream = Pin<Box<dyn Stream<Item = Result<Piece, RegistryError>> + Send>>;

/// Bytes reserved at once for a blob that is read whole, whatever size is claimed.
const RESERVE_MAX: u64 = 8 << 20;

/// Servers that are asked for a blob whose bytes turn out wrong each time.
const SERVERS_MAX: usize = 8;

/// A blob of a repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Blob {
    place: Place,
    digest: Digest,
    size: u64,
}

impl Blob {
    pub(crate) fn new(place: Place, digest: Digest, size: u64) -> Self {
        Self { place, digest, size }
    }

    /// The blob's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's size in bytes, as its descriptor tells it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The registry's host with its port; the directory of a layout.
    pub fn host(&self) -> String {
        match &self.place {
            Place::Remote(remote) => remote.host.clone(),
            Place::Layout(layout) => layout.name(),
        }
    }

    /// Digest and place, for logs.
    pub fn describe(&self) -> String {
        match &self.place {
            Place::Remote(remote) => format!("{} of {}", self.digest, remote.name()),
            Place::Layout(layout) => format!("{} of {}", self.digest, layout.name()),
        }
    }

    /// Reads a range: exactly as many bytes as it's long, or an error. A connection that breaks or stalls is resumed at
    /// the byte where it did. The bytes can't be verified by the blob's digest: that's the caller's to do.
    ///
    /// # Errors
    /// At once if no server gives the range, in the stream if none gives the rest of it; a range that isn't within the
    /// blob is refused.
    pub async fn read(&self, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        Ok(self.read_pieces(range).await?.map_ok(|piece| piece.bytes).boxed())
    }

    /// As [`read`](Self::read), telling who sent what.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_pieces(&self, range: Range<u64>) -> Result<PieceStream, RegistryError> {
        if range.start > range.end || range.end > self.size {
            let problem = format!("bytes {}..{} are not within its {} bytes", range.start, range.end, self.size);
            return Err(ErrorKind::Request(problem).during(format!("reading blob {}", self.describe())));
        }
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        match &self.place {
            Place::Remote(remote) => {
                let read = RangedRead::start(remote.clone(), self.digest, self.size, range).await?;
                Ok(read.into_pieces().boxed())
            }
            Place::Layout(layout) => {
                let (bytes, host) = (layout.read(self.digest, self.size, range).await?, Arc::from(layout.name()));
                Ok(bytes.map_ok(move |bytes| Piece { bytes, host: Arc::clone(&host) }).boxed())
            }
        }
    }

    /// Reads the whole blob as a stream that ends in an error if its digest is wrong.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`ErrorKind::Digest`] in place of the stream's end.
    pub async fn read_verified(&self) -> Result<BlobStream, RegistryError> {
        Ok(self.verified(self.read(0..self.size).await?))
    }

    fn verified(&self, bytes: BlobStream) -> BlobStream {
        let blob = self.clone();
        // The end of the stream is a last item without bytes, which becomes the verdict. After an error comes nothing.
        let ended = bytes.map_ok(Some).chain(stream::once(async { Ok(None) }));
        let verified = ended.scan(Some(Sha256::new()), move |hash, item| {
            std::future::ready(match (item, hash.as_mut()) {
                (_, None) => None,
                (Ok(Some(bytes)), Some(hash)) => {
                    hash.update(&bytes);
                    Some(Ok(bytes))
                }
                (Ok(None), Some(hash)) => {
                    let got = Digest::from_bytes(hash.finalize_reset().into());
                    (got != blob.digest).then(|| Err(blob.mismatch(got)))
                }
                (Err(error), Some(_)) => {
                    *hash = None;
                    Some(Err(error))
                }
            })
        });
        verified.boxed()
    }

    /// Reads the whole blob into memory and verifies its digest.
    ///
    /// # Errors
    /// As [`read_verified`](Self::read_verified); [`ErrorKind::TooLarge`] if it has more than `max` bytes.
    pub async fn read_all(&self, max: u64) -> Result<Bytes, RegistryError> {
        if self.size > max {
            return Err(ErrorKind::TooLarge { limit: max }.during(format!("reading blob {}", self.describe())));
        }
        for _ in 1..SERVERS_MAX {
            match self.collect().await {
                Err(error) if self.is_wrong(&error) => tracing::warn!(%error, "asking another server"),
                result => return result,
            }
        }
        self.collect().await
    }

    /// Whether other bytes came than the digest promises, and another server may have the right ones.
    pub fn is_wrong(&self, error: &RegistryError) -> bool {
        matches!(error.kind(), ErrorKind::Digest { .. }) && self.distrust(0..self.size)
    }

    /// [`read_all`](Self::read_all) of a blob whose size nobody has told: one request says it and brings the bytes.
    pub(crate) async fn read_unsized(remote: &Arc<Remote>, digest: Digest, max: u64) -> Result<Bytes, RegistryError> {
        for _ in 1..SERVERS_MAX {
            match Self::collect_unsized(remote, digest, max).await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Digest { .. }) && remote.distrust(digest, &(0..u64::MAX)) =>
                {
                    tracing::warn!(%error, "asking another server");
                }
                result => return result,
            }
        }
        Self::collect_unsized(remote, digest, max).await
    }

    async fn collect_unsized(remote: &Arc<Remote>, digest: Digest, max: u64) -> Result<Bytes, RegistryError> {
        let read = RangedRead::start_whole(remote.clone(), digest).await?;
        let blob = Self::new(Place::Remote(remote.clone()), digest, read.size());
        if blob.size > max {
            return Err(ErrorKind::TooLarge { limit: max }.during(format!("reading blob {}", blob.describe())));
        }
        blob.gather(blob.verified(read.into_stream().boxed())).await
    }

    async fn collect(&self) -> Result<Bytes, RegistryError> {
        self.gather(self.read_verified().await?).await
    }

    async fn gather(&self, mut stream: BlobStream) -> Result<Bytes, RegistryError> {
        let mut bytes = BytesMut::with_capacity(self.size.min(RESERVE_MAX) as usize);
        while let Some(chunk) = stream.try_next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// Has those servers asked last for this blob, for a while, that sent some of the bytes of `range`, because they turned
    /// out wrong. True if another one may have the right ones, so that reading again is worth it.
    pub fn distrust(&self, range: Range<u64>) -> bool {
        match &self.place {
            Place::Remote(remote) => remote.distrust(self.digest, &range),
            Place::Layout(_) => false,
        }
    }

    fn mismatch(&self, got: Digest) -> RegistryError {
        let kind = ErrorKind::Digest { host: self.host(), expected: self.digest, got };
        kind.during(format!("reading blob {}", self.describe()))
    }
}
