//! Index blobs on disk, as they came from the registry: verified whole by their digest whenever they are read.
use super::{
    StoreError,
    files::{Directory, Durability},
};
use clipper_device::disk::{Disk, LocalDisk};
use clipper_format::{Digest, index::Index};
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a decoded index stays in memory after it was asked for: an image's layers are prepared one after the other.
pub(super) const MEMORY: Duration = Duration::from_secs(10);

/// The directory of index blobs, each named by the hex digits of its digest.
pub(super) struct IndexCache<D: Disk = LocalDisk> {
    directory: Directory<D>,
    recent: Mutex<Recent>,
}

/// Decoded indexes that were asked for a moment ago.
#[derive(Default)]
struct Recent {
    indexes: HashMap<Digest, (Instant, Arc<Index>)>,
    /// Whether somebody will call [`IndexCache::sweep`].
    swept: bool,
}

impl<D: Disk> IndexCache<D> {
    pub(super) fn open(disk: D, path: PathBuf) -> Result<Self, StoreError> {
        Ok(Self { directory: Directory::open(disk, path)?, recent: Mutex::default() })
    }

    /// The index `digest`, if it is cached and sound.
    pub(super) fn load(&self, digest: Digest) -> Result<Option<Arc<Index>>, StoreError> {
        if let Some((used, index)) = self.recent().indexes.get_mut(&digest) {
            *used = Instant::now();
            return Ok(Some(Arc::clone(index)));
        }
        let name = digest.hex();
        let Some(bytes) = self.directory.read(&name)? else { return Ok(None) };
        if Digest::of(&bytes) != digest {
            let path = self.directory.path(&name);
            tracing::warn!(index = %path.display(), "a cached index is damaged and is fetched again");
            return Ok(None);
        }
        Ok(Some(self.remember(digest, decode(digest, &bytes)?)))
    }

    /// Keeps the index `digest`, whose bytes the caller has verified, and decodes it.
    pub(super) fn store(&self, digest: Digest, bytes: &[u8]) -> Result<Arc<Index>, StoreError> {
        let index = decode(digest, bytes)?;
        self.directory.write(&digest.hex(), bytes, Durability::Synced)?;
        Ok(self.remember(digest, index))
    }

    /// Removes every index that isn't one of `digests`; tells how many bytes that freed.
    pub(super) fn retain(&self, digests: &HashSet<Digest>) -> Result<u64, StoreError> {
        self.recent().indexes.retain(|digest, _| digests.contains(digest));
        let keep: HashSet<String> = digests.iter().map(Digest::hex).collect();
        let mut freed = 0;
        for name in self.directory.names()? {
            if !keep.contains(&name) {
                freed += self.directory.remove(&name)?;
            }
        }
        Ok(freed)
    }

    /// Whether the caller should see to it that [`sweep`](Self::sweep) is called every [`MEMORY`].
    pub(super) fn must_be_swept(&self) -> bool {
        let mut recent = self.recent();
        !recent.indexes.is_empty() && !std::mem::replace(&mut recent.swept, true)
    }

    /// Forgets decoded indexes that nobody has asked for lately; true if none is left and it needn't be called again.
    pub(super) fn sweep(&self) -> bool {
        let mut recent = self.recent();
        recent.indexes.retain(|_, (used, _)| used.elapsed() < MEMORY);
        recent.swept = !recent.indexes.is_empty();
        !recent.swept
    }

    fn remember(&self, digest: Digest, index: Index) -> Arc<Index> {
        let index = Arc::new(index);
        self.recent().indexes.insert(digest, (Instant::now(), Arc::clone(&index)));
        index
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn decode(digest: Digest, bytes: &[u8]) -> Result<Index, StoreError> {
    Index::decode(bytes).map_err(|source| StoreError::Index { digest, source })
}
