//! Hot blobs: streamed into the devices of an image's layers once somebody wants the image.
use super::{Indexes, Store, StoreError};
use crate::{LayerRef, LazyDevice};
use clipper_device::{HotFrameSpec, HotPart, HotSpec, Source};
use clipper_format::{
    Digest,
    index::{Hot, HotPiece, Index},
};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The indexes whose hot blobs are on their way.
#[derive(Default)]
pub(super) struct HotStreams(Mutex<HashSet<Digest>>);

impl Store {
    /// Starts streaming the hot blob of an image with these layers, bottom first, unless it is here or on its way. That is
    /// the one in the index of the topmost layer: what other indexes tell of shared layers is about other images. What
    /// fails is logged: readers fetch what they need.
    pub(super) async fn stream_hot(self: &Arc<Self>, layers: &[LayerRef], indexes: &Indexes) {
        let Some(LayerRef { index: digest, repositories, image, .. }) = layers.last() else { return };
        let index = &indexes[digest];
        let Some(hot) = &index.hot else { return };
        if repositories.is_empty() || !self.hot.lock().insert(*digest) {
            return;
        }
        let all = index.layers.iter().map(|layer| LayerRef {
            index: *digest,
            layer: layer.digest,
            repositories: repositories.clone(),
            image: image.clone(),
        });
        if let Err(error) = self.start_stream(*digest, index, hot, all.collect()).await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(index = %digest, hot = %hot.blob.digest, error, "a hot blob can't be streamed");
            self.hot.lock().remove(digest);
        }
    }

    async fn start_stream(
        self: &Arc<Self>,
        digest: Digest,
        index: &Arc<Index>,
        hot: &Hot,
        layers: Vec<LayerRef>,
    ) -> Result<(), StoreError> {
        let mut sources: Vec<Arc<dyn Source>> = Vec::new();
        for reference in layers.first().map_or(&[][..], |layer| &layer.repositories) {
            let repository = self.repository(hot.blob.digest, reference)?;
            sources.push(Arc::new(repository.blob(hot.blob.digest, hot.blob.size)));
        }
        let image = layers.last().map(LayerRef::image_name).unwrap_or_default();
        let log = tracing::error_span!("image", %image);
        let lease = self.leases.take(layers.iter().map(LayerRef::id).collect());
        let devices = self.devices_of(layers, [(digest, Arc::clone(index))].into()).await?;
        let frames = hot.frames.iter().map(|frame| HotFrameSpec {
            len: frame.len,
            parts: frame.pieces.iter().filter_map(|piece| part(piece, &devices)).collect(),
            blake3: frame.blake3,
        });
        let spec = HotSpec { digest: hot.blob.digest, sources, frames: frames.collect(), log };
        drop(devices);
        let Some(stream) = self.devices.stream_hot(spec) else {
            self.hot.lock().remove(&digest);
            return Ok(());
        };
        tracing::debug!(index = %digest, hot = %hot.blob.digest, bytes = hot.blob.size, "streaming a hot blob");
        let store = Arc::downgrade(self);
        self.runtime.spawn(async move {
            stream.ended().await;
            drop(lease);
            if let Some(store) = store.upgrade() {
                store.hot.lock().remove(&digest);
            }
        });
        Ok(())
    }
}

/// Where a piece belongs. An index that decodes names no layer that it doesn't have.
fn part(piece: &HotPiece, devices: &[LazyDevice]) -> Option<HotPart> {
    let device = Arc::clone(&devices.get(piece.layer as usize)?.device);
    let range = piece.device_range(device.size());
    Some(HotPart { device, range })
}

impl HotStreams {
    fn lock(&self) -> MutexGuard<'_, HashSet<Digest>> {
        // Nothing that could panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
