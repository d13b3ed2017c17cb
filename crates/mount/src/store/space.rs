//! The disk: what each layer takes of it, which layers are to stay, and room for what must be written.
use super::{Store, StoreError};
use crate::LayerRef;
use clipper_device::{CacheUsage, DeviceUsage, Figures};
use clipper_format::Digest;
use std::{
    collections::{BTreeSet, HashSet},
    io,
    sync::Arc,
};
use tokio::task::spawn_blocking;

/// Where the disk went.
#[derive(Clone, Debug)]
pub struct DiskUsage {
    /// All devices together, and their limits.
    pub cache: CacheUsage,
    /// Each of them.
    pub layers: Vec<LayerUsage>,
}

/// What a device takes, and which layer lies on it.
#[derive(Clone, Debug)]
pub struct LayerUsage {
    /// The layer's digest; `None` if no index that was read since the start describes it.
    pub layer: Option<Digest>,
    /// Its device.
    pub device: DeviceUsage,
}

impl Store {
    /// Bytes of the layer's device that are on disk; 0 for a layer that was never mounted.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn usage(self: &Arc<Self>, layer: &LayerRef) -> Result<u64, StoreError> {
        let (store, id) = (Arc::clone(self), layer.id());
        let key = spawn_blocking(move || store.device_key(id)).await??;
        Ok(key.map_or(0, |key| self.devices.usage(&key)))
    }

    /// What every cached layer takes of the disk, and all of them.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn disk_usage(self: &Arc<Self>) -> Result<DiskUsage, StoreError> {
        let store = Arc::clone(self);
        let look = move || {
            let known: Vec<_> = {
                let state = store.leases.lock();
                state.device_keys.iter().map(|(layer, key)| (*key, layer.layer)).collect()
            };
            let layer_of = |key: &Digest| known.iter().find(|(known, _)| known == key).map(|(_, layer)| *layer);
            let usages = store.devices.usages().into_iter();
            let layers = usages.map(|device| LayerUsage { layer: layer_of(&device.device), device }).collect();
            let cache = store.devices.cache_usage();
            Ok(DiskUsage { cache: cache.map_err(StoreError::Usage)?, layers })
        };
        spawn_blocking(look).await?
    }

    /// What all devices have done since the store was opened.
    pub fn figures(&self) -> Figures {
        self.devices.figures()
    }

    /// What all devices take of the disk, and may.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn cache_usage(self: &Arc<Self>) -> Result<CacheUsage, StoreError> {
        let store = Arc::clone(self);
        spawn_blocking(move || store.devices.cache_usage().map_err(StoreError::Usage)).await?
    }

    /// Evicts at least `bytes`, if there is as much, of these layers' data, or of all there is, coldest first; what running
    /// containers need only if that is `forced`. Layers that are named aren't filled in the background any more. Returns
    /// the bytes freed.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn evict(
        self: &Arc<Self>,
        layers: Option<&[LayerRef]>,
        bytes: u64,
        forced: bool,
    ) -> Result<u64, StoreError> {
        let store = Arc::clone(self);
        let layers = layers.map(|layers| layers.iter().map(LayerRef::id).collect::<Vec<_>>());
        let evict = move || {
            let Some(layers) = layers else { return Ok(store.devices.evict(None, bytes, forced)) };
            let mut keys = HashSet::new();
            for layer in layers {
                keys.extend(store.device_key(layer)?);
            }
            Ok(store.devices.evict(Some(&keys), bytes, forced))
        };
        spawn_blocking(evict).await?
    }

    /// Running containers need these layers and no others: what is cached of others goes first when room is needed.
    ///
    /// # Errors
    /// If the local disk fails; what was pinned stays so then.
    pub async fn pin(self: &Arc<Self>, layers: &[LayerRef]) -> Result<(), StoreError> {
        let (store, layers): (_, BTreeSet<_>) = (Arc::clone(self), layers.iter().map(LayerRef::id).collect());
        let pin = move || {
            let mut keys = HashSet::new();
            for layer in layers {
                // A layer whose index isn't cached has nothing to lose.
                keys.extend(store.device_key(layer)?);
            }
            store.devices.pin(keys);
            Ok(())
        };
        spawn_blocking(pin).await?
    }

    /// Does `write`; once more after so many `bytes` of cold data went if there is no room on the disk.
    pub(super) fn with_room<T>(
        &self,
        bytes: usize,
        write: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match write() {
            Err(StoreError::Disk { source, .. }) if is_full(&source) && self.devices.make_room(bytes as u64) > 0 => {
                write()
            }
            written => written,
        }
    }
}
