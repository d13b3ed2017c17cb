//! Eviction: what goes when the devices are to take less room, over all of them. First what no running container needs,
//! then what was not used for longest, span by span.
use crate::{
    device::Device,
    devices::Shared,
    disk::LocalDisk,
    presence::Identity,
    shelf::{Holding, Opened},
    storage::{self, Storage},
    uses::{Moment, PART},
};
use clipper_format::Digest;
use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::sleep;

/// The disk is looked at this often: others fill it, too.
const PERIOD: Duration = Duration::from_secs(10);

/// Most bytes that are evicted over and above where a write has found no room.
const EXTRA_MAX: u64 = 64 << 20;

/// A device that has something to give.
enum Place {
    /// Goes by spans.
    Open(Arc<Device>),
    /// Nobody has it open: goes by parts of the same length.
    Closed(Digest, Identity),
    /// Nobody has it open, and nothing tells what of it is real: goes whole.
    Unknown(Digest),
}

/// A span, or a part.
struct Candidate {
    /// Number of its place.
    place: usize,
    bytes: Range<u64>,
    /// Bytes of disk that it takes.
    takes: u64,
    pinned: bool,
    last_use: Moment,
}

impl Shared {
    /// So many bytes more are on disk: sees to it that the limits are kept. Blocks while that takes eviction, so that who
    /// writes faster than can be evicted has to wait.
    pub(crate) fn stored(&self, bytes: u64) {
        if self.room.wrote(bytes) {
            self.trim();
        }
    }

    /// What kept something from being evicted is over: evicts it, if it is still beyond the limit.
    pub(crate) fn trim_later(self: &Arc<Self>) {
        if self.room.is_over() {
            let shared = Arc::clone(self);
            self.runtime.spawn_blocking(move || shared.trim());
        }
    }

    /// Evicts what is beyond the limits.
    fn trim(&self) {
        let mut turn = self.room.turn();
        self.room.counted(self.taken());
        let Some(excess) = self.room.excess() else { return };
        let freed = self.evict(|_, _| true, |_| excess.bytes, excess.spare);
        if freed > 0 {
            self.room.tell_of_eviction(&mut turn, freed);
        }
    }

    /// Evicts at least `bytes`, if there is as much to evict, because a write has found the disk full; returns the bytes
    /// freed. Blocks.
    pub(crate) fn make_room(&self, bytes: u64) -> u64 {
        let mut turn = self.room.turn();
        // Something over for what else is to be written on that disk, and so that it isn't done for every span.
        let freed = self.evict(|_, _| true, |all| bytes.max((all / 16).min(EXTRA_MAX)), 0);
        if freed > 0 {
            self.room.tell_of_eviction(&mut turn, freed);
        }
        freed
    }

    /// Evicts at least `bytes`, if there is as much, of the devices `of`, or of all; what running containers need only if
    /// that is `forced`. What is filled of these devices isn't filled any more. Returns the bytes freed. Blocks.
    pub(crate) fn evict_wanted(&self, of: Option<&HashSet<Digest>>, bytes: u64, forced: bool) -> u64 {
        let _turn = self.room.turn();
        let eligible =
            |digest: &Digest, pinned: bool| (forced || !pinned) && of.is_none_or(|wanted| wanted.contains(digest));
        for digest in of.into_iter().flatten() {
            let (holding, pinned) = (self.shelf.lock().holding(digest), self.shelf.pinned().contains(digest));
            if let Holding::Open(device) = holding
                && eligible(digest, pinned)
            {
                device.stop_fill();
            }
        }
        self.evict(eligible, |_| bytes, 0)
    }

    /// Bytes of disk that all devices take.
    pub(crate) fn taken(&self) -> u64 {
        self.shelf.list().iter().map(|digest| storage::usage(&self.shelf.dir(digest))).sum()
    }

    /// Evicts what is coldest of the `eligible` devices, which it is asked of with whether running containers need them: as
    /// many bytes as `wanted` says of those there are, but none of the `spare` bytes that were used last. Returns the bytes
    /// freed.
    fn evict(&self, eligible: impl Fn(&Digest, bool) -> bool, wanted: impl Fn(u64) -> u64, spare: u64) -> u64 {
        let (places, mut candidates) = self.candidates(eligible);
        candidates.sort_by_key(|candidate| (candidate.pinned, candidate.last_use));
        let all: u64 = candidates.iter().map(|candidate| candidate.takes).sum();
        let wanted = wanted(all).min(all.saturating_sub(spare));
        let (mut freed, mut rest) = (0, &candidates[..]);
        while freed < wanted && !rest.is_empty() {
            let mut takes = freed;
            let enough = rest.iter().take_while(|candidate| {
                let more = takes < wanted;
                takes += candidate.takes;
                more
            });
            let (next, later) = rest.split_at(enough.count());
            rest = later;
            let mut ranges: BTreeMap<usize, Vec<Range<u64>>> = BTreeMap::new();
            for candidate in next {
                ranges.entry(candidate.place).or_default().push(candidate.bytes.clone());
            }
            for (place, ranges) in ranges {
                freed += self.evict_from(&places[place], &ranges);
            }
        }
        self.room.gave_back(freed, true);
        freed
    }

    fn candidates(&self, eligible: impl Fn(&Digest, bool) -> bool) -> (Vec<Place>, Vec<Candidate>) {
        let (mut places, mut candidates) = (Vec::new(), Vec::new());
        for digest in self.shelf.list() {
            let (place, pinned) = (places.len(), self.shelf.pinned().contains(&digest));
            if !eligible(&digest, pinned) {
                continue;
            }
            let mut add = |bytes, takes, last_use| {
                if takes > 0 {
                    candidates.push(Candidate { place, bytes, takes, pinned, last_use });
                }
            };
            let dir = self.shelf.dir(&digest);
            let holding = self.shelf.lock().holding(&digest);
            places.push(match holding {
                Holding::Closing => continue,
                Holding::Open(device) => {
                    for span in device.spans() {
                        let bytes = span.device_range();
                        add(bytes.clone(), device.storage.cached_of(&bytes), device.storage.last_use(&bytes));
                    }
                    Place::Open(device)
                }
                Holding::Closed => match storage::read_presence(&LocalDisk, &dir) {
                    Some((identity, present, last_use)) if identity.device == digest => {
                        for start in (0..identity.size).step_by(PART as usize) {
                            let bytes = start..identity.size.min(start + PART);
                            add(bytes.clone(), storage::bytes_in(&present, &bytes), last_use);
                        }
                        Place::Closed(digest, identity)
                    }
                    _ => {
                        add(0..0, storage::usage(&dir), 0);
                        Place::Unknown(digest)
                    }
                },
            });
        }
        (places, candidates)
    }

    fn evict_from(&self, place: &Place, ranges: &[Range<u64>]) -> u64 {
        let evicted = match place {
            Place::Open(device) => device.storage.evict(ranges),
            Place::Closed(digest, identity) => self.evict_closed(digest, *identity, ranges),
            Place::Unknown(digest) => self.remove_closed(digest),
        };
        evicted.unwrap_or_else(|error| {
            let digest = match place {
                Place::Open(device) => device.digest(),
                Place::Closed(digest, _) | Place::Unknown(digest) => *digest,
            };
            tracing::warn!(device = %digest, dir = %self.shelf.root().display(), %error, "nothing can be evicted");
            0
        })
    }

    /// Evicts from a device that nobody has open, unless somebody has meanwhile; deletes it once nothing is left.
    fn evict_closed(&self, digest: &Digest, identity: Identity, ranges: &[Range<u64>]) -> io::Result<u64> {
        let storage = {
            let mut open = self.shelf.lock();
            let Holding::Closed = open.holding(digest) else { return Ok(0) };
            let storage = Arc::new(Storage::open(LocalDisk, self.shelf.dir(digest), identity)?);
            // Who opens or removes the device now has to see that this is at it.
            let opened = Opened { device: Weak::new(), storage: Arc::downgrade(&storage) };
            open.devices.insert(*digest, opened);
            storage
        };
        let freed = storage.evict(ranges)?;
        let empty = storage.cached() == 0;
        drop(storage);
        if empty {
            self.remove_closed(digest)?;
        }
        Ok(freed)
    }

    /// Deletes a device that nobody has open, unless somebody has meanwhile.
    fn remove_closed(&self, digest: &Digest) -> io::Result<u64> {
        let mut open = self.shelf.lock();
        let Holding::Closed = open.holding(digest) else { return Ok(0) };
        let freed = storage::usage(&self.shelf.dir(digest));
        let away = self.shelf.take_out(&mut open, digest)?;
        drop(open);
        away.map_or(Ok(0), |away| fs::remove_dir_all(away).map(|()| freed))
    }
}

/// Keeps the limits for as long as there are devices: others may take room on the same disk.
pub(crate) async fn keep_limits(shared: Weak<Shared>) {
    loop {
        sleep(PERIOD).await;
        let Some(shared) = shared.upgrade() else { return };
        let runtime = shared.runtime.clone();
        // Only a runtime that shuts down loses its work.
        let _ = runtime.spawn_blocking(move || shared.trim()).await;
    }
}
