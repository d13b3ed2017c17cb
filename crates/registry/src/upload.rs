//! An upload of a blob whose digest and size are known only at its end.
use crate::{
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    layout::Layout,
    remote::Remote,
    session::{Content, Session},
    staged::StagedBlob,
};
use bytes::{Bytes, BytesMut};
use clipper_format::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::{fmt, sync::Arc};

/// Length of the chunks that a blob is written in, and largest blob that goes in one piece. A chunk is kept in
/// memory until the registry has it, and costs a round trip: at 8 MiB, 10 ms of it are 5 % of the time on 300 Mbit/s.
/// Registries that store chunks in S3 want 5 MiB at least.
pub(crate) const CHUNK: usize = 8 << 20;
/// A registry that wants longer chunks than this isn't served: they are kept in memory.
const CHUNK_MIN_MAX: u64 = 128 << 20;

/// A blob that is being written to a repository. Dropped before [`finish`](Self::finish), it leaves nothing behind: a
/// registry is told to forget it, a layout's temporary file is removed.
///
/// After an error, or after a future of its was dropped, nothing more can be written.
#[derive(Debug)]
pub struct BlobUpload(Target);

#[derive(Debug)]
enum Target {
    // Boxed, because what a hash carries with it is large.
    Remote(Box<RemoteUpload>),
    Layout(Box<StagedBlob>),
}

impl BlobUpload {
    pub(crate) fn to_registry(remote: Arc<Remote>) -> Self {
        let action = format!("pushing a blob to {}", remote.name());
        let (session, hash) = (Stage::Unopened, Sha256::new());
        let (chunk, chunk_size) = (BytesMut::new(), CHUNK);
        Self(Target::Remote(Box::new(RemoteUpload { remote, session, chunk, chunk_size, sent: 0, hash, action })))
    }

    pub(crate) async fn to_layout(layout: &Arc<Layout>) -> Result<Self, RegistryError> {
        let staged = StagedBlob::create(layout, format!("writing a blob to {}", layout.name())).await?;
        Ok(Self(Target::Layout(Box::new(staged))))
    }

    /// Appends bytes. A registry gets them in chunks of 8 MiB, or more if it wants that; at most one is in memory. A
    /// connection that breaks, a token that expires, a rate limit and a server in trouble are overcome on the way, by
    /// sending again what the registry lacks of the chunk.
    ///
    /// # Errors
    /// See [`ErrorKind`]. [`ErrorKind::UploadLost`] if the registry no longer has what was written before the chunk, or
    /// doesn't know how much of it: begin another upload then. [`ErrorKind::NoChunks`] if it takes a blob only whole.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        match &mut self.0 {
            Target::Remote(upload) => upload.write(bytes).await,
            Target::Layout(staged) => staged.write(bytes).await,
        }
    }

    /// Makes a blob of what was written. Its digest and its size in bytes.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn finish(self) -> Result<(Digest, u64), RegistryError> {
        match self.0 {
            Target::Remote(upload) => upload.finish().await,
            Target::Layout(staged) => staged.finish(None).await,
        }
    }
}

/// An upload to a registry. One that fits into a chunk becomes known to the registry only at its end.
struct RemoteUpload {
    remote: Arc<Remote>,
    session: Stage,
    /// What was written and not yet sent.
    chunk: BytesMut,
    /// Length at which a chunk is sent.
    chunk_size: usize,
    /// Bytes before the chunk.
    sent: u64,
    hash: Sha256,
    action: String,
}

enum Stage {
    Unopened,
    Open(Session),
    /// A write failed or was dropped, so nobody knows what the registry has.
    Failed,
}

impl RemoteUpload {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), RegistryError> {
        self.hash.update(&bytes);
        while !bytes.is_empty() {
            let room = self.chunk_size - self.chunk.len();
            self.chunk.extend_from_slice(&bytes.split_to(bytes.len().min(room)));
            if self.chunk.len() == self.chunk_size {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends the chunk, unless it's too short for the registry.
    async fn send(&mut self) -> Result<(), RegistryError> {
        // Put back only after success: dropping the session cancels the upload.
        let mut session = match std::mem::replace(&mut self.session, Stage::Failed) {
            Stage::Open(session) => session,
            Stage::Unopened => {
                let session = Session::open(self.remote.clone(), self.action.clone()).await?;
                self.chunk_size = chunk_size(session.chunk_min).map_err(|kind| kind.during(&self.action))?;
                session
            }
            Stage::Failed => return Err(failed().during(&self.action)),
        };
        if self.chunk.len() >= self.chunk_size {
            self.send_chunk(&mut session).await?;
        }
        self.session = Stage::Open(session);
        Ok(())
    }

    async fn send_chunk(&mut self, session: &mut Session) -> Result<(), RegistryError> {
        let chunk = self.chunk.split().freeze();
        let end = self.sent + chunk.len() as u64;
        session.send(&Content::Bytes(self.sent, &chunk), end).await?;
        self.sent = end;
        Ok(())
    }

    async fn finish(mut self) -> Result<(Digest, u64), RegistryError> {
        let digest = Digest::from_bytes(self.hash.finalize_reset().into());
        let size = self.sent + self.chunk.len() as u64;
        match std::mem::replace(&mut self.session, Stage::Failed) {
            Stage::Failed => return Err(failed().during(&self.action)),
            Stage::Unopened => {
                let bytes = self.chunk.split().freeze();
                self.remote.push_blob(digest, bytes).await?;
            }
            // If it's there already, dropping the session spares the registry the work.
            Stage::Open(mut session) => {
                if self.remote.head_blob(&digest, Capability::Push, true).await?.is_none() {
                    self.send_chunk(&mut session).await?;
                    session.commit(&digest).await?;
                }
            }
        }
        Ok((digest, size))
    }
}

impl fmt::Debug for RemoteUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteUpload")
            .field("to", &self.remote.name())
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

/// Length of the chunks for a registry that wants `min` bytes at least.
fn chunk_size(min: u64) -> Result<usize, ErrorKind> {
    if min > CHUNK_MIN_MAX {
        return Err(ErrorKind::Unsupported(format!(
            "the registry wants chunks of {min} bytes at least (OCI-Chunk-Min-Length), which are not kept in memory: \
             write to a layout (oci:DIR) and copy that"
        )));
    }
    Ok(CHUNK.max(usize::try_from(min).unwrap_or(CHUNK)))
}

fn failed() -> ErrorKind {
    ErrorKind::Request("the upload has failed before: begin another one".into())
}
