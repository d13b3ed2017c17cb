//! Ordinary layers below converted ones: which ones are unpacked here instead of by containerd, which downloads every
//! layer above the first one that it has to unpack itself.
use crate::{
    containerd::ContentStore,
    error::{Error, Result, with_causes},
    remote::repository_of,
    snapshot::{LABEL_SNAPSHOT_REF, Labels},
    unpack::{Ground, UnpackError, Unpacked, unpack},
    wanted::LABEL_IMAGE_REF,
};
use clipper_format::{Digest, index::ANNOTATION_INDEX};
use clipper_registry::{
    Client, MANIFEST_MAX, Reference, RegistryError, Selector,
    image::digest_of,
    media::{Compression, layer_compression},
    oci_spec::image::ImageManifest,
};
use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex as SyncMutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, OwnedMutexGuard, Semaphore};

/// Labels with the digests of a layer and of the manifest of the image it is pulled for; set where the image's
/// reference is (containerd, `pkg/snapshotters/annotations.go`).
const LABEL_LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const LABEL_MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Longest wait for a manifest. containerd has just fetched it itself, and every wholly ordinary image waits for it, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an image of which something could not be had is left to containerd: its layers are prepared one after the
/// other, and must not wait for the same dead registry each.
const MEMORY: Duration = Duration::from_secs(30);
/// How long manifests are kept, and how many: the time in which an image's layers are prepared.
const MANIFEST_MEMORY: Duration = Duration::from_secs(60);
const MANIFESTS_MAX: usize = 32;
/// Layers unpacked at a time; each takes a thread while it is downloaded.
const UNPACKING_MAX: usize = 6;

/// An ordinary layer that containerd is about to unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    chain: Digest,
    layer: Digest,
    manifest: Digest,
    repository: Reference,
}

impl Candidate {
    /// What `labels` say; nothing if the layer is a converted one, or if they don't tell which image it is of.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        if labels.contains_key(ANNOTATION_INDEX) {
            return None;
        }
        let digest = |key: &str| labels.get(key)?.parse().ok();
        let image: Reference = labels.get(LABEL_IMAGE_REF)?.parse().ok()?;
        Some(Self {
            chain: digest(LABEL_SNAPSHOT_REF)?,
            layer: digest(LABEL_LAYER_DIGEST)?,
            manifest: digest(LABEL_MANIFEST_DIGEST)?,
            repository: repository_of(&image),
        })
    }
}

/// A layer as a manifest lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    digest: Digest,
    size: u64,
    compression: Option<Compression>,
    /// It can be mounted instead of unpacked.
    converted: bool,
}

/// Why a layer is left to containerd.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("the image's manifest was not there within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("the image's manifest can't be understood")]
    Manifest(#[from] serde_json::Error),
    #[error("a descriptor in the image's manifest: {0}")]
    Descriptor(clipper_registry::ErrorKind),
    #[error("its compression is none that is unpacked here")]
    Compression,
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

/// An image, and where it was pulled from.
type Question = (Digest, Reference);
/// The layers of images, bottom first, by the digests of their manifests, and when they were read.
type Manifests = HashMap<Digest, (Instant, Arc<Vec<Listed>>)>;

/// Everything that is unpacked here.
pub struct Ordinary {
    client: Client,
    containerd: ContentStore,
    /// Where layers are until they are whole.
    dir: PathBuf,
    places: AtomicU64,
    running: Semaphore,
    manifests: SyncMutex<Manifests>,
    /// Images of which something could not be had lately: when, and why.
    refused: SyncMutex<HashMap<Question, (Instant, String)>>,
    /// Layers under way by the names of their snapshots.
    doors: SyncMutex<HashMap<String, Weak<Mutex<()>>>>,
}

impl Ordinary {
    /// Makes `ROOT/unpacking`, and deletes what an earlier life left there half done.
    pub fn open(root: &Path, client: Client, containerd: ContentStore) -> Result<Self> {
        let dir = root.join("unpacking");
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("delete", &dir)(error)),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        let (places, running) = (AtomicU64::new(0), Semaphore::new(UNPACKING_MAX));
        let (manifests, refused, doors) = Default::default();
        Ok(Self { client, containerd, dir, places, running, manifests, refused, doors })
    }

    /// The layer as its image, pulled in containerd's namespace `namespace`, lists it, if a converted one lies above it.
    /// All others are containerd's business.
    pub async fn below_converted(&self, candidate: &Candidate, namespace: Option<&str>) -> Option<Listed> {
        let question = (candidate.manifest, candidate.repository.clone());
        if let Some((at, why)) = self.refused().get(&question)
            && at.elapsed() < MEMORY
        {
            let (layer, since) = (candidate.layer, at.elapsed().as_secs());
            tracing::debug!(%layer, why, since, "a layer is left to containerd as those before it");
            return None;
        }
        let layers = match self.layers(&question, namespace).await {
            Ok(layers) => layers,
            Err(error) => {
                let (manifest, image, error) = (candidate.manifest, &candidate.repository, with_causes(&error));
                tracing::info!(%manifest, %image, error, "ordinary layers are left to containerd");
                self.refuse(question, error);
                return None;
            }
        };
        // A layer may be there twice, mostly an empty one. Then it's no matter which of them this is.
        let at = layers.iter().position(|listed| listed.digest == candidate.layer)?;
        let converted = layers[at + 1..].iter().any(|above| above.converted);
        converted.then(|| layers[at].clone())
    }

    /// Waits until nobody else works on the layer that becomes the snapshot `name`; the guard keeps others out.
    pub async fn enter(&self, name: &str) -> OwnedMutexGuard<()> {
        let door = {
            // Nothing that could panic happens under this lock.
            let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
            doors.retain(|_, door| door.strong_count() > 0);
            let door = doors.get(name).and_then(Weak::upgrade).unwrap_or_default();
            doors.insert(name.to_owned(), Arc::downgrade(&door));
            door
        };
        door.lock_owned().await
    }

    /// Downloads and unpacks a layer upon one with chain ID `below`, whose directories are `directories`, topmost first;
    /// see [`Ground`]. `None` if that fails, which the log explains.
    pub async fn unpack(
        &self,
        candidate: &Candidate,
        listed: &Listed,
        below: Option<Option<Digest>>,
        directories: Vec<PathBuf>,
    ) -> Option<Unpacked> {
        let (layer, image) = (listed.digest, &candidate.repository);
        let ground = Ground { chain: candidate.chain, below, directories };
        match self.try_unpack(candidate, listed, &ground).await {
            Ok(unpacked) => {
                tracing::info!(%layer, %image, bytes = unpacked.usage.size, "unpacked a layer below converted ones");
                Some(unpacked)
            }
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(%layer, %image, error, "containerd has to download a layer and all above it");
                self.refuse((candidate.manifest, candidate.repository.clone()), error);
                None
            }
        }
    }

    async fn try_unpack(
        &self,
        candidate: &Candidate,
        listed: &Listed,
        ground: &Ground,
    ) -> std::result::Result<Unpacked, Unfit> {
        if !matches!(listed.compression, Some(Compression::None | Compression::Gzip)) {
            return Err(Unfit::Compression);
        }
        // Never closed.
        let _place = self.running.acquire().await;
        let blob = self.client.repository(&candidate.repository)?.blob(listed.digest, listed.size);
        let dir = self.dir.join(self.places.fetch_add(1, Ordering::Relaxed).to_string());
        Ok(unpack(&blob, ground, &dir).await?)
    }

    /// The layers of an image, bottom first.
    async fn layers(
        &self,
        question: &Question,
        namespace: Option<&str>,
    ) -> std::result::Result<Arc<Vec<Listed>>, Unfit> {
        if let Some((_, layers)) = self.manifests().get(&question.0).filter(|(at, _)| at.elapsed() < MANIFEST_MEMORY) {
            return Ok(Arc::clone(layers));
        }
        let fetched = tokio::time::timeout(PATIENCE, self.fetch(question, namespace)).await;
        let layers = Arc::new(fetched.unwrap_or(Err(Unfit::Timeout))?);
        let mut manifests = self.manifests();
        manifests.retain(|_, (at, _)| at.elapsed() < MANIFEST_MEMORY);
        if manifests.len() >= MANIFESTS_MAX {
            let oldest = manifests.iter().min_by_key(|(_, (at, _))| *at).map(|(digest, _)| *digest);
            oldest.and_then(|oldest| manifests.remove(&oldest));
        }
        manifests.insert(question.0, (Instant::now(), Arc::clone(&layers)));
        Ok(layers)
    }

    async fn fetch(
        &self,
        (digest, repository): &Question,
        namespace: Option<&str>,
    ) -> std::result::Result<Vec<Listed>, Unfit> {
        let manifest: ImageManifest = match self.pulled(*digest, namespace).await {
            Some(bytes) => serde_json::from_slice(&bytes)?,
            None => {
                let manifest = self.client.repository(repository)?.manifest(&Selector::Digest(*digest)).await?;
                serde_json::from_slice(&manifest.bytes)?
            }
        };
        let listed = manifest.layers().iter().map(|layer| {
            Ok(Listed {
                digest: digest_of(layer).map_err(Unfit::Descriptor)?,
                size: layer.size(),
                compression: layer_compression(layer.media_type().as_ref()),
                converted: layer.annotations().as_ref().is_some_and(|all| all.contains_key(ANNOTATION_INDEX)),
            })
        });
        listed.collect()
    }

    /// A manifest from containerd, which has it before it prepares the first layer: nothing of an ordinary image has to
    /// be asked of its registry, to which perhaps only containerd has the key.
    async fn pulled(&self, digest: Digest, namespace: Option<&str>) -> Option<Vec<u8>> {
        let read = self.containerd.read(namespace?, digest, MANIFEST_MAX).await;
        read.inspect_err(|error| tracing::debug!(error = with_causes(error), "asking the registry instead")).ok()
    }

    fn refuse(&self, question: Question, why: String) {
        let mut refused = self.refused();
        refused.retain(|_, (at, _)| at.elapsed() < MEMORY);
        refused.insert(question, (Instant::now(), why));
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Question, (Instant, String)>> {
        // Nothing that could panic happens under this lock.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifests(&self) -> MutexGuard<'_, Manifests> {
        // Nothing that could panic happens under this lock.
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_ordinary_layers_whose_image_is_known() {
        let (chain, layer, manifest) = (Digest::of(b"chain"), Digest::of(b"layer"), Digest::of(b"manifest"));
        let labels: Labels = [
            (LABEL_SNAPSHOT_REF, chain.to_string()),
            (LABEL_LAYER_DIGEST, layer.to_string()),
            (LABEL_MANIFEST_DIGEST, manifest.to_string()),
            (LABEL_IMAGE_REF, "registry.example/app:1".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let repository = repository_of(&"registry.example/app:1".parse().unwrap());
        assert_eq!(Candidate::from_labels(&labels), Some(Candidate { chain, layer, manifest, repository }));
        for key in labels.keys() {
            let mut some = labels.clone();
            some.remove(key);
            assert_eq!(Candidate::from_labels(&some), None, "without {key}");
            some.insert(key.clone(), "nonsense of all sorts".into());
            assert_eq!(Candidate::from_labels(&some), None, "with nonsense for {key}");
        }
        let mut converted = labels;
        converted.insert(ANNOTATION_INDEX.into(), layer.to_string());
        assert_eq!(Candidate::from_labels(&converted), None);
    }
}
