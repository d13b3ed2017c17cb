//! A directory of devices, one per digest, and what they share.
use crate::{
    activity::Activity,
    checkpoints::{Batches, CheckpointCache},
    device::{Device, DeviceSpec},
    disk::LocalDisk,
    error::DeviceError,
    evict::keep_limits,
    hot::{HotSpec, HotStream},
    limits::Limits,
    options::DeviceOptions,
    presence::Identity,
    room::Room,
    shelf::{Opened, Shelf},
    storage::{self, Storage},
    tally::{Figures, Tally},
    usage::{CacheUsage, DeviceUsage},
};
use clipper_format::{Digest, gzip::MAX_SPAN_SOURCE, zstd::MAX_SPAN};
use rustix::fs::FlockOperation;
use std::{
    collections::HashSet,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
};
use tokio::runtime::Handle;

/// Most device bytes of one span, and most source bytes: it is decoded in memory.
const SPAN_MAX: u32 = MAX_SPAN;
const SOURCE_MAX: u32 = MAX_SPAN_SOURCE;

/// What all devices share.
pub(crate) struct Shared {
    pub(crate) options: DeviceOptions,
    pub(crate) limits: Limits,
    pub(crate) activity: Arc<Activity>,
    pub(crate) checkpoints: CheckpointCache,
    pub(crate) shelf: Shelf,
    pub(crate) room: Room,
    pub(crate) tally: Tally,
    pub(crate) runtime: Handle,
    /// Holds the directory for as long as a device of it is open.
    _lock: File,
}

/// A directory of devices.
pub struct Devices {
    shared: Arc<Shared>,
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
        let shelf = Shelf::open(root.clone()).map_err(failed)?;
        let shared = Arc::new(Shared {
            limits: Limits::new(&options),
            activity: Arc::default(),
            checkpoints: CheckpointCache::new(options.checkpoint_memory),
            room: Room::new(root, &options),
            tally: Tally::default(),
            shelf,
            options,
            runtime,
            _lock: lock,
        });
        shared.room.counted(shared.taken());
        if shared.room.is_limited() {
            shared.runtime.spawn(keep_limits(Arc::downgrade(&shared)));
        }
        Ok(Arc::new(Self { shared }))
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
        let mut open = self.shared.shelf.lock();
        if let Some(device) = open.devices.get(&digest).and_then(|opened| opened.device.upgrade()) {
            if device.fingerprint != fingerprint {
                return Err(unusable("it is open with another span table"));
            }
            device.add_sources(spec.layer, spec.checkpoints);
            return Ok(device);
        }
        let dir = self.shared.shelf.dir(&digest);
        if let Some(storage) = open.devices.get(&digest).and_then(|opened| opened.storage.upgrade()) {
            // Its last holder has only just let go: what it had counts, if the disk takes it.
            if let Err(error) = storage.flush() {
                tracing::warn!(dir = %dir.display(), %error, "presence not recorded");
            }
        }
        let identity = Identity { device: digest, fingerprint, size: spec.spans.device_size() };
        let storage = Storage::open(LocalDisk, dir.clone(), identity);
        let storage = storage.map_err(|error| DeviceError::storage(dir, error))?;
        let device = Device::new(spec, fingerprint, batches, storage, Arc::clone(&self.shared));
        open.devices.retain(|_, opened| opened.storage.strong_count() > 0);
        let opened = Opened { device: Arc::downgrade(&device), storage: Arc::downgrade(&device.storage) };
        open.devices.insert(digest, opened);
        Ok(device)
    }

    /// The device of this digest, if it is open.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Device>> {
        self.shared.shelf.lock().devices.get(digest).and_then(|opened| opened.device.upgrade())
    }

    /// Starts streaming what of a hot blob is neither here nor brought by another stream; `None` if there is nothing of
    /// that kind. Readers of what it brings wait for it where that is quicker than a GET of their own.
    pub fn stream_hot(&self, spec: HotSpec) -> Option<HotStream> {
        let _one_at_a_time = self.shared.shelf.lock();
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
        let shelf = &self.shared.shelf;
        let mut open = shelf.lock();
        if let Some(opened) = open.devices.remove(digest) {
            if let Some(device) = opened.device.upgrade() {
                device.stop_fill();
            }
            if let Some(storage) = opened.storage.upgrade() {
                storage.set_removed();
            }
        }
        let dir = shelf.dir(digest);
        let takes = storage::usage(&dir);
        let away = shelf.take_out(&mut open, digest).map_err(|error| DeviceError::storage(dir, error))?;
        drop(open);
        let Some(away) = away else { return Ok(()) };
        self.shared.room.gave_back(takes, false);
        fs::remove_dir_all(&away).map_err(|error| DeviceError::storage(away, error))
    }

    /// The devices that running containers need, and no others: what others have is evicted first.
    pub fn pin(&self, digests: HashSet<Digest>) {
        *self.shared.shelf.pinned() = digests;
    }

    /// Evicts cold data of at least `bytes`, if there is as much, because a write elsewhere on the disk has found it full.
    /// Returns the bytes freed. Blocks.
    pub fn make_room(&self, bytes: u64) -> u64 {
        self.shared.make_room(bytes)
    }

    /// Evicts at least `bytes`, if there is as much, of the devices `of`, or of all, coldest first; what running containers
    /// need only if that is `forced`. Background fill of devices that are named ends. Returns the bytes freed. Blocks.
    pub fn evict(&self, of: Option<&HashSet<Digest>>, bytes: u64, forced: bool) -> u64 {
        self.shared.evict_wanted(of, bytes, forced)
    }

    /// All devices on disk, open or not, sorted.
    pub fn list(&self) -> Vec<Digest> {
        self.shared.shelf.list()
    }

    /// Disk space that a device takes, in bytes (allocated blocks); 0 if there is none.
    pub fn usage(&self, digest: &Digest) -> u64 {
        storage::usage(&self.shared.shelf.dir(digest))
    }

    /// What a device takes; of one that isn't on disk, nothing.
    pub fn usage_of(&self, digest: &Digest) -> DeviceUsage {
        DeviceUsage::of(&self.shared.shelf, digest)
    }

    /// What each device on disk takes, in the order of [`list`](Devices::list). Reads the presence files of those that
    /// nobody has open, and so may block for a moment.
    pub fn usages(&self) -> Vec<DeviceUsage> {
        self.list().iter().map(|digest| DeviceUsage::of(&self.shared.shelf, digest)).collect()
    }

    /// What all devices together take, and may take.
    ///
    /// # Errors
    /// [`DeviceError::Storage`] if the disk doesn't tell.
    pub fn cache_usage(&self) -> Result<CacheUsage, DeviceError> {
        let shared = &self.shared;
        CacheUsage::of(shared.taken(), &shared.room)
            .map_err(|error| DeviceError::storage(shared.shelf.root().to_owned(), error))
    }

    /// What all devices have done since the directory was opened.
    pub fn figures(&self) -> Figures {
        self.shared.tally.figures()
    }

    /// Makes everything present in all open devices durable, and in those that were let go of just now. Call it before
    /// the process ends.
    ///
    /// # Errors
    /// The first error; the others are flushed nevertheless.
    pub async fn flush(&self) -> Result<(), DeviceError> {
        let storages = self.shared.shelf.lock().storages();
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let mut result = Ok(());
            for storage in storages {
                let failed = |error| DeviceError::storage(storage.path(), error);
                result = result.and(shared.record(&storage).map_err(failed));
            }
            result
        };
        // Only a runtime that shuts down loses its work, and that of the devices with it.
        self.shared.runtime.spawn_blocking(work).await.unwrap_or(Ok(()))
    }
}

/// Bounds what a span may cost.
fn check(spec: &DeviceSpec) -> Result<(), &'static str> {
    let mut spans = spec.spans.spans().iter();
    if spans.any(|span| span.device_len > SPAN_MAX || span.source_len > SOURCE_MAX) {
        return Err("a span is longer than 128 MiB, or needs more than 64 MiB of its blob");
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
