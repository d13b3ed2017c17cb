//! A node's store: indexes, devices and merged trees on disk, made once and shared by all images that use them.
mod devices;
mod files;
mod flight;
mod hot;
mod indexes;
mod lease;
mod loading;
#[cfg(test)]
mod power;
mod reclaim;
mod space;
mod trees;

use crate::{
    Beneath, Drivers, Keeper, LayerRef, LazyDevice, LazyError, LazyImage, MountError, MountOptions, Mounted,
    layer::LayerId,
    store::{
        flight::Flights,
        hot::HotStreams,
        indexes::IndexCache,
        lease::Leases,
        trees::{TreeCache, TreeRecipe},
    },
};
use clipper_device::{DeviceError, DeviceOptions, Devices, disk::LocalDisk};
use clipper_format::{
    Digest,
    erofs::{self, ErofsError, Image},
    index::{INDEX_MAX, Index, IndexError, PackError},
    merge::{self, MergeError},
    tree::Tree,
};
use clipper_registry::{Client, Reference, RegistryError, Repository};
pub(crate) use lease::Lease;
pub use loading::{LayerProgress, OpenLayers};
pub use space::{DiskUsage, LayerUsage};
use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{runtime::Handle, task::spawn_blocking, time::sleep};
pub(crate) use trees::Place;

/// What a store is opened with.
pub struct StoreOptions {
    /// Directory of the store, made if it is missing: `indexes/`, `devices/` and `trees/` lie in it.
    pub root: PathBuf,
    /// Speaks to registries.
    pub client: Client,
    /// How devices are filled.
    pub devices: DeviceOptions,
}

/// A node's indexes, devices and merged trees.
///
/// On disk:
///
/// ```text
/// ROOT/indexes/<hex>          an index blob as it came from the registry, verified whole whenever it is read
/// ROOT/devices/               the devices' bytes and presence, see `clipper_device::Devices`
/// ROOT/trees/<hex>.erofs      a merged tree and a trailer with its layers and a checksum
/// ```
///
/// Everything is keyed by digests. A device is keyed by the layer's digest *and* its span table: what a span must
/// decode to is said by the index, so two indexes that disagree about a layer must not share its bytes.
pub struct Store {
    client: Client,
    runtime: Handle,
    devices: Arc<Devices>,
    indexes: IndexCache,
    trees: TreeCache,
    flights: Flights,
    leases: Arc<Leases>,
    hot: HotStreams,
    drivers: Drivers,
}

/// What an image is made from: all that another process needs to make the same again.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Bottom first.
    pub(crate) layers: Vec<LayerRef>,
    pub(crate) place: Place,
}

/// Decoded indexes by digest.
type Indexes = HashMap<Digest, Arc<Index>>;

/// Why the store can't give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The local disk fails.
    #[error("{}: {doing}", path.display())]
    Disk {
        /// File or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// No repository gave the index.
    #[error("index {digest} can't be fetched from {repository}")]
    Fetch {
        /// The index.
        digest: Digest,
        /// The last repository that was asked.
        repository: String,
        /// What went wrong there.
        source: RegistryError,
    },
    /// A layer's reference names no repository and its index isn't cached.
    #[error("index {digest} is not cached and no repository is known that has it")]
    NoRepository {
        /// The index.
        digest: Digest,
    },
    /// The repository doesn't have the index.
    #[error("index {digest} is not in {repository}: convert the image again, or copy all of it, with its index")]
    NoIndex {
        /// The index.
        digest: Digest,
        /// Where it should be.
        repository: String,
    },
    /// The index is damaged, although it has the right digest.
    #[error("index {digest} is not valid: convert the image again")]
    Index {
        /// The index.
        digest: Digest,
        /// What is wrong.
        source: IndexError,
    },
    /// The index doesn't describe the layer.
    #[error("index {index} does not describe layer {layer}: convert the image again")]
    NoLayer {
        /// The index.
        index: Digest,
        /// The layer.
        layer: Digest,
    },
    /// The layer's own tree is damaged.
    #[error("index {index}: the tree of layer {layer} is not valid")]
    LayerTree {
        /// The index.
        index: Digest,
        /// The layer.
        layer: Digest,
        /// What is wrong.
        source: PackError,
    },
    /// The layers can't be merged into one tree.
    #[error("the layers' trees can't be merged")]
    Merge(#[from] MergeError),
    /// The merged tree can't be written as EROFS.
    #[error("the merged tree can't be written")]
    Write(#[source] ErofsError),
    /// The directory of devices can't be opened.
    #[error("{}: the devices can't be opened", path.display())]
    Devices {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: Box<DeviceError>,
    },
    /// A device can't be opened.
    #[error("the device of layer {layer} can't be opened")]
    Device {
        /// The layer.
        layer: Digest,
        /// What went wrong.
        source: Box<DeviceError>,
    },
    /// What is on the disk of the devices can't be told.
    #[error("the disk usage can't be told")]
    Usage(#[source] DeviceError),
    /// Tree and devices don't fit each other.
    #[error(transparent)]
    Image(#[from] LazyError),
    /// A worker thread panicked or was cancelled by a shutdown.
    #[error("the work was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl Store {
    /// Opens the store in `options.root`, made if it is missing. Never touches the network.
    ///
    /// # Errors
    /// If the directories can't be made or read.
    pub fn open(options: StoreOptions, runtime: Handle) -> Result<Arc<Self>, StoreError> {
        Self::open_with(options, runtime, None)
    }

    /// As [`Store::open`], with mounts that `keeper` keeps for the next process, which
    /// [takes them over](Store::take_over).
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_kept(options: StoreOptions, runtime: Handle, keeper: Arc<dyn Keeper>) -> Result<Arc<Self>, StoreError> {
        Self::open_with(options, runtime, Some(keeper))
    }

    /// From now on what is dropped is unmounted, also if the store was opened kept: no process is going to take it over.
    pub fn unmount_dropped(&self) {
        self.drivers.keeping().unmount_dropped();
    }

    fn open_with(
        options: StoreOptions,
        runtime: Handle,
        keeper: Option<Arc<dyn Keeper>>,
    ) -> Result<Arc<Self>, StoreError> {
        let StoreOptions { root, client, .. } = options;
        let indexes = IndexCache::open(LocalDisk, root.join("indexes"))?;
        let trees = TreeCache::open(LocalDisk, root.join("trees"))?;
        let devices = root.join("devices");
        let devices = Devices::open(devices.clone(), options.devices, runtime.clone())
            .map_err(|error| StoreError::Devices { path: devices, source: Box::new(error) })?;
        Ok(Arc::new(Self {
            client,
            drivers: Drivers::kept(root, runtime.clone(), keeper),
            runtime,
            devices,
            indexes,
            trees,
            flights: Flights::default(),
            leases: Arc::default(),
            hot: HotStreams::default(),
        }))
    }

    /// The index `digest`: from the disk, or else fetched from `repository`, verified and kept.
    /// `size` is the blob's size in bytes if the caller knows it from a descriptor; it saves a request.
    ///
    /// # Errors
    /// If it isn't cached and can't be fetched, isn't valid, or can't be kept.
    pub async fn index(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
    ) -> Result<Arc<Index>, StoreError> {
        let _guard = self.flights.enter(digest).await;
        if let Some(index) = self.cached_index(digest).await? {
            return Ok(index);
        }
        self.fetch_index(repository, digest, size).await
    }

    /// The lazy image of `layers`, bottom first: their trees merged, their devices ready. Fetches no layer data, and
    /// nothing at all if the indexes are cached.
    ///
    /// With `keep_whiteouts`, the tree is one to put above an ordinary overlay lower directory: whiteouts are kept as
    /// overlayfs writes them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn image(self: &Arc<Self>, layers: &[LayerRef], keep_whiteouts: bool) -> Result<LazyImage, StoreError> {
        self.image_at(layers, if keep_whiteouts { Place::Above } else { Place::Bottom }).await
    }

    /// As [`Store::image`] with whiteouts kept, for a tree to put above the directories `beneath`: directories that no
    /// layer described look as they do there.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn image_above(
        self: &Arc<Self>,
        layers: &[LayerRef],
        beneath: &Beneath,
    ) -> Result<LazyImage, StoreError> {
        self.image_at(layers, Place::Over(beneath.clone())).await
    }

    async fn image_at(self: &Arc<Self>, layers: &[LayerRef], place: Place) -> Result<LazyImage, StoreError> {
        self.image_of(&Origin { layers: layers.to_vec(), place }).await
    }

    /// The lazy image that was made from `origin` before, or in another process.
    pub(crate) async fn image_of(self: &Arc<Self>, origin: &Origin) -> Result<LazyImage, StoreError> {
        let Origin { layers, place } = origin;
        let recipe = TreeRecipe { layers: layers.iter().map(LayerRef::id).collect(), place: place.clone() };
        let lease = self.leases.take(recipe.layers.clone());
        let indexes = self.indexes_of(layers).await?;
        self.stream_hot(layers, &indexes).await;
        let devices = self.devices_of(layers.to_vec(), indexes.clone()).await?;
        let (tree, file) = self.tree(recipe, indexes).await?;
        let name = layers.last().map(LayerRef::image_name).unwrap_or_default();
        Ok(LazyImage::leased(name, tree, file, devices, lease, origin.clone())?)
    }

    /// Mounts `layers`, bottom first, read-only on `dir`. See [`Store::image`] and [`Mounted`].
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn mount(
        self: &Arc<Self>,
        layers: &[LayerRef],
        keep_whiteouts: bool,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Mounted, MountError> {
        let image = self.image(layers, keep_whiteouts).await?;
        Mounted::mount(image, dir, options, &self.drivers).await
    }

    /// Mounts `layers`, bottom first, read-only on `dir`, to be put above `beneath`. See [`Store::image_above`].
    ///
    /// # Errors
    /// See [`MountError`].
    pub async fn mount_above(
        self: &Arc<Self>,
        layers: &[LayerRef],
        beneath: &Beneath,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Mounted, MountError> {
        let image = self.image_above(layers, beneath).await?;
        Mounted::mount(image, dir, options, &self.drivers).await
    }

    /// The drivers that images of this store are mounted with.
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// Makes everything that was fetched so far durable. To be called before the process ends.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn flush(&self) -> Result<(), DeviceError> {
        self.devices.flush().await
    }

    /// The indexes that describe `layers`, each read once.
    async fn indexes_of(self: &Arc<Self>, layers: &[LayerRef]) -> Result<Indexes, StoreError> {
        let mut indexes = HashMap::new();
        for layer in layers {
            if let Entry::Vacant(place) = indexes.entry(layer.index) {
                place.insert(self.index_of(layer).await?);
            }
        }
        Ok(indexes)
    }

    async fn index_of(self: &Arc<Self>, layer: &LayerRef) -> Result<Arc<Index>, StoreError> {
        let digest = layer.index;
        let _guard = self.flights.enter(digest).await;
        if let Some(index) = self.cached_index(digest).await? {
            return Ok(index);
        }
        let mut failure = StoreError::NoRepository { digest };
        for reference in &layer.repositories {
            let repository = self.repository(digest, reference)?;
            match self.fetch_index(&repository, digest, None).await {
                Ok(index) => return Ok(index),
                Err(error) => {
                    tracing::debug!(%digest, %reference, %error, "no index here");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn cached_index(self: &Arc<Self>, digest: Digest) -> Result<Option<Arc<Index>>, StoreError> {
        let store = Arc::clone(self);
        let index = spawn_blocking(move || store.indexes.load(digest)).await??;
        self.forget_indexes_later();
        Ok(index)
    }

    /// Sees to it that decoded indexes don't stay in memory once nobody has asked for them for a while.
    fn forget_indexes_later(self: &Arc<Self>) {
        if self.indexes.must_be_swept() {
            let store = Arc::downgrade(self);
            self.runtime.spawn(async move {
                loop {
                    sleep(indexes::MEMORY).await;
                    if store.upgrade().is_none_or(|store| store.indexes.sweep()) {
                        break;
                    }
                }
            });
        }
    }

    async fn fetch_index(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
    ) -> Result<Arc<Index>, StoreError> {
        let at = || repository.name();
        let failed = |source| StoreError::Fetch { digest, repository: at(), source };
        let bytes = match size {
            Some(size) => repository.blob(digest, size).read_all(INDEX_MAX).await.map_err(failed)?,
            None => repository
                .read_blob(digest, INDEX_MAX)
                .await
                .map_err(failed)?
                .ok_or_else(|| StoreError::NoIndex { digest, repository: at() })?,
        };
        let store = Arc::clone(self);
        let index =
            spawn_blocking(move || store.with_room(bytes.len(), || store.indexes.store(digest, &bytes))).await??;
        self.forget_indexes_later();
        Ok(index)
    }

    /// The devices of `layers`, opened.
    async fn devices_of(
        self: &Arc<Self>,
        layers: Vec<LayerRef>,
        indexes: Indexes,
    ) -> Result<Vec<LazyDevice>, StoreError> {
        let store = Arc::clone(self);
        let open = move || {
            let mut devices = Vec::with_capacity(layers.len());
            for layer in &layers {
                let index = &indexes[&layer.index];
                let described = index.layer(&layer.layer);
                let described = described.ok_or(StoreError::NoLayer { index: layer.index, layer: layer.layer })?;
                let key = devices::key(described);
                // Before the device exists: reclaiming must know whose it is.
                store.leases.lock().device_keys.insert(layer.id(), key);
                let mut repositories = Vec::with_capacity(layer.repositories.len());
                for reference in &layer.repositories {
                    repositories.push(store.repository(layer.layer, reference)?);
                }
                let (checkpoints, image) = (index.checkpoints.as_ref(), layer.image_name());
                let device = devices::open(&store.devices, key, described, checkpoints, &repositories, &image);
                let device =
                    device.map_err(|error| StoreError::Device { layer: layer.layer, source: Box::new(error) })?;
                devices.push(LazyDevice { layer: layer.layer, device });
            }
            Ok(devices)
        };
        spawn_blocking(open).await?
    }

    fn repository(&self, digest: Digest, reference: &Reference) -> Result<Repository, StoreError> {
        let opened = self.client.repository(reference);
        opened.map_err(|source| StoreError::Fetch { digest, repository: reference.to_string(), source })
    }

    /// The merged tree of `recipe` and the file that begins with it: from the disk, or else made from the layers' trees in
    /// `indexes` and kept.
    async fn tree(
        self: &Arc<Self>,
        recipe: TreeRecipe,
        indexes: Indexes,
    ) -> Result<(Image, Option<PathBuf>), StoreError> {
        let _guard = self.flights.enter(recipe.key()).await;
        let store = Arc::clone(self);
        spawn_blocking(move || {
            if let Some(tree) = store.trees.load(&recipe)? {
                return Ok((tree, Some(store.trees.file(&recipe))));
            }
            let mut trees = Vec::with_capacity(recipe.layers.len());
            for LayerId { index, layer } in &recipe.layers {
                trees.push(layer_tree(&indexes[index], *index, *layer)?);
            }
            // What the indexes hold isn't needed any more; the merge needs the room.
            drop(indexes);
            let merged = match &recipe.place {
                Place::Bottom => merge::merge(trees, false)?,
                Place::Above => merge::merge(trees, true)?,
                Place::Over(beneath) => merge::merge_above(trees, &mut |path| beneath.look(path))?,
            };
            let bytes = erofs::write(&merged).map_err(StoreError::Write)?;
            drop(merged);
            let file = match store.with_room(bytes.len(), || store.trees.store(&recipe, &bytes)) {
                Ok(()) => Some(store.trees.file(&recipe)),
                Err(error) => {
                    // A full disk must not keep a container from starting: the tree is made again next time.
                    tracing::warn!(%error, "a merged tree can't be kept");
                    None
                }
            };
            Ok((Image::parse(bytes.into()).map_err(StoreError::Write)?, file))
        })
        .await?
    }
}

fn layer_tree(index: &Index, digest: Digest, layer: Digest) -> Result<Tree, StoreError> {
    let described = index.layer(&layer).ok_or(StoreError::NoLayer { index: digest, layer })?;
    described.tree.unpack().map_err(|source| StoreError::LayerTree { index: digest, layer, source })
}
