//! Giving back the space of what no image needs any more.
use super::{Store, StoreError, devices, lease::LeaseState};
use crate::{LayerRef, layer::LayerId};
use clipper_format::Digest;
use std::{collections::HashSet, sync::Arc};
use tokio::task::spawn_blocking;

impl Store {
    /// Removes the devices, indexes and merged trees that neither the layers `in_use` nor any image of this process
    /// needs, and tells how many bytes that freed.
    ///
    /// # Errors
    /// If the local disk fails; what could be removed is gone then.
    pub async fn retain(self: &Arc<Self>, in_use: &[LayerRef]) -> Result<u64, StoreError> {
        let (store, in_use) = (Arc::clone(self), in_use.iter().map(LayerRef::id).collect());
        spawn_blocking(move || store.retain_blocking(in_use)).await?
    }

    /// Waits until [`retain`](Self::retain) can reclaim more than it could the last time: what only images of this process
    /// needed, and these are gone.
    pub async fn reclaimable(&self) {
        self.leases.released().await;
    }

    fn retain_blocking(&self, mut layers: HashSet<LayerId>) -> Result<u64, StoreError> {
        // Indexes are read before anybody has to wait.
        let mut all_known = true;
        for layer in &layers {
            all_known &= self.device_key(*layer)?.is_some();
        }
        // Nobody takes a lease meanwhile: an image is either counted here or finds things gone and makes them again.
        let mut state = self.leases.lock();
        state.add_to(&mut layers);
        let LeaseState { device_keys, .. } = &mut *state;
        device_keys.retain(|layer, _| layers.contains(layer));
        let mut freed = self.trees.retain(&layers)?;
        if all_known {
            // A lease whose index isn't known yet has no device yet.
            let keys: HashSet<Digest> = device_keys.values().copied().collect();
            for key in self.devices.list() {
                if !keys.contains(&key) {
                    freed += self.devices.usage(&key);
                    let removed = self.devices.remove(&key);
                    removed.map_err(|error| StoreError::Device { layer: key, source: Box::new(error) })?;
                }
            }
        } else {
            tracing::info!("devices are kept: it isn't known which are in use until a missing index is fetched again");
        }
        freed += self.indexes.retain(&layers.iter().map(|layer| layer.index).collect())?;
        Ok(freed)
    }

    /// The key of the layer's device, if its index is cached.
    pub(super) fn device_key(&self, layer: LayerId) -> Result<Option<Digest>, StoreError> {
        if let Some(key) = self.leases.lock().device_keys.get(&layer) {
            return Ok(Some(*key));
        }
        let Some(index) = self.indexes.load(layer.index)? else { return Ok(None) };
        // All of its layers at once: whoever asks for one asks for the others, too.
        let keys: Vec<_> = index
            .layers
            .iter()
            .map(|described| (LayerId { index: layer.index, layer: described.digest }, devices::key(described)))
            .collect();
        let mut state = self.leases.lock();
        state.device_keys.extend(keys);
        Ok(state.device_keys.get(&layer).copied())
    }
}
