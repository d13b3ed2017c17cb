//! When what has arrived is made durable: soon after activity stops, and now and then while it lasts.
use crate::{
    device::Device,
    devices::Shared,
    error::{DeviceError, is_full},
    storage::Storage,
};
use std::{
    io,
    sync::{Arc, MutexGuard, PoisonError, Weak},
    time::Instant,
};
use tokio::time::sleep;
use tracing::Instrument;

/// Room that recording takes, and more.
const RECORDING: u64 = 64 << 10;

/// When spans were written that aren't durable yet.
#[derive(Default)]
pub(crate) struct Written {
    last: Option<Instant>,
    flusher: bool,
}

impl Shared {
    /// Makes what is present in `storage` durable. On a full disk cold data go for that. Blocks.
    pub(crate) fn record(&self, storage: &Storage) -> io::Result<()> {
        match storage.flush() {
            Err(error) if is_full(&error) && self.make_room(RECORDING) > 0 => storage.flush(),
            done => done,
        }
    }
}

impl Device {
    /// Makes what is present durable: it survives a restart and a power cut.
    ///
    /// # Errors
    /// [`DeviceError::Storage`] if the disk fails or is full.
    pub async fn flush(&self) -> Result<(), DeviceError> {
        let (shared, storage) = (Arc::clone(&self.shared), Arc::clone(&self.storage));
        match self.shared.runtime.spawn_blocking(move || shared.record(&storage)).await {
            Ok(flushed) => flushed.map_err(|error| DeviceError::storage(self.storage.path(), error)),
            Err(_) => Err(DeviceError::Stopped { device: self.digest() }),
        }
    }

    /// Sees to it that what was written is made durable before long.
    pub(crate) fn wrote(&self) {
        let mut written = self.unsaved();
        written.last = Some(Instant::now());
        if !std::mem::replace(&mut written.flusher, true) {
            self.shared.runtime.spawn(keep_durable(self.weak()).instrument(self.log.clone()));
        }
    }

    fn unsaved(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flushes the device when no span has been written for a moment, or when spans have been written for long.
async fn keep_durable(device: Weak<Device>) {
    let (mut since, mut told) = (Instant::now(), false);
    loop {
        let Some(idle) = device.upgrade().map(|device| device.shared.options.flush_idle) else { return };
        sleep(idle).await;
        let Some(device) = device.upgrade() else { return };
        let busy = device.unsaved().last.is_some_and(|last| last.elapsed() < idle);
        if busy && since.elapsed() < device.shared.options.flush_interval {
            continue;
        }
        if let Err(error) = device.flush().await {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(error = error.chain(), "presence not recorded: trying again until it is");
            }
            let pause = device.shared.options.flush_interval;
            drop(device);
            sleep(pause).await;
            continue;
        }
        (since, told) = (Instant::now(), false);
        let mut written = device.unsaved();
        if !device.storage.dirty() {
            written.flusher = false;
            return;
        }
    }
}
