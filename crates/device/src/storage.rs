//! A device on disk: a sparse data file and the presence file that tells which of its blocks are real.
mod evict;
#[cfg(test)]
mod power;
mod record;
#[cfg(test)]
mod tests;

use crate::{
    bitmap::Bitmap,
    disk::{Disk, DiskFile, LocalDisk},
    presence::Identity,
    uses::{Moment, Uses},
};
use clipper_format::span::BLOCK;
use record::Recorded;
pub(crate) use record::{PRESENCE, read_presence};
use std::{
    fs,
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};

const DATA: &str = "data";
/// How often a read or a write that others get in the way of is tried again.
const TRIES: usize = 16;

/// The data file and its presence.
///
/// A block's bit is set in memory after its bytes are written, and reaches the presence file only after fdatasync of
/// the data: a bit on disk never speaks of bytes that a power cut could take. What is evicted goes the other way: the bit
/// in memory, the bit on disk, the bytes. Should the data file be cut short by somebody, everything is forgotten and
/// fetched again.
pub(crate) struct Storage<D: Disk = LocalDisk> {
    disk: D,
    dir: PathBuf,
    data: D::File,
    identity: Identity,
    present: Bitmap,
    uses: Uses,
    /// Set when the presence file is behind the bitmap.
    dirty: AtomicBool,
    /// Set when the directory has been removed: nothing is recorded any more.
    removed: AtomicBool,
    /// Counts how often something was forgotten, so that a reader notices that it happened meanwhile.
    epoch: AtomicU64,
    /// Counts how often everything was.
    restarts: AtomicU64,
    /// Held while the presence file is replaced.
    recorded: Mutex<Recorded>,
    /// Held while data are written or punched out. Taken after `recorded`.
    writing: Mutex<()>,
    /// Device bytes that readers are about to read. Taken after `writing`.
    held: Mutex<Vec<Range<u64>>>,
}

/// Device bytes that aren't evicted until this is dropped.
pub(crate) struct Held<'a> {
    held: &'a Mutex<Vec<Range<u64>>>,
    bytes: Range<u64>,
}

impl<D: Disk> Storage<D> {
    /// Opens or creates the device in `dir`. A presence file that can't be believed, or data that aren't what it
    /// says, are warned of and start empty. Waits while another handle to the same device is being closed.
    pub(crate) fn open(disk: D, dir: PathBuf, identity: Identity) -> io::Result<Self> {
        // A layer may hold what not everybody on the node is to read: all of it is made for root only.
        disk.make_dir(&dir)?;
        let data = disk.open(&dir.join(DATA))?;
        data.lock()?;
        let believed = record::believe(&disk, &dir, &identity, data.size()?);
        if believed.is_none() {
            record::forget(&disk, &dir)?;
            data.set_size(0)?;
            data.set_size(identity.size)?;
        }
        let (words, last_use) = believed.unwrap_or_default();
        let storage = Self {
            disk,
            dir,
            data,
            identity,
            present: Bitmap::new(identity.blocks(), &words),
            uses: Uses::new(identity.size, last_use),
            dirty: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            recorded: Mutex::new(Recorded::new(&identity, &words, last_use)),
            writing: Mutex::new(()),
            held: Mutex::default(),
        };
        storage.tidy()?;
        Ok(storage)
    }

    /// Bytes of the device.
    pub(crate) fn size(&self) -> u64 {
        self.identity.size
    }

    /// The data file's path.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(DATA)
    }

    /// Whether all blocks of these device bytes are here.
    pub(crate) fn has(&self, bytes: Range<u64>) -> bool {
        self.present.all(blocks(&bytes))
    }

    /// Device bytes that are here.
    pub(crate) fn cached(&self) -> u64 {
        (self.present.count() * BLOCK).min(self.identity.size)
    }

    /// Bytes of disk that what is here of these device bytes takes.
    pub(crate) fn cached_of(&self, bytes: &Range<u64>) -> u64 {
        bytes_in(&self.present, bytes)
    }

    /// Whether everything is here.
    pub(crate) fn complete(&self) -> bool {
        self.present.count() == self.present.len()
    }

    /// Notes that these device bytes are used.
    pub(crate) fn used(&self, bytes: &Range<u64>) {
        self.uses.note(bytes);
    }

    /// When any of these device bytes were last used.
    pub(crate) fn last_use(&self, bytes: &Range<u64>) -> Moment {
        self.uses.last(bytes)
    }

    /// When the device was last used.
    pub(crate) fn latest_use(&self) -> Moment {
        self.uses.latest()
    }

    /// Keeps these device bytes from being evicted while somebody is about to read them.
    pub(crate) fn hold(&self, bytes: Range<u64>) -> Held<'_> {
        lock(&self.held).push(bytes.clone());
        Held { held: &self.held, bytes }
    }

    /// Fills `buf` from `offset`, if all of that is here: `Some` of the bytes read, fewer than asked for only at the
    /// end of the device. `None` if a block is missing.
    pub(crate) fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let len = self.identity.size.saturating_sub(offset).min(buf.len() as u64);
        if len == 0 {
            return Ok(Some(0));
        }
        let bytes = offset..offset + len;
        // More than once only if something of the device was evicted meanwhile, perhaps this.
        for _ in 0..TRIES {
            let epoch = self.epoch.load(Ordering::Acquire);
            let restarts = self.restarts.load(Ordering::Acquire);
            if !self.has(bytes.clone()) {
                return Ok(None);
            }
            match self.data.read_at(&mut buf[..len as usize], offset) {
                Ok(()) => {
                    // What was read isn't looked at again: the epoch must be.
                    fence(Ordering::Acquire);
                    if self.epoch.load(Ordering::Acquire) == epoch {
                        return Ok(Some(len as usize));
                    }
                }
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.start_over(restarts)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Writes verified bytes and marks their blocks present. `offset` is on a block boundary, and so is the end
    /// unless it is the device's.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.identity.size);
        let Some(end) =
            end.filter(|end| offset.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || *end == self.identity.size))
        else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not whole blocks of the device"));
        };
        for _ in 0..TRIES {
            let restarts = self.restarts.load(Ordering::Acquire);
            let writing = lock(&self.writing);
            let blocks = offset / BLOCK..end.div_ceil(BLOCK);
            if self.intact()? {
                if let Err(error) = self.data.write_at(bytes, offset) {
                    // What was written on a full disk takes room and is of no use.
                    for run in self.present.runs(blocks, false) {
                        let _ = self.data.punch(run.start * BLOCK..run.end * BLOCK);
                    }
                    return Err(error);
                }
                if self.intact()? {
                    self.present.set(blocks);
                    self.dirty.store(true, Ordering::Release);
                    return Ok(());
                }
            }
            drop(writing);
            self.start_over(restarts)?;
        }
        Err(io::Error::other("the data file keeps changing its size under our hands"))
    }

    /// Records nothing from now on, because the directory is going away.
    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
        drop(lock(&self.recorded));
    }

    /// Whether the directory is going away.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn intact(&self) -> io::Result<bool> {
        Ok(self.data.size()? == self.identity.size)
    }

    /// Forgets everything, unless another thread has since there were so many `restarts`, because the data file isn't
    /// what we wrote.
    fn start_over(&self, restarts: u64) -> io::Result<()> {
        let recorded = lock(&self.recorded);
        let _writing = lock(&self.writing);
        if self.restarts.load(Ordering::Acquire) != restarts {
            return Ok(());
        }
        tracing::error!(file = %self.path().display(), "cached data were truncated by somebody: fetching them again");
        self.present.clear(0..self.present.len());
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.restarts.fetch_add(1, Ordering::AcqRel);
        recorded.durable.assign(&[]);
        if !self.is_removed() {
            record::forget(&self.disk, &self.dir)?;
            recorded.spoken_of.assign(&[]);
        }
        self.data.set_size(self.identity.size)
    }

    /// Clears the bits of blocks that were never written or punched out, which would read as zeros; and gives back the
    /// space of blocks without a bit, which were on their way when the last process ended.
    fn tidy(&self) -> io::Result<()> {
        let (mut lost, mut unknown, mut from) = (0, 0, 0);
        while from < self.identity.size {
            let data = self.data.next_data(from)?.unwrap_or(self.identity.size);
            if from < data {
                lost += self.present.clear(blocks(&(from..data)));
            }
            if data >= self.identity.size {
                break;
            }
            let hole = self.data.next_hole(data)?.unwrap_or(self.identity.size);
            for run in self.present.runs(blocks(&(data..hole)), false) {
                unknown += run.end - run.start;
                // Where that doesn't work the space is used when the blocks come again.
                let _ = self.data.punch(run.start * BLOCK..run.end * BLOCK);
            }
            from = hole.max(data + 1);
        }
        if lost > 0 {
            tracing::warn!(file = %self.path().display(), blocks = lost, "cached data have holes: fetching them again");
            lock(&self.recorded).durable.retain(&self.present.snapshot());
            self.dirty.store(true, Ordering::Release);
        }
        if unknown > 0 {
            tracing::debug!(file = %self.path().display(), blocks = unknown, "data that weren't recorded are dropped");
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = lock(self.held);
        if let Some(at) = held.iter().position(|bytes| *bytes == self.bytes) {
            held.swap_remove(at);
        }
    }
}

/// Blocks that these bytes touch.
fn blocks(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}

/// Bytes of disk that the blocks of these device bytes take that are `present`.
pub(crate) fn bytes_in(present: &Bitmap, bytes: &Range<u64>) -> u64 {
    present.count_in(blocks(bytes)) * BLOCK
}

/// Disk space that the device in `dir` takes, in bytes.
pub(crate) fn usage(dir: &Path) -> u64 {
    [DATA, PRESENCE].iter().filter_map(|name| fs::metadata(dir.join(name)).ok()).map(|m| m.blocks() * 512).sum()
}

/// A poisoned lock guards no half-done state here: what it protects is on disk and in atomics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
