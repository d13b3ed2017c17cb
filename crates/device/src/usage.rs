//! Where the disk went: what each device takes of it, and all of them.
use crate::{
    disk::LocalDisk,
    room::Room,
    shelf::{Holding, Shelf},
    storage,
    uses::{self, Moment},
};
use clipper_format::Digest;
use std::{io, time::SystemTime};

/// What a device takes of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Its name.
    pub device: Digest,
    /// Bytes of the device; `None` if it is neither open nor tells.
    pub size: Option<u64>,
    /// Device bytes that are here, verified.
    pub cached_bytes: u64,
    /// Bytes of disk that it takes (allocated blocks), with its presence file.
    pub disk_bytes: u64,
    /// Whether something is mounted that needs it, or it is being filled.
    pub open: bool,
    /// Whether a running container needs it, as [`Devices::pin`](crate::Devices::pin) was told.
    pub pinned: bool,
    /// When something of it was last read or prefetched, as far as is known: what the kernel has cached is read without
    /// us.
    pub last_use: Option<SystemTime>,
}

/// What all devices take of the disk, and what they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheUsage {
    /// Bytes that they take (allocated blocks).
    pub disk_bytes: u64,
    /// Most bytes that they may take.
    pub max_bytes: Option<u64>,
    /// Bytes that are free on their disk.
    pub free: u64,
    /// Bytes that are to stay free there.
    pub min_free: u64,
    /// Bytes evicted since the directory was opened.
    pub evicted: u64,
    /// How often that was done.
    pub evictions: u64,
    /// Whether nothing is cached at the moment, because the disk is full or fails.
    pub in_trouble: bool,
}

impl DeviceUsage {
    /// Of the device `digest`, which is on disk.
    pub(crate) fn of(shelf: &Shelf, digest: &Digest) -> Self {
        let dir = shelf.dir(digest);
        let holding = shelf.lock().holding(digest);
        let (size, cached_bytes, open, last_use) = match &holding {
            Holding::Open(device) => {
                (Some(device.size()), device.cached_bytes(), true, told(device.storage.latest_use()))
            }
            Holding::Closed | Holding::Closing => match storage::read_presence(&LocalDisk, &dir) {
                Some((identity, present, last_use)) => {
                    let cached = storage::bytes_in(&present, &(0..identity.size)).min(identity.size);
                    (Some(identity.size), cached, false, told(last_use))
                }
                None => (None, 0, false, None),
            },
        };
        let (disk_bytes, pinned) = (storage::usage(&dir), shelf.pinned().contains(digest));
        Self { device: *digest, size, cached_bytes, disk_bytes, open, pinned, last_use }
    }
}

impl CacheUsage {
    pub(crate) fn of(disk_bytes: u64, room: &Room) -> io::Result<Self> {
        let ((min_free, free), max_bytes) = (room.free()?, room.max_bytes());
        let (evicted, evictions, in_trouble) = (room.evicted(), room.evictions(), room.in_trouble());
        Ok(Self { disk_bytes, max_bytes, free, min_free, evicted, evictions, in_trouble })
    }
}

/// A last use; before 1970 there was none.
fn told(last_use: Moment) -> Option<SystemTime> {
    (last_use > 0).then(|| uses::time(last_use))
}
