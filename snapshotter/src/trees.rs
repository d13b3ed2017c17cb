//! Mounted trees: one mount per merged tree, shared by all snapshots that lie on it.
use crate::{
    chain::RemoteRun,
    error::{Error, Result, with_causes},
    records::RemoteLayer,
};
use clipper_format::Digest;
use clipper_mount::{Beneath, LayerRef, MountOptions, Mounted, Recording, Store, detach_stale};
use std::{
    collections::{HashMap, HashSet},
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{sync::Mutex, task::spawn_blocking};

/// Hex digits of a tree's name in its path: paths go into mount options, which have to fit a page.
const NAME_DIGITS: usize = 16;

/// One tree: mounted, or about to be.
type Slot = Arc<Mutex<Option<Mounted>>>;

/// The mounts below `ROOT/mounts`.
pub struct Trees {
    dir: PathBuf,
    store: Arc<Store>,
    options: MountOptions,
    slots: SyncMutex<HashMap<Digest, Slot>>,
    /// Recorded mounts so far.
    recorded: AtomicUsize,
}

/// A tree to be mounted, and the directories it lies on, topmost first.
pub struct MountPlace<'a> {
    /// Its layers.
    pub run: &'a RemoteRun<'a>,
    /// What is below.
    pub lowers: &'a [PathBuf],
}

impl Trees {
    /// Opens or makes `dir`, and detaches what an earlier life left mounted there: its process is gone, so nothing
    /// there answers any more.
    pub fn open(dir: PathBuf, store: Arc<Store>, options: MountOptions) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            let path = entry.path();
            match detach_stale(&path) {
                Ok(true) => tracing::info!(mount = %path.display(), "detached what an earlier daemon left"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error = with_causes(&error), "a stale mount stays"),
            }
            remove_directory(&path);
        }
        Ok(Self { dir, store, options, slots: SyncMutex::default(), recorded: AtomicUsize::new(0) })
    }

    /// The directory on which the tree of `run` is mounted; mounts it if it isn't. Below it lie `lowers`, topmost first.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if an index is missing and can't be fetched, or the kernel refuses.
    pub async fn mount(&self, run: &RemoteRun<'_>, lowers: &[PathBuf]) -> Result<PathBuf> {
        let dir = self.dir.join(&run.tree.hex()[..NAME_DIGITS]);
        let slot = Arc::clone(self.slots().entry(run.tree).or_default());
        // Whoever needs the same tree waits here; others don't.
        let mut slot = slot.lock().await;
        if let Some(mounted) = slot.as_ref() {
            if mounted.is_live() && is_mount_point(&dir).await {
                return Ok(dir);
            }
            tracing::warn!(mount = %dir.display(), "somebody unmounted a tree: mounting it again");
            *slot = None;
        }
        let path = dir.clone();
        spawn_blocking(move || make_mount_point(&path)).await.map_err(|_| Error::Interrupted)??;
        let mounted = self.mount_on(&MountPlace { run, lowers }, &dir, &self.options).await?;
        *slot = Some(mounted);
        Ok(dir)
    }

    /// Mounts the tree of a run once more, alone, with what is read of it noted in `recording`.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub async fn mount_recorded(&self, place: MountPlace<'_>, recording: Arc<Recording>) -> Result<Mounted> {
        let number = self.recorded.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("recorded-{number}"));
        let path = dir.clone();
        spawn_blocking(move || make_mount_point(&path)).await.map_err(|_| Error::Interrupted)??;
        let options = MountOptions { recording: Some(recording), ..self.options.clone() };
        self.mount_on(&place, &dir, &options).await
    }

    async fn mount_on(&self, place: &MountPlace<'_>, dir: &Path, options: &MountOptions) -> Result<Mounted> {
        let layers: Vec<_> = place.run.layers.iter().map(|layer| layer_ref(layer)).collect();
        let mounted = match place.run.above {
            None => self.store.mount(&layers, false, dir, options).await,
            Some(snapshot) => {
                // A snapshot's number is never given to another, and what lies below it never changes.
                let id = Digest::of(format!("snapshot {snapshot}").as_bytes());
                let beneath = Beneath { id, dirs: place.lowers.to_vec() };
                self.store.mount_above(&layers, &beneath, dir, options).await
            }
        };
        let mounted = mounted.map_err(|error| {
            Error::Unavailable(format!("mount an image at {}: {}", dir.display(), with_causes(&error)))
        })?;
        tracing::info!(mount = %dir.display(), layers = layers.len(), "mounted");
        Ok(mounted)
    }

    /// Unmounts every tree that isn't `in_use`.
    pub async fn retain(&self, in_use: &HashSet<Digest>) {
        let unused: Vec<_> =
            self.slots().iter().filter(|(tree, _)| !in_use.contains(tree)).map(|(t, s)| (*t, Arc::clone(s))).collect();
        for (tree, slot) in unused {
            let mut slot = slot.lock().await;
            if let Some(mounted) = slot.take() {
                let dir = self.dir.join(&tree.hex()[..NAME_DIGITS]);
                // A panic while unmounting is reported where it happens.
                let _ = spawn_blocking(move || {
                    drop(mounted);
                    remove_directory(&dir);
                    tracing::info!(mount = %dir.display(), "unmounted");
                })
                .await;
            }
            // Somebody may have asked for it again meanwhile; the slot then stays theirs.
            let mut slots = self.slots();
            if slots.get(&tree).is_some_and(|slot| Arc::strong_count(slot) <= 2) {
                slots.remove(&tree);
            }
        }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Slot>> {
        // Nothing that could panic happens under this lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the store calls a recorded layer.
pub fn layer_ref(layer: &RemoteLayer) -> LayerRef {
    let repositories = layer.repositories.iter().filter_map(|text| text.parse().ok()).collect();
    LayerRef { index: layer.index, layer: layer.layer, repositories }
}

/// Whether something is mounted on `dir`: it is on another device than the directory it is in.
async fn is_mount_point(dir: &Path) -> bool {
    let dir = dir.to_owned();
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    let check = spawn_blocking(move || {
        let parent = dir.parent()?;
        Some(device(&dir).ok()? != device(parent).ok()?)
    });
    check.await.ok().flatten().unwrap_or(false)
}

fn make_mount_point(dir: &Path) -> Result<()> {
    detach_stale(dir).map_err(|error| Error::Unavailable(with_causes(&error)))?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error).map_err(Error::io("create", dir)),
        _ => Ok(()),
    }
}

/// Removes an empty mount point. Never more than that: it might still have a tree mounted on it.
pub fn remove_directory(dir: &Path) {
    if let Err(error) = fs::remove_dir(dir)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(directory = %dir.display(), %error, "a mount point stays");
    }
}
