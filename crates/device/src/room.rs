//! The room that devices may take on their disk, how much of it they take, and what to tell when there is none.
use crate::{
    error::is_full,
    options::{DeviceOptions, MinFree},
};
use std::{
    io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes written after which it is looked whether the disk still has as much room as it should.
const LOOK: u64 = 4 << 20;
/// Most bytes that are evicted over and above, so that it isn't done for every span.
const SLACK_MAX: u64 = 128 << 20;
/// What was read last stays, where others have filled the disk: of the rest of a span a reader wants more in a moment.
const SPARE: u64 = 64 << 20;
/// Evictions are told of no more often than this.
const TOLD: Duration = Duration::from_secs(60);

/// The room of a directory of devices.
pub(crate) struct Room {
    root: PathBuf,
    max_bytes: Option<u64>,
    min_free: MinFree,
    /// Bytes that devices took when they were last counted, and what was written since.
    taken: AtomicU64,
    /// Bytes written since somebody last looked.
    unseen: AtomicU64,
    evicted: AtomicU64,
    evictions: AtomicU64,
    /// Set while writing fails.
    trouble: AtomicBool,
    /// When evictions were last told of. Held while something is evicted.
    turn: Mutex<Option<Instant>>,
}

/// What has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Excess {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Bytes that stay nevertheless: those that were used last.
    pub(crate) spare: u64,
}

impl Room {
    /// The room below `root`, which exists.
    pub(crate) fn new(root: PathBuf, options: &DeviceOptions) -> Self {
        Self {
            root,
            max_bytes: options.max_bytes,
            min_free: options.min_free,
            taken: AtomicU64::new(0),
            unseen: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            trouble: AtomicBool::new(false),
            turn: Mutex::default(),
        }
    }

    /// Whether there is any limit to keep.
    pub(crate) fn is_limited(&self) -> bool {
        self.max_bytes.is_some() || self.min_free != MinFree::Bytes(0)
    }

    /// Most bytes that devices may take.
    pub(crate) fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    /// Bytes that must stay free, and that are.
    pub(crate) fn free(&self) -> io::Result<(u64, u64)> {
        let disk = rustix::fs::statvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok((self.min_free.of(bytes(disk.f_blocks)), bytes(disk.f_bavail)))
    }

    /// Bytes evicted so far.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// How often something was evicted.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// So many bytes more were written: whether it is time to look at the limits.
    pub(crate) fn wrote(&self, bytes: u64) -> bool {
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let unseen = self.unseen.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.is_limited() && (unseen >= LOOK || self.max_bytes.is_some_and(|max| taken > max))
    }

    /// Whether devices take more than they may, as far as is known without counting.
    pub(crate) fn is_over(&self) -> bool {
        self.max_bytes.is_some_and(|max| self.taken.load(Ordering::Relaxed) > max)
    }

    /// Devices were counted: they take so many bytes.
    pub(crate) fn counted(&self, taken: u64) {
        self.taken.store(taken, Ordering::Relaxed);
        self.unseen.store(0, Ordering::Relaxed);
    }

    /// So many bytes were given back, by eviction if `evicted`.
    pub(crate) fn gave_back(&self, bytes: u64, evicted: bool) {
        // Counted anew before long: it needn't be exact.
        let _ =
            self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| Some(taken.saturating_sub(bytes)));
        if evicted {
            self.evicted.fetch_add(bytes, Ordering::Relaxed);
            self.evictions.fetch_add((bytes > 0).into(), Ordering::Relaxed);
        }
    }

    /// What has to go for the limits to be kept, with something over; `None` if they are.
    pub(crate) fn excess(&self) -> Option<Excess> {
        let taken = self.taken.load(Ordering::Relaxed);
        let over = self.max_bytes.filter(|max| taken > *max).map_or(0, |max| taken - max + slack(max));
        // A disk that doesn't tell keeps nobody from reading.
        let short = self.free().ok().filter(|(min, free)| free < min).map_or(0, |(min, free)| min - free + slack(min));
        match (over, short) {
            (0, 0) => None,
            (over, short) if over >= short => Some(Excess { bytes: over, spare: 0 }),
            // Others may have taken what is missing: then all of the cache would be of no use to them.
            (over, short) => Some(Excess { bytes: short, spare: if over > 0 { 0 } else { SPARE } }),
        }
    }

    /// Whether there is room for `bytes` that nobody has asked for. Never is there in what an eviction has just freed, or
    /// what was evicted would be fetched again at once.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        let below = self.max_bytes.is_none_or(|max| taken.saturating_add(bytes + 2 * slack(max)) <= max);
        let free = || self.free().map_or(true, |(min, free)| free >= (min + 2 * slack(min)).saturating_add(bytes));
        !self.in_trouble() && below && (self.min_free == MinFree::Bytes(0) || free())
    }

    /// Waits until nobody else evicts.
    pub(crate) fn turn(&self) -> MutexGuard<'_, Option<Instant>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of an eviction, if that wasn't done just before.
    pub(crate) fn tell_of_eviction(&self, turn: &mut Option<Instant>, bytes: u64) {
        if turn.is_none_or(|told| told.elapsed() >= TOLD) {
            *turn = Some(Instant::now());
            let (dir, total) = (self.root.display(), self.evicted());
            tracing::info!(%dir, bytes, total, "cold data were evicted from the cache");
        } else {
            tracing::debug!(bytes, "evicted");
        }
    }

    /// Whether writing fails.
    pub(crate) fn in_trouble(&self) -> bool {
        self.trouble.load(Ordering::Relaxed)
    }

    /// Writing below the root failed although everything was done: told once, until it works again.
    pub(crate) fn failed(&self, error: &io::Error) {
        if self.trouble.swap(true, Ordering::Relaxed) {
            return;
        }
        let dir = self.root.display();
        if is_full(error) {
            tracing::error!(
                "no room in {dir}, and nothing left to evict: containers are served without caching; free space on that \
                 disk, and it goes on by itself"
            );
        } else {
            tracing::error!(%error, "writing in {dir} fails: containers are served without caching; look at that disk");
        }
    }

    /// Writing works.
    pub(crate) fn worked(&self) {
        // Mostly it did before.
        if self.in_trouble() && self.trouble.swap(false, Ordering::Relaxed) {
            tracing::info!("writing in {} works again: what is fetched is cached", self.root.display());
        }
    }
}

/// What is evicted beyond a limit.
fn slack(limit: u64) -> u64 {
    (limit / 32).min(SLACK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(max_bytes: Option<u64>, min_free: MinFree) -> Room {
        Room::new("/".into(), &DeviceOptions { max_bytes, min_free, ..DeviceOptions::default() })
    }

    #[test]
    fn a_limit_is_looked_at_when_it_is_passed_and_eviction_goes_a_bit_below() {
        let room = room(Some(3200), MinFree::Bytes(0));
        room.counted(3000);
        assert!(!room.wrote(200) && room.excess().is_none());
        assert!(room.wrote(300));
        assert_eq!(room.excess(), Some(Excess { bytes: 400, spare: 0 }));
        room.gave_back(400, true);
        assert_eq!((room.excess(), room.evicted()), (None, 400));
        // Fill takes what others left, not what was evicted.
        assert!(!room.fits(1));
        room.gave_back(101, false);
        assert!(room.fits(1) && !room.fits(2));
    }

    #[test]
    fn without_limits_nothing_is_looked_at() {
        let room = room(None, MinFree::Bytes(0));
        assert!(!room.is_limited() && !room.wrote(u64::MAX / 4) && room.fits(1 << 60) && room.excess().is_none());
    }

    #[test]
    fn what_others_take_of_the_disk_counts() {
        let none = room(None, MinFree::Percent(100));
        assert!(none.wrote(LOOK) && !none.fits(1));
        let excess = none.excess().unwrap();
        assert!(excess.bytes > 1 << 20 && excess.spare == SPARE, "{excess:?}");
        let (min, free) = room(None, MinFree::Bytes(5)).free().unwrap();
        assert!(min == 5 && free > 0);
        assert!(room(None, MinFree::Bytes(1)).excess().is_none());
    }

    #[test]
    fn while_writing_fails_nothing_is_fetched_that_nobody_asked_for() {
        let room = room(None, MinFree::Bytes(0));
        room.failed(&io::ErrorKind::StorageFull.into());
        assert!(room.in_trouble() && !room.fits(1));
        room.worked();
        assert!(!room.in_trouble() && room.fits(1));
    }
}
