//! A device on disk: a sparse data file and the presence file that tells which of its blocks are real.
use crate::{bitmap::Bitmap, presence::Identity};
use clipper_format::span::BLOCK;
use rustix::fs::{FlockOperation, SeekFrom};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

const DATA: &str = "data";
const PRESENCE: &str = "presence";
const PRESENCE_NEW: &str = "presence.new";

/// The data file and its presence.
///
/// A block's bit is set in memory after its bytes are written, and reaches the presence file only after fdatasync of
/// the data: a bit on disk never speaks of bytes that a power cut could take. Should the data file be cut short by
/// somebody, everything is forgotten and fetched again.
pub(crate) struct Storage {
    dir: PathBuf,
    data: File,
    identity: Identity,
    present: Bitmap,
    /// Set when the presence file is behind the bitmap.
    dirty: AtomicBool,
    /// Set when the directory has been removed: nothing is recorded any more.
    removed: AtomicBool,
    /// Counts how often everything was forgotten, so that a reader notices that it happened meanwhile.
    epoch: AtomicU64,
    /// Held while writing data. Taken after `flushing`.
    writing: Mutex<()>,
    /// Held while the presence file is replaced.
    flushing: Mutex<()>,
}

impl Storage {
    /// Opens or creates the device in `dir`. A presence file that can't be believed, or data that aren't what it
    /// says, are warned of and start empty. Waits while another handle to the same device is being closed.
    pub(crate) fn open(dir: PathBuf, identity: Identity) -> io::Result<Self> {
        // A layer may hold what not everybody on the node is to read.
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let data =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(DATA))?;
        rustix::fs::flock(&data, FlockOperation::LockExclusive)?;
        let believed = believe(&dir, &identity, data.metadata()?.len());
        if believed.is_none() {
            forget(&dir)?;
            data.set_len(0)?;
            data.set_len(identity.size)?;
        }
        let present = Bitmap::new(identity.blocks(), &believed.unwrap_or_default());
        let storage = Self {
            dir,
            data,
            identity,
            present,
            dirty: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            writing: Mutex::new(()),
            flushing: Mutex::new(()),
        };
        storage.clear_holes()?;
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
        self.present.all(blocks(bytes))
    }

    /// Device bytes that are here.
    pub(crate) fn cached(&self) -> u64 {
        (self.present.count() * BLOCK).min(self.identity.size)
    }

    /// Whether everything is here.
    pub(crate) fn complete(&self) -> bool {
        self.present.count() == self.present.len()
    }

    /// Whether something is known that the presence file doesn't tell.
    pub(crate) fn dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Fills `buf` from `offset`, if all of that is here: `Some` of the bytes read, fewer than asked for only at the
    /// end of the device. `None` if a block is missing.
    pub(crate) fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let len = self.identity.size.saturating_sub(offset).min(buf.len() as u64);
        if len == 0 {
            return Ok(Some(0));
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        if !self.has(offset..offset + len) {
            return Ok(None);
        }
        let len = len as usize;
        match self.data.read_exact_at(&mut buf[..len], offset) {
            Ok(()) if self.epoch.load(Ordering::Acquire) == epoch => Ok(Some(len)),
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                self.start_over(epoch)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
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
        for _ in 0..3 {
            let epoch = self.epoch.load(Ordering::Acquire);
            let writing = lock(&self.writing);
            if self.intact()? {
                self.data.write_all_at(bytes, offset)?;
                if self.intact()? {
                    self.present.set(offset / BLOCK..end.div_ceil(BLOCK));
                    self.dirty.store(true, Ordering::Release);
                    return Ok(());
                }
            }
            drop(writing);
            self.start_over(epoch)?;
        }
        Err(io::Error::other("the data file keeps changing its size under our hands"))
    }

    /// Makes what is present durable: data first, then the presence file. Blocks; costs nothing if nothing is new.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let _flushing = lock(&self.flushing);
        if self.removed.load(Ordering::Acquire) || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let result = self.flush_now();
        if result.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        result
    }

    fn flush_now(&self) -> io::Result<()> {
        let words = self.present.snapshot();
        if let Err(error) = rustix::fs::fdatasync(&self.data) {
            // The kernel may have dropped dirty pages: only what was durable before can be relied on.
            let durable = fs::read(self.dir.join(PRESENCE)).ok().and_then(|file| self.identity.decode(&file).ok());
            self.epoch.fetch_add(1, Ordering::AcqRel);
            self.present.retain(&durable.unwrap_or_default());
            return Err(error.into());
        }
        let new = self.dir.join(PRESENCE_NEW);
        let file = File::create(&new)?;
        file.write_all_at(&self.identity.encode(&words), 0)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(PRESENCE))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Records nothing from now on, because the directory is going away.
    pub(crate) fn set_removed(&self) {
        self.removed.store(true, Ordering::Release);
        drop(lock(&self.flushing));
    }

    /// Whether the directory is going away.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn intact(&self) -> io::Result<bool> {
        Ok(self.data.metadata()?.len() == self.identity.size)
    }

    /// Forgets everything, unless another thread has since `epoch`, because the data file isn't what we wrote.
    fn start_over(&self, epoch: u64) -> io::Result<()> {
        let _flushing = lock(&self.flushing);
        let _writing = lock(&self.writing);
        if self.epoch.load(Ordering::Acquire) != epoch {
            return Ok(());
        }
        tracing::error!(file = %self.path().display(), "cached data were truncated by somebody: fetching them again");
        self.present.clear(0..self.present.len());
        self.epoch.fetch_add(1, Ordering::AcqRel);
        if !self.removed.load(Ordering::Acquire) {
            forget(&self.dir)?;
        }
        self.data.set_len(self.identity.size)
    }

    /// Clears the bits of blocks that were never written or punched out: they would read as zeros.
    fn clear_holes(&self) -> io::Result<()> {
        let mut lost = 0;
        let mut from = 0;
        while from < self.identity.size {
            let hole = match rustix::fs::seek(&self.data, SeekFrom::Hole(from)) {
                Ok(hole) => hole,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            if hole >= self.identity.size {
                break;
            }
            let data = match rustix::fs::seek(&self.data, SeekFrom::Data(hole)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => self.identity.size,
                Err(error) => return Err(error.into()),
            };
            lost += self.present.clear(blocks(hole..data));
            from = data.max(hole + 1);
        }
        if lost > 0 {
            tracing::warn!(file = %self.path().display(), blocks = lost, "cached data have holes: fetching them again");
            self.dirty.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// Blocks that these bytes touch.
fn blocks(bytes: Range<u64>) -> Range<u64> {
    bytes.start / BLOCK..bytes.end.div_ceil(BLOCK)
}

/// The bits of the presence file in `dir`, if it and the length of the data file can be believed.
fn believe(dir: &Path, identity: &Identity, data_len: u64) -> Option<Vec<u64>> {
    let path = dir.join(PRESENCE);
    let distrust = |why: &dyn std::fmt::Display| {
        tracing::warn!(file = %path.display(), "starting with an empty cache: {why}");
        None
    };
    let file = match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return distrust(&error),
        Ok(metadata) if metadata.len() != identity.file_len() => {
            return distrust(&"it is torn or belongs to another device");
        }
        Ok(_) => fs::read(&path),
    };
    if data_len != identity.size {
        return distrust(&format_args!("the data file has {data_len} bytes instead of {}", identity.size));
    }
    match file.map_err(|error| error.to_string()).and_then(|file| identity.decode(&file).map_err(|e| e.to_string())) {
        Ok(words) => Some(words),
        Err(why) => distrust(&why),
    }
}

/// Removes the presence file for good.
fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(PRESENCE)) {
        Ok(()) => File::open(dir)?.sync_all(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Disk space that the device in `dir` takes, in bytes.
pub(crate) fn usage(dir: &Path) -> u64 {
    [DATA, PRESENCE].iter().filter_map(|name| fs::metadata(dir.join(name)).ok()).map(|m| m.blocks() * 512).sum()
}

/// A poisoned lock guards no half-done state here: what it protects is on disk and in atomics.
fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::Digest;

    const SIZE: u64 = 40 * BLOCK + 100;

    fn open(dir: &Path) -> Storage {
        let identity = Identity { device: Digest::of(b"layer"), fingerprint: [1; 32], size: SIZE };
        Storage::open(dir.join("device"), identity).unwrap()
    }

    fn pattern(offset: u64, len: u64) -> Vec<u8> {
        (offset..offset + len).map(|i| (i % 251) as u8 + 1).collect()
    }

    fn put(storage: &Storage, block: u64, count: u64) {
        let len = (count * BLOCK).min(SIZE - block * BLOCK);
        storage.write(block * BLOCK, &pattern(block * BLOCK, len)).unwrap();
    }

    fn get(storage: &Storage, offset: u64, len: usize) -> Option<Vec<u8>> {
        let mut buf = vec![0; len];
        let n = storage.try_read(offset, &mut buf).unwrap()?;
        buf.truncate(n);
        Some(buf)
    }

    #[test]
    fn reads_what_was_written_short_at_the_end_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        put(&storage, 2, 2);
        put(&storage, 39, 2);
        assert_eq!(get(&storage, 2 * BLOCK + 1, 8190), Some(pattern(2 * BLOCK + 1, 8190)));
        assert_eq!(get(&storage, 2 * BLOCK, 8193), None);
        assert_eq!(get(&storage, SIZE - 10, 100), Some(pattern(SIZE - 10, 10)));
        assert_eq!(get(&storage, SIZE, 100), Some(vec![]));
        assert_eq!(get(&storage, u64::MAX, 100), Some(vec![]));
        assert_eq!(get(&storage, 0, 0), Some(vec![]));
        assert_eq!(storage.cached(), 4 * BLOCK);
        assert!(storage.write(1, &[0; 4096]).is_err() && storage.write(0, &[0; 10]).is_err());
        assert!(storage.write(40 * BLOCK, &[0; 101]).is_err());
    }

    #[test]
    fn presence_survives_closing_only_if_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        put(&storage, 0, 1);
        storage.flush().unwrap();
        put(&storage, 1, 1);
        drop(storage);
        let storage = open(dir.path());
        assert_eq!(get(&storage, 0, 4096), Some(pattern(0, 4096)));
        assert_eq!(get(&storage, 4096, 1), None);
    }

    #[test]
    fn a_torn_or_foreign_presence_file_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device/presence");
        let storage = open(dir.path());
        put(&storage, 0, 41);
        storage.flush().unwrap();
        drop(storage);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[90] ^= 1;
        let foreign = Identity { device: Digest::of(b"x"), fingerprint: [1; 32], size: SIZE }.encode(&[u64::MAX]);
        for bad in [&good[..good.len() - 1], &[][..], &flipped, &foreign] {
            fs::write(&path, bad).unwrap();
            let storage = open(dir.path());
            assert_eq!((storage.cached(), get(&storage, 0, 1)), (0, None));
            assert!(!path.exists(), "it must not be believed by the next one either");
            put(&storage, 0, 41);
            storage.flush().unwrap();
        }
        assert_eq!(open(dir.path()).cached(), SIZE);
    }

    #[test]
    fn truncated_data_are_never_read_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("device/data");
        let cut = |len| File::options().write(true).open(&data).unwrap().set_len(len).unwrap();
        let storage = open(dir.path());
        put(&storage, 0, 41);
        storage.flush().unwrap();
        cut(5000);
        assert_eq!(get(&storage, 0, 4096), Some(pattern(0, 4096)));
        assert_eq!(get(&storage, 4096, 4096), None);
        assert_eq!((storage.cached(), get(&storage, 0, 4096)), (0, None));
        put(&storage, 7, 1);
        assert_eq!((storage.cached(), get(&storage, 7 * BLOCK, 4096)), (4096, Some(pattern(7 * BLOCK, 4096))));
        // Noticed by a write...
        cut(0);
        put(&storage, 8, 1);
        assert_eq!((get(&storage, 7 * BLOCK, 1), get(&storage, 8 * BLOCK, 1)), (None, Some(pattern(8 * BLOCK, 1))));
        storage.flush().unwrap();
        drop(storage);
        // ... and while nobody had it open, even if it was extended again.
        cut(8 * BLOCK);
        assert_eq!(open(dir.path()).cached(), 0);
        let storage = open(dir.path());
        put(&storage, 8, 2);
        storage.flush().unwrap();
        drop(storage);
        cut(9 * BLOCK);
        cut(SIZE);
        let storage = open(dir.path());
        assert_eq!(get(&storage, 8 * BLOCK, 4096), Some(pattern(8 * BLOCK, 4096)));
        assert_eq!(get(&storage, 9 * BLOCK, 4096), None);
    }

    #[test]
    fn nothing_is_recorded_after_removal() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        put(&storage, 0, 1);
        storage.set_removed();
        storage.flush().unwrap();
        assert!(!dir.path().join("device/presence").exists());
        assert!(usage(&dir.path().join("device")) >= 4096);
    }
}
