//! A directory of devices, one per digest, and what they share.
use crate::{
    activity::Activity,
    checkpoints::{Batches, CheckpointCache},
    device::{Device, DeviceSpec},
    error::DeviceError,
    hot::{HotSpec, HotStream},
    limits::Limits,
    options::DeviceOptions,
    presence::Identity,
    storage::{self, Storage},
};
use clipper_format::Digest;
use rustix::fs::FlockOperation;
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::runtime::Handle;

/// Most device bytes of one span: it is decoded in memory.
const SPAN_MAX: u32 = 64 << 20;
/// Prefix of directories on their way out.
const REMOVED: &str = "removed-";

/// What all devices share.
pub(crate) struct Shared {
    pub(crate) options: DeviceOptions,
    pub(crate) limits: Limits,
    pub(crate) activity: Arc<Activity>,
    pub(crate) checkpoints: CheckpointCache,
    pub(crate) runtime: Handle,
    /// Holds the directory for as long as a device of it is open.
    _lock: File,
}

/// A directory of devices.
///
/// ```text
/// ROOT/lock              locked while the directory or a device of it is open
/// ROOT/<hex>/data        the device's bytes, sparse
/// ROOT/<hex>/presence    which of its blocks are real
/// ```
pub struct Devices {
    root: PathBuf,
    shared: Arc<Shared>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    devices: HashMap<Digest, Opened>,
    removals: u64,
}

/// A device that is open, or was.
struct Opened {
    device: Weak<Device>,
    /// Outlives the device for as long as it takes to record what that had.
    storage: Weak<Storage>,
}

impl Devices {
    /// Opens the directory `root`, made if it is missing, for this process alone. Never touches the network.
    /// `runtime` must have its timer enabled; all work is done on it.
    ///
    /// # Errors
    /// [`DeviceError::InUse`] if another process has it open, or this one, or a device of it; or [`DeviceError::Storage`].
    pub fn open(root: PathBuf, options: DeviceOptions, runtime: Handle) -> Result<Arc<Self>, DeviceError> {
        let failed = |error| DeviceError::storage(&root, error);
        fs::create_dir_all(&root).map_err(failed)?;
        let lock = File::options().write(true).create(true).truncate(false).open(root.join("lock")).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DeviceError::InUse { root }),
            Err(error) => return Err(failed(error.into())),
        }
        for entry in fs::read_dir(&root).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes()) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        let shared = Shared {
            limits: Limits::new(&options),
            activity: Arc::default(),
            checkpoints: CheckpointCache::new(options.checkpoint_memory),
            options,
            runtime,
            _lock: lock,
        };
        Ok(Arc::new(Self { root, shared: Arc::new(shared), open: Mutex::default() }))
    }

    /// The device of `spec`, opened or created. If it is open already, the sources of `spec` are added to its own as
    /// alternatives. Works with the network down. Uses the local disk, and so may block for a moment.
    ///
    /// # Errors
    /// [`DeviceError::Spec`] if the spec can't be right or differs from that of the open device of this digest, or
    /// [`DeviceError::Storage`].
    pub fn device(&self, spec: DeviceSpec) -> Result<Arc<Device>, DeviceError> {
        let digest = spec.digest;
        let unusable = |reason| DeviceError::Spec { device: digest, reason };
        check(&spec).map_err(unusable)?;
        let batches = Batches::new(&spec.checkpoint_groups).map_err(unusable)?;
        let fingerprint = fingerprint(&spec);
        let mut open = self.lock();
        if let Some(device) = open.devices.get(&digest).and_then(|opened| opened.device.upgrade()) {
            if device.fingerprint != fingerprint {
                return Err(unusable("it is open with another span table"));
            }
            device.add_sources(spec.layer, spec.checkpoints);
            return Ok(device);
        }
        let dir = self.dir(&digest);
        if let Some(storage) = open.devices.get(&digest).and_then(|opened| opened.storage.upgrade()) {
            // Its last holder has only just let go: what it had counts.
            storage.flush().map_err(|error| DeviceError::storage(dir.clone(), error))?;
        }
        let identity = Identity { device: digest, fingerprint, size: spec.spans.device_size() };
        let storage = Storage::open(dir.clone(), identity).map_err(|error| DeviceError::storage(dir, error))?;
        let device = Device::new(spec, fingerprint, batches, storage, Arc::clone(&self.shared));
        open.devices.retain(|_, opened| opened.storage.strong_count() > 0);
        let opened = Opened { device: Arc::downgrade(&device), storage: Arc::downgrade(&device.storage) };
        open.devices.insert(digest, opened);
        Ok(device)
    }

    /// The device of this digest, if it is open.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Device>> {
        self.lock().devices.get(digest).and_then(|opened| opened.device.upgrade())
    }

    /// Starts streaming what of a hot blob is neither here nor brought by another stream; `None` if there is nothing of
    /// that kind. Readers of what it brings wait for it where that is quicker than a GET of their own.
    pub fn stream_hot(&self, spec: HotSpec) -> Option<HotStream> {
        let _one_at_a_time = self.lock();
        HotStream::start(spec)
    }

    /// Deletes a device; nothing happens if there is none. Whoever still has it open can go on reading and fetching,
    /// from files without a name whose space is given back when the last handle is dropped; its fill is stopped. The
    /// next [`device`](Devices::device) of this digest starts empty.
    ///
    /// # Errors
    /// [`DeviceError::Storage`]. The device is gone nevertheless; its space is given back by the next
    /// [`open`](Devices::open) at the latest.
    pub fn remove(&self, digest: &Digest) -> Result<(), DeviceError> {
        let mut open = self.lock();
        if let Some(opened) = open.devices.remove(digest) {
            if let Some(device) = opened.device.upgrade() {
                device.stop_fill();
            }
            if let Some(storage) = opened.storage.upgrade() {
                storage.set_removed();
            }
        }
        let dir = self.dir(digest);
        open.removals += 1;
        let away = self.root.join(format!("{REMOVED}{}-{}", digest.hex(), open.removals));
        match fs::rename(&dir, &away) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(DeviceError::storage(dir, error)),
        }
        drop(open);
        fs::remove_dir_all(&away).map_err(|error| DeviceError::storage(away, error))
    }

    /// All devices on disk, open or not, sorted.
    pub fn list(&self) -> Vec<Digest> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let digest = |entry: fs::DirEntry| format!("sha256:{}", entry.file_name().to_str()?).parse().ok();
        let mut digests: Vec<Digest> = entries.filter_map(digest).collect();
        digests.sort_unstable();
        digests
    }

    /// Disk space that a device takes, in bytes (allocated blocks); 0 if there is none.
    pub fn usage(&self, digest: &Digest) -> u64 {
        storage::usage(&self.dir(digest))
    }

    /// Makes everything present in all open devices durable, and in those that were let go of just now. Call it before
    /// the process ends.
    ///
    /// # Errors
    /// The first error; the others are flushed nevertheless.
    pub async fn flush(&self) -> Result<(), DeviceError> {
        let storages: Vec<_> = self.lock().devices.values().filter_map(|opened| opened.storage.upgrade()).collect();
        let work = move || {
            let mut result = Ok(());
            for storage in storages {
                let failed = |error| DeviceError::storage(storage.path(), error);
                result = result.and(storage.flush().map_err(failed));
            }
            result
        };
        // Only a runtime that shuts down loses its work, and that of the devices with it.
        self.shared.runtime.spawn_blocking(work).await.unwrap_or(Ok(()))
    }

    fn dir(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bounds what a span may cost.
fn check(spec: &DeviceSpec) -> Result<(), &'static str> {
    let mut spans = spec.spans.spans().iter();
    if spans.any(|span| span.device_len > SPAN_MAX || span.source_len > SPAN_MAX) {
        return Err("a span is longer than 64 MiB");
    }
    if spec.spans.spans().iter().any(|span| span.source_range().end > spec.source_size) {
        return Err("a span lies outside the layer blob");
    }
    Ok(())
}

/// Identifies everything a spec says about the bytes.
fn fingerprint(spec: &DeviceSpec) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    hash.update(&spec.source_size.to_le_bytes());
    hash.update(&(spec.spans.spans().len() as u64).to_le_bytes());
    for span in spec.spans.spans() {
        hash.update(&span.device_len.to_le_bytes());
        hash.update(&span.source_offset.to_le_bytes());
        hash.update(&span.source_len.to_le_bytes());
        hash.update(&span.start.to_bytes());
        hash.update(&span.blake3);
    }
    for group in &spec.checkpoint_groups {
        hash.update(&group.start.to_le_bytes());
        hash.update(&group.end.to_le_bytes());
    }
    *hash.finalize().as_bytes()
}
