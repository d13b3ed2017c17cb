//! The devices of a directory: which there are, which are open, and which of them running containers need.
use crate::{device::Device, storage::Storage};
use clipper_format::Digest;
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Prefix of directories on their way out.
const REMOVED: &str = "removed-";

/// The directory of devices.
///
/// ```text
/// ROOT/lock              locked while the directory or a device of it is open
/// ROOT/<hex>/data        the device's bytes, sparse
/// ROOT/<hex>/presence    which of its blocks are real
/// ROOT/removed-*         devices on their way out
/// ```
pub(crate) struct Shelf {
    root: PathBuf,
    open: Mutex<Open>,
    pinned: Mutex<HashSet<Digest>>,
}

#[derive(Default)]
pub(crate) struct Open {
    pub(crate) devices: HashMap<Digest, Opened>,
    removals: u64,
}

/// A device that is open, or was.
pub(crate) struct Opened {
    pub(crate) device: Weak<Device>,
    /// Outlives the device for as long as it takes to record what that had.
    pub(crate) storage: Weak<Storage>,
}

/// What a device on disk is to this process.
pub(crate) enum Holding {
    /// Somebody has it open.
    Open(Arc<Device>),
    /// Nobody has.
    Closed,
    /// It was let go of just now: what it had is being recorded. Or it is being evicted.
    Closing,
}

impl Shelf {
    /// Opens the directory, which exists, and deletes what was on its way out when the last process ended.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { root, open: Mutex::default(), pinned: Mutex::default() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a device is.
    pub(crate) fn dir(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    /// All devices on disk, open or not, sorted.
    pub(crate) fn list(&self) -> Vec<Digest> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let digest = |entry: fs::DirEntry| format!("sha256:{}", entry.file_name().to_str()?).parse().ok();
        let mut digests: Vec<Digest> = entries.filter_map(digest).collect();
        digests.sort_unstable();
        digests
    }

    /// The devices that are open; nobody opens or removes one meanwhile.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices that running containers need.
    pub(crate) fn pinned(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a device out of the directory, if it is there: where it is until it is deleted, which the caller does.
    pub(crate) fn take_out(&self, open: &mut Open, digest: &Digest) -> io::Result<Option<PathBuf>> {
        open.removals += 1;
        let away = self.root.join(format!("{REMOVED}{}-{}", digest.hex(), open.removals));
        match fs::rename(self.dir(digest), &away) {
            Ok(()) => Ok(Some(away)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Open {
    /// What has something to record, perhaps.
    pub(crate) fn storages(&self) -> Vec<Arc<Storage>> {
        self.devices.values().filter_map(|opened| opened.storage.upgrade()).collect()
    }

    /// What the device `digest`, which is on disk, is to this process.
    pub(crate) fn holding(&self, digest: &Digest) -> Holding {
        match self.devices.get(digest) {
            Some(opened) => match (opened.device.upgrade(), opened.storage.strong_count()) {
                (Some(device), _) => Holding::Open(device),
                (None, 0) => Holding::Closed,
                (None, _) => Holding::Closing,
            },
            None => Holding::Closed,
        }
    }
}
