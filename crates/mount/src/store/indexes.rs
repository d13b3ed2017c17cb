//! Index blobs on disk, as they came from the registry: verified whole by their digest whenever they are read.
use super::{
    StoreError,
    files::{Directory, Durability},
};
use clipper_format::{Digest, index::Index};
use std::{collections::HashSet, io::Read as _, path::PathBuf};

/// The directory of index blobs, each named by the hex digits of its digest.
pub(super) struct IndexCache {
    directory: Directory,
}

impl IndexCache {
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        Ok(Self { directory: Directory::open(path)? })
    }

    /// The index `digest`, if it is cached and sound.
    pub(super) fn load(&self, digest: Digest) -> Result<Option<Index>, StoreError> {
        let name = digest.hex();
        let Some(mut file) = self.directory.read(&name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = file.read_to_end(&mut bytes);
        read.map_err(|source| StoreError::Disk { path: self.directory.path(&name), doing: "reading", source })?;
        if Digest::of(&bytes) != digest {
            let path = self.directory.path(&name);
            tracing::warn!(index = %path.display(), "a cached index is damaged and is fetched again");
            return Ok(None);
        }
        decode(digest, &bytes).map(Some)
    }

    /// Keeps the index `digest`, whose bytes the caller has verified, and decodes it.
    pub(super) fn store(&self, digest: Digest, bytes: &[u8]) -> Result<Index, StoreError> {
        let index = decode(digest, bytes)?;
        self.directory.write(&digest.hex(), bytes, Durability::Synced)?;
        Ok(index)
    }

    /// Removes every index that isn't one of `digests`; tells how many bytes that freed.
    pub(super) fn retain(&self, digests: &HashSet<Digest>) -> Result<u64, StoreError> {
        let keep: HashSet<String> = digests.iter().map(Digest::hex).collect();
        let mut freed = 0;
        for name in self.directory.names()? {
            if !keep.contains(&name) {
                freed += self.directory.remove(&name)?;
            }
        }
        Ok(freed)
    }
}

fn decode(digest: Digest, bytes: &[u8]) -> Result<Index, StoreError> {
    Index::decode(bytes).map_err(|source| StoreError::Index { digest, source })
}
