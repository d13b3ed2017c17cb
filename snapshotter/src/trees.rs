//! Mounted trees: one mount per merged tree, shared by all snapshots that lie on it.
use crate::{
    chain::RemoteRun,
    error::{Error, Result, with_causes},
    records::RemoteLayer,
};
use clipper_format::Digest;
use clipper_mount::{Beneath, Driver, ImageWatch, LayerRef, MountOptions, Mounted, Store, detach_stale};
use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
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
use tracing::Instrument;

/// Hex digits of a tree's name in its path: paths go into mount options, which have to fit a page.
const NAME_DIGITS: usize = 16;

/// One tree: mounted, or about to be.
type Slot = Arc<Mutex<Option<Mounted>>>;

/// The mounts below `ROOT/mounts`.
pub struct Trees {
    dir: PathBuf,
    store: Arc<Store>,
    options: MountOptions,
    /// By the names of the directories.
    slots: SyncMutex<HashMap<String, Slot>>,
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
    /// Opens or makes `dir`, where `taken` were taken over from an earlier daemon, and detaches what else one left mounted
    /// there: nothing answers there any more.
    pub fn open(dir: PathBuf, store: Arc<Store>, options: MountOptions, taken: Vec<Mounted>) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        let mut slots = HashMap::new();
        for mounted in taken {
            match mounted.dir().file_name().and_then(OsStr::to_str) {
                Some(name) if is_tree_name(name) => {
                    slots.insert(name.to_owned(), Arc::new(Mutex::new(Some(mounted))));
                }
                // A recording, which ends with the daemon: it goes once its container is gone.
                _ => mounted.end(),
            }
        }
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| slots.contains_key(name)) {
                continue;
            }
            let path = entry.path();
            match detach_stale(&path) {
                Ok(true) => tracing::info!(mount = %path.display(), "detached what an earlier daemon left"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error = with_causes(&error), "a stale mount stays"),
            }
            remove_directory(&path);
        }
        Ok(Self { dir, store, options, slots: SyncMutex::new(slots), recorded: AtomicUsize::new(0) })
    }

    /// The directory on which the tree of `run` is mounted; mounts it if it isn't. Below it lie `lowers`, topmost first.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if an index is missing and can't be fetched, or the kernel refuses.
    pub async fn mount(&self, run: &RemoteRun<'_>, lowers: &[PathBuf]) -> Result<PathBuf> {
        let name = tree_name(&run.tree);
        let dir = self.dir.join(&name);
        let slot = Arc::clone(self.slots().entry(name).or_default());
        // Whoever needs the same tree waits here; others don't.
        let mut slot = slot.lock().await;
        if let Some(mounted) = slot.as_ref() {
            if mounted.is_live() && is_mount_point(&dir).await {
                return Ok(dir);
            }
            tracing::warn!(mount = %dir.display(), "somebody unmounted a tree: mounting it again");
            if let Some(mounted) = slot.take() {
                // A panic while unmounting is reported where it happens.
                let _ = spawn_blocking(move || mounted.end()).await;
            }
        }
        let path = dir.clone();
        spawn_blocking(move || make_mount_point(&path)).await.map_err(|_| Error::Interrupted)??;
        let mounted = self.mount_on(&MountPlace { run, lowers }, &dir, &self.options).await?;
        *slot = Some(mounted);
        Ok(dir)
    }

    /// Mounts the tree of a run once more, for what is read through this mount alone: by `driver`, or by the node's.
    ///
    /// # Errors
    /// As [`mount`](Self::mount).
    pub async fn mount_recorded(&self, place: MountPlace<'_>, driver: Option<Driver>) -> Result<Mounted> {
        let number = self.recorded.fetch_add(1, Ordering::Relaxed);
        let dir = self.dir.join(format!("recorded-{number}"));
        let path = dir.clone();
        spawn_blocking(move || make_mount_point(&path)).await.map_err(|_| Error::Interrupted)??;
        let options = MountOptions { driver: driver.unwrap_or(self.options.driver), ..self.options.clone() };
        self.mount_on(&place, &dir, &options).await
    }

    async fn mount_on(&self, place: &MountPlace<'_>, dir: &Path, options: &MountOptions) -> Result<Mounted> {
        let layers: Vec<_> = place.run.layers.iter().map(|layer| layer_ref(layer)).collect();
        let image = layers.last().map(LayerRef::image_name).unwrap_or_default();
        let about = tracing::error_span!("mount", %image, layer = layers.last().map(|layer| display(layer.layer)));
        let mounted = match place.run.above {
            None => self.store.mount(&layers, false, dir, options).instrument(about.clone()).await,
            Some(snapshot) => {
                // A snapshot's number is never given to another, and what lies below it never changes.
                let id = Digest::of(format!("snapshot {snapshot}").as_bytes());
                let beneath = Beneath { id, dirs: place.lowers.to_vec() };
                self.store.mount_above(&layers, &beneath, dir, options).instrument(about.clone()).await
            }
        };
        let mounted = mounted.map_err(|error| {
            Error::Unavailable(format!("mount an image at {}: {}", dir.display(), with_causes(&error)))
        })?;
        let _about = about.enter();
        tracing::info!(mount = %dir.display(), layers = layers.len(), "mounted");
        Ok(mounted)
    }

    /// What is mounted, by the first digits of the trees' names; what is being mounted just now isn't yet.
    pub fn mounted(&self) -> Vec<(String, ImageWatch)> {
        let watch = |(tree, slot): (&String, &Slot)| {
            let slot = slot.try_lock().ok()?;
            let mounted = slot.as_ref().filter(|mounted| mounted.is_live())?;
            Some((tree.clone(), mounted.image().watch()))
        };
        self.slots().iter().filter_map(watch).collect()
    }

    /// Unmounts every tree that isn't `in_use`.
    pub async fn retain(&self, in_use: &HashSet<Digest>) {
        let in_use: HashSet<_> = in_use.iter().map(tree_name).collect();
        let slots = self.slots().clone();
        for (name, slot) in slots.into_iter().filter(|(name, _)| !in_use.contains(name)) {
            let mut slot = slot.lock().await;
            if let Some(mounted) = slot.take() {
                let dir = self.dir.join(&name);
                // A panic while unmounting is reported where it happens.
                let _ = spawn_blocking(move || {
                    mounted.end();
                    remove_directory(&dir);
                    tracing::info!(mount = %dir.display(), "unmounted");
                })
                .await;
            }
            // Somebody may have asked for it again meanwhile; the slot then stays theirs.
            let mut slots = self.slots();
            if slots.get(&name).is_some_and(|slot| Arc::strong_count(slot) <= 2) {
                slots.remove(&name);
            }
        }
    }

    /// The directory that `tree` is mounted on if it is in use.
    pub fn dir_of(&self, tree: Digest) -> PathBuf {
        self.dir.join(tree_name(&tree))
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        // Nothing that could panic happens under this lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a tree's directory.
fn tree_name(tree: &Digest) -> String {
    tree.hex()[..NAME_DIGITS].to_owned()
}

fn is_tree_name(name: &str) -> bool {
    name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// How the store calls a recorded layer.
pub fn layer_ref(layer: &RemoteLayer) -> LayerRef {
    let repositories = layer.repositories.iter().filter_map(|text| text.parse().ok()).collect();
    let image = layer.image.as_deref().map(Arc::from);
    LayerRef { index: layer.index, layer: layer.layer, repositories, image }
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

/// Makes a directory to mount on, and unmounts what an earlier process left there.
pub fn make_mount_point(dir: &Path) -> Result<()> {
    detach_stale(dir).map_err(|error| Error::Unavailable(with_causes(&error)))?;
    make_directory(dir)
}

/// Makes a directory for root alone, if it is missing.
pub fn make_directory(dir: &Path) -> Result<()> {
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
