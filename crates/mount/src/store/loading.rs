//! How far layers have been loaded, and layers that are held while somebody loads them.
use super::{Lease, Store, StoreError};
use crate::{LayerRef, LazyDevice};
use clipper_device::FillState;
use clipper_format::Digest;
use std::sync::Arc;
use tokio::task::spawn_blocking;

/// How far a layer has been loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The layer.
    pub layer: Digest,
    /// Its uncompressed bytes; `None` if neither its device nor its index is here.
    pub size: Option<u64>,
    /// Those of them that are here, verified.
    pub cached: u64,
    /// How far background fill has come; `None` if nobody has the layer open.
    pub fill: Option<FillState>,
    /// Whether a running container needs it.
    pub pinned: bool,
}

/// Layers whose devices are open, kept from being reclaimed until this is dropped.
pub struct OpenLayers {
    devices: Vec<LazyDevice>,
    _lease: Lease,
}

impl OpenLayers {
    /// Their devices, in the order of the layers.
    pub fn devices(&self) -> &[LazyDevice] {
        &self.devices
    }
}

impl Store {
    /// How far `layers` have been loaded. Never asks the network.
    ///
    /// # Errors
    /// If the local disk fails.
    pub async fn progress(self: &Arc<Self>, layers: &[LayerRef]) -> Result<Vec<LayerProgress>, StoreError> {
        let (store, layers): (_, Vec<_>) = (Arc::clone(self), layers.iter().map(LayerRef::id).collect());
        let look = move || {
            layers
                .into_iter()
                .map(|id| {
                    let unknown = LayerProgress { layer: id.layer, size: None, cached: 0, fill: None, pinned: false };
                    let Some(key) = store.device_key(id)? else { return Ok(unknown) };
                    let usage = store.devices.usage_of(&key);
                    let described =
                        |index: &clipper_format::index::Index| Some(index.layer(&id.layer)?.spans.device_size());
                    let size = match usage.size {
                        None => store.indexes.load(id.index)?.and_then(|index| described(&index)),
                        size => size,
                    };
                    let fill = store.devices.get(&key).map(|device| device.fill_state());
                    Ok(LayerProgress { size, cached: usage.cached_bytes, fill, pinned: usage.pinned, ..unknown })
                })
                .collect()
        };
        let progress = spawn_blocking(look).await?;
        self.forget_indexes_later();
        progress
    }

    /// Opens the devices of `layers`, bottom first, without mounting anything.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn open_layers(self: &Arc<Self>, layers: &[LayerRef]) -> Result<OpenLayers, StoreError> {
        let lease = self.leases.take(layers.iter().map(LayerRef::id).collect());
        let indexes = self.indexes_of(layers).await?;
        Ok(OpenLayers { devices: self.devices_of(layers.to_vec(), indexes).await?, _lease: lease })
    }
}
