//! Remote layers: which ones can be mounted instead of unpacked, and what is kept of them while records speak of them.
use crate::{
    chain::{RemoteRun, tree_name},
    containerd::ContentStore,
    error::{Result, with_causes},
    records::{Record, RemoteLayer},
    trees::{Trees, layer_ref},
    wanted::Wanted,
};
use clipper_format::{Digest, index::Index};
use clipper_mount::{LayerRef, MountOptions, Store};
use clipper_registry::{Client, Reference};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Mutex;

/// Longest wait for an index before a layer is downloaded whole instead.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything that is fetched lazily.
pub struct Remote {
    client: Client,
    store: Arc<Store>,
    trees: Trees,
    containerd: ContentStore,
    /// Layers that are being prepared and have no record yet, by index and layer: how often.
    pins: Arc<SyncMutex<HashMap<(Digest, Digest), usize>>>,
    /// Held while a pin is set, and while what is unused is deleted.
    gate: Mutex<()>,
}

/// Why a layer of an accelerated image is downloaded whole nevertheless.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("nothing tells which repository the image came from; use `clipper pull`, or snapshot annotations")]
    NoRepository,
    #[error("asking containerd which repository the image came from")]
    Lookup(#[from] crate::containerd::LookupError),
    #[error("the index was not there within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error(transparent)]
    Registry(#[from] clipper_registry::RegistryError),
    #[error(transparent)]
    Store(#[from] clipper_mount::StoreError),
    #[error("the index does not describe this layer: the image was converted again, or its labels are wrong")]
    NotInIndex,
    #[error("by the index the layer has chain ID {found}, but containerd expects {expected}")]
    WrongChain { expected: Digest, found: Digest },
}

impl Remote {
    /// Wires a store below `root` to the mounts below it.
    pub fn open(
        root: &Path,
        client: Client,
        store: Arc<Store>,
        containerd: ContentStore,
        options: MountOptions,
    ) -> Result<Self> {
        let trees = Trees::open(root.join("mounts"), Arc::clone(&store), options)?;
        Ok(Self { client, store, trees, containerd, pins: Arc::default(), gate: Mutex::default() })
    }

    /// What to record for a layer on `parent` that needs no unpacking. `None` if it does, which the log explains.
    /// As long as the answer lives, what it speaks of isn't deleted.
    pub async fn adopt(&self, wanted: &Wanted, parent: Option<&Record>, namespace: Option<&str>) -> Option<Adopted> {
        let pin = self.pin(wanted).await;
        let repositories = match self.check(wanted, parent, namespace).await {
            Ok(repositories) => repositories,
            Err(error) => {
                let (layer, index) = (wanted.layer, wanted.index);
                let image = wanted.image.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
                let error = with_causes(&error);
                tracing::warn!(%layer, %index, image, error, "containerd has to download a layer whole");
                return None;
            }
        };
        let layer = RemoteLayer {
            index: wanted.index,
            layer: wanted.layer,
            chain: wanted.chain,
            tree: tree_name(&wanted.layer, parent),
            repositories,
        };
        Some(Adopted { layer, _pin: pin })
    }

    /// The repositories that hold `wanted`, once its index is at hand and says what containerd says.
    async fn check(
        &self,
        wanted: &Wanted,
        parent: Option<&Record>,
        namespace: Option<&str>,
    ) -> std::result::Result<Vec<String>, Unfit> {
        let repositories = match (&wanted.image, namespace) {
            (Some(image), _) => vec![repository_of(image)],
            (None, Some(namespace)) => self.containerd.repositories(namespace, &wanted.layer).await?,
            (None, None) => Vec::new(),
        };
        let fetch = self.index(&repositories, wanted.index);
        let index = tokio::time::timeout(PATIENCE, fetch).await.map_err(|_| Unfit::Timeout)??;
        let layer = index.layer(&wanted.layer).ok_or(Unfit::NotInIndex)?;
        // Only a parent whose chain ID nobody told, such as a snapshot made by hand, leaves nothing to compare.
        let found = match parent {
            None => Some(layer.diff_id),
            Some(parent) => parent.chain().map(|below| Digest::of(format!("{below} {}", layer.diff_id).as_bytes())),
        };
        match found {
            Some(found) if found != wanted.chain => Err(Unfit::WrongChain { expected: wanted.chain, found }),
            _ => Ok(repositories.iter().map(ToString::to_string).collect()),
        }
    }

    /// The index, from the first of `repositories` that has it.
    async fn index(&self, repositories: &[Reference], digest: Digest) -> std::result::Result<Arc<Index>, Unfit> {
        let mut failure = Unfit::NoRepository;
        for reference in repositories {
            let repository = self.client.repository(reference)?;
            match self.store.index(&repository, digest, None).await {
                Ok(index) => return Ok(index),
                Err(error) => failure = error.into(),
            }
        }
        Err(failure)
    }

    /// The directory on which the merged tree of `run` is mounted; mounts it if it isn't. Below it lie `lowers`,
    /// topmost first.
    pub async fn mount(&self, run: &RemoteRun<'_>, lowers: &[PathBuf]) -> Result<PathBuf> {
        self.trees.mount(run, lowers).await
    }

    /// Bytes of `layer` that are on disk.
    pub async fn cached(&self, layer: &RemoteLayer) -> u64 {
        match self.store.usage(&layer_ref(layer)).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(layer = %layer.layer, error = with_causes(&error), "its usage is unknown");
                0
            }
        }
    }

    /// Unmounts trees and deletes devices and indexes that no record speaks of and nobody is preparing. `records`
    /// reads the records there are.
    pub async fn collect(&self, records: impl AsyncFnOnce() -> Result<Vec<RemoteLayer>>) -> Result<()> {
        // Whoever wants to prepare one of them now has to wait, and then finds it gone.
        let _gate = self.gate.lock().await;
        let pinned: Vec<_> = self.pinned().keys().copied().collect();
        let recorded = records().await?;
        self.trees.retain(&recorded.iter().map(|layer| layer.tree).collect()).await;
        let pinned = pinned.into_iter().map(|(index, layer)| LayerRef { index, layer, repositories: Vec::new() });
        let in_use: Vec<_> = recorded.iter().map(layer_ref).chain(pinned).collect();
        match self.store.retain(&in_use).await {
            Ok(0) => {}
            Ok(freed) => tracing::info!(freed, "deleted cached data that no snapshot needs"),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "unused cached data stays until the next cleanup");
            }
        }
        Ok(())
    }

    async fn pin(&self, wanted: &Wanted) -> Pin {
        let key = (wanted.index, wanted.layer);
        let _gate = self.gate.lock().await;
        *self.pinned().entry(key).or_default() += 1;
        Pin { pins: Arc::clone(&self.pins), key }
    }

    fn pinned(&self) -> MutexGuard<'_, HashMap<(Digest, Digest), usize>> {
        // Nothing that could panic happens under this lock.
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer that needs no unpacking, kept from being deleted until it is recorded.
pub struct Adopted {
    /// What to record.
    pub layer: RemoteLayer,
    _pin: Pin,
}

/// Keeps an index and a layer from being deleted.
struct Pin {
    pins: Arc<SyncMutex<HashMap<(Digest, Digest), usize>>>,
    key: (Digest, Digest),
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.key);
            }
        }
    }
}

/// The repository of an image, without the tag or digest that chose the image in it.
pub fn repository_of(image: &Reference) -> Reference {
    let mut repository = image.clone();
    match &mut repository {
        Reference::Registry(r) => (r.tag, r.digest) = (None, None),
        Reference::Layout(r) => (r.tag, r.digest) = (None, None),
    }
    repository
}
