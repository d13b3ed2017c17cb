//! A blob's file in a layout that isn't complete yet.
use crate::{
    error::{ErrorKind, RegistryError},
    layout::{Discard, Layout},
};
use bytes::{Bytes, BytesMut};
use clipper_format::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    sync::Arc,
};

/// Bytes that are gathered before they are written, because a write is work for another thread.
const GATHER: usize = 1 << 20;

/// A temporary file that becomes a blob under its digest. It's removed if dropped before.
#[derive(Debug)]
pub(crate) struct StagedBlob {
    layout: Arc<Layout>,
    /// `None` after a write that failed or was dropped.
    file: Option<Open>,
    gathered: BytesMut,
    size: u64,
    action: String,
}

/// File and hash travel to the thread that writes, so that neither blocks the runtime.
#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    hash: Sha256,
    _guard: Discard,
}

impl StagedBlob {
    pub async fn create(layout: &Arc<Layout>, action: String) -> Result<Self, RegistryError> {
        let path = layout.temporary();
        let open = layout.blocking(action.clone(), move |layout| {
            layout.create()?;
            let file = File::create(&path).map_err(|e| ErrorKind::io(&path, &e))?;
            Ok(Open { file, _guard: Discard(path.clone()), path, hash: Sha256::new() })
        });
        let file = Some(open.await?);
        Ok(Self { layout: layout.clone(), file, gathered: BytesMut::new(), size: 0, action })
    }

    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RegistryError> {
        self.gathered.extend_from_slice(&bytes);
        if self.gathered.len() >= GATHER { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RegistryError> {
        let bytes = self.gathered.split().freeze();
        let mut open = self.take()?;
        self.size += bytes.len() as u64;
        let written = self.layout.blocking(self.action.clone(), move |_| {
            open.hash.update(&bytes);
            open.file.write_all(&bytes).map_err(|e| ErrorKind::io(&open.path, &e))?;
            Ok(open)
        });
        self.file = Some(written.await?);
        Ok(())
    }

    /// Makes a blob of it, durably. Its digest, which must be `expected` if that's given, and its size.
    pub async fn finish(mut self, expected: Option<Digest>) -> Result<(Digest, u64), RegistryError> {
        self.flush().await?;
        let mut open = self.take()?;
        let size = self.size;
        let placed = self.layout.blocking(self.action.clone(), move |layout| {
            let digest = Digest::from_bytes(open.hash.finalize_reset().into());
            if expected.is_some_and(|expected| expected != digest) {
                return Err(ErrorKind::Request(format!("the digest of the bytes is {digest}")));
            }
            let target = layout.blob_path(&digest);
            if !fs::metadata(&target).is_ok_and(|m| m.len() == size) {
                open.file.sync_all().map_err(|e| ErrorKind::io(&open.path, &e))?;
                layout.rename(&open.path, &target)?;
            }
            Ok(digest)
        });
        Ok((placed.await?, size))
    }

    fn take(&mut self) -> Result<Open, RegistryError> {
        let failed = || ErrorKind::Request("the file has failed before: begin another one".into());
        self.file.take().ok_or_else(|| failed().during(&self.action))
    }
}
