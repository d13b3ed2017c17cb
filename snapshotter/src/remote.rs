//! Remote layers: which ones can be mounted instead of unpacked, and what is kept of them while records speak of them.
use crate::{
    chain::{RemoteRun, tree_name},
    containerd::ContentStore,
    error::{Result, with_causes},
    hints::Hints,
    records::{Record, RemoteLayer},
    traces::{Traces, WantedTrace},
    trees::{MountPlace, Trees, layer_ref},
    wanted::Wanted,
};
use clipper_format::{Digest, index::Index};
use clipper_mount::{ImageWatch, LayerRef, MountOptions, Mounted, Store};
use clipper_registry::{Client, Reference};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex as SyncMutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;
use tracing::Instrument;

/// Longest wait for an index before a layer is downloaded whole instead.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long an index that could not be had isn't asked for again: the layers of an image are prepared one after the
/// other, and must not wait for the same dead registry each.
const MEMORY: Duration = Duration::from_secs(30);

/// An index, and the repositories that may have it.
type Question = (Digest, Vec<Reference>);

/// Everything that is fetched lazily.
pub struct Remote {
    client: Client,
    store: Arc<Store>,
    trees: Trees,
    traces: Traces,
    containerd: ContentStore,
    hints: Hints,
    /// Indexes that could not be had lately, by the repositories that were asked: when, and why.
    refused: SyncMutex<HashMap<Question, (Instant, String)>>,
    /// Layers that are being prepared and have no record yet, by index and layer: how often.
    pins: Arc<SyncMutex<HashMap<(Digest, Digest), usize>>>,
    /// Held while a pin is set, and while what is unused is deleted.
    gate: Mutex<()>,
    /// Held while the store is told what running containers need: the last to tell is the last to have looked.
    telling: Mutex<()>,
}

/// Why a layer of an accelerated image is downloaded whole nevertheless.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("nothing tells which repository the image came from; use `clipper pull`, or snapshot annotations")]
    NoRepository,
    #[error("asking containerd which repository the image came from")]
    Lookup(#[from] crate::containerd::LookupError),
    #[error("{} s ago: {why}", since.as_secs())]
    Refused { since: Duration, why: String },
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
    /// Wires a store below `root` to the mounts below it, of which `taken` were taken over from an earlier daemon.
    pub fn open(
        root: &Path,
        client: Client,
        store: Arc<Store>,
        containerd: ContentStore,
        hints: Hints,
        options: MountOptions,
        taken: Vec<Mounted>,
    ) -> Result<Self> {
        let trees = Trees::open(root.join("mounts"), Arc::clone(&store), options, taken)?;
        let (refused, pins) = (SyncMutex::default(), Arc::default());
        let (gate, telling) = (Mutex::default(), Mutex::default());
        let traces = Traces::default();
        Ok(Self { client, store, trees, traces, containerd, hints, refused, pins, gate, telling })
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
            image: wanted.image.as_ref().map(ToString::to_string),
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
        let below = parent.and_then(|parent| parent.remote.as_ref()).filter(|below| below.index == wanted.index);
        let candidates = match (&wanted.image, below, namespace) {
            (Some(image), _, _) => vec![repository_of(image)],
            // The layer below came from somewhere: this one did, too.
            (None, Some(below), _) => layer_ref(below).repositories,
            (None, None, namespace) => {
                let hosts = self.client.configured_hosts();
                let told = match namespace {
                    Some(namespace) => self.containerd.repositories(namespace, &wanted.layer, hosts).await,
                    None => Ok(Vec::new()),
                };
                match (told, &wanted.hint) {
                    (Ok(told), _) if !told.is_empty() => told,
                    (told, Some(hint)) => self.hints.follow(hint).map_or(told, |repository| Ok(vec![repository]))?,
                    (told, None) => told?,
                }
            }
        };
        let (index, repositories) = self.index(wanted.index, candidates).await?;
        let layer = index.layer(&wanted.layer).ok_or(Unfit::NotInIndex)?;
        // Only a parent whose chain ID nobody told, such as a snapshot made by hand, leaves nothing to compare.
        let found = match parent {
            None => Some(layer.diff_id),
            Some(parent) => parent.chain().map(|below| Digest::of(format!("{below} {}", layer.diff_id).as_bytes())),
        };
        if let Some(found) = found.filter(|found| *found != wanted.chain) {
            return Err(Unfit::WrongChain { expected: wanted.chain, found });
        }
        // Trees above other layers are merged with a look at those.
        if parent.is_none() {
            let image = wanted.image.as_ref().map(|image| image.to_string().into());
            self.merge_early(wanted.index, &index, &repositories, image);
        }
        Ok(repositories.iter().map(ToString::to_string).collect())
    }

    /// Merges the trees of the image's layers while containerd still pulls it: the container that it is pulled for is
    /// going to want the result at once.
    fn merge_early(&self, digest: Digest, index: &Index, repositories: &[Reference], image: Option<Arc<str>>) {
        let layers: Vec<_> = index
            .layers
            .iter()
            .map(|layer| LayerRef {
                index: digest,
                layer: layer.digest,
                repositories: repositories.to_vec(),
                image: image.clone(),
            })
            .collect();
        let store = Arc::clone(&self.store);
        let merge = async move {
            if let Err(error) = store.image(&layers, false).await {
                // Who needs it tries again and tells.
                tracing::debug!(index = %digest, error = with_causes(&error), "the image can't be prepared early");
            }
        };
        tokio::spawn(merge.in_current_span());
    }

    /// The index, and those of `candidates` that may have it: not the ones that were asked in vain.
    async fn index(
        &self,
        digest: Digest,
        candidates: Vec<Reference>,
    ) -> std::result::Result<(Arc<Index>, Vec<Reference>), Unfit> {
        let question = (digest, candidates);
        if let Some((at, why)) = self.refused().get(&question)
            && at.elapsed() < MEMORY
        {
            return Err(Unfit::Refused { since: at.elapsed(), why: why.clone() });
        }
        let found = tokio::time::timeout(PATIENCE, self.fetch(digest, &question.1)).await;
        let found = found.unwrap_or(Err(Unfit::Timeout));
        let mut refused = self.refused();
        refused.retain(|_, (at, _)| at.elapsed() < MEMORY);
        match found {
            Ok((index, failed)) => Ok((index, question.1.into_iter().skip(failed).collect())),
            Err(error) => {
                // Without a repository nobody was asked.
                if !question.1.is_empty() {
                    refused.insert(question, (Instant::now(), with_causes(&error)));
                }
                Err(error)
            }
        }
    }

    /// The index from the first of `repositories` that has it, and how many failed before.
    async fn fetch(
        &self,
        digest: Digest,
        repositories: &[Reference],
    ) -> std::result::Result<(Arc<Index>, usize), Unfit> {
        let mut failure = Unfit::NoRepository;
        for (failed, reference) in repositories.iter().enumerate() {
            let repository = self.client.repository(reference)?;
            match self.store.index(&repository, digest, None).await {
                Ok(index) => return Ok((index, failed)),
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

    /// As [`mount`](Self::mount), for the snapshot `key` alone, whose reads are recorded as `wanted`.
    pub async fn mount_recorded(
        &self,
        key: &str,
        wanted: WantedTrace,
        run: &RemoteRun<'_>,
        lowers: &[PathBuf],
    ) -> Result<PathBuf> {
        self.traces.start(key, wanted, &self.trees, MountPlace { run, lowers }).await
    }

    /// The directory on which the merged tree called `tree` is mounted when it is in use.
    pub fn mount_point(&self, tree: Digest) -> PathBuf {
        self.trees.dir_of(tree)
    }

    /// The mounted images, by the first digits of their trees' names.
    pub fn mounted(&self) -> Vec<(String, ImageWatch)> {
        self.trees.mounted()
    }

    /// Recordings under way.
    pub fn traces(&self) -> &Traces {
        &self.traces
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
        let pinned =
            pinned.into_iter().map(|(index, layer)| LayerRef { index, layer, repositories: Vec::new(), image: None });
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

    /// Waits until [`collect`](Self::collect) can free what it had to leave the last time, because the kernel or somebody
    /// else had an image in use that no record speaks of any more.
    pub fn collectable(&self) -> impl Future<Output = ()> + Send + use<> {
        let store = Arc::clone(&self.store);
        async move { store.reclaimable().await }
    }

    /// Keeps what running containers need in the cache rather than the rest. `in_use` reads which layers these are.
    pub async fn prefer(&self, in_use: impl AsyncFnOnce() -> Result<Vec<LayerRef>>) {
        let _telling = self.telling.lock().await;
        let told = match in_use().await {
            Ok(layers) => self.store.pin(&layers).await.map_err(|error| with_causes(&error)),
            Err(error) => Err(with_causes(&error)),
        };
        if let Err(error) = told {
            tracing::warn!(error, "the cache doesn't know which layers are in use");
        }
    }

    async fn pin(&self, wanted: &Wanted) -> Pin {
        let key = (wanted.index, wanted.layer);
        let _gate = self.gate.lock().await;
        *self.pinned().entry(key).or_default() += 1;
        Pin { pins: Arc::clone(&self.pins), key }
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Question, (Instant, String)>> {
        // Nothing that could panic happens under this lock.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
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
