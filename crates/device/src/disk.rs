//! What the files of a node's store ask of a disk: an edge at which tests put a disk whose power fails.
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use std::{
    fs::{self, DirBuilder, File},
    io,
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

/// A disk with directories. What changes a name is durable once its directory was synced, what changes a file once that
/// was; until then a power cut may take any part of it.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;

    /// Makes a directory and those above it, for their owner alone, unless they are there. Whether it made one.
    fn make_dir(&self, dir: &Path) -> io::Result<bool>;
    /// Opens a file to read and write it, made empty if it is missing, for its owner alone.
    fn open(&self, path: &Path) -> io::Result<Self::File>;
    /// As [`open`](Disk::open); what the file had is gone.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// All bytes of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// What is known of a file, links not followed.
    fn facts(&self, path: &Path) -> io::Result<FileFacts>;
    /// The names in a directory that are text.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Gives a file another name, in the place of what had that.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Its bytes, holes counted.
    pub len: u64,
    /// When it was changed last, or is said to have been.
    pub modified: SystemTime,
}

/// An open file of a [`Disk`].
pub trait DiskFile: Send + Sync + 'static {
    /// Waits until nobody else has the file locked, and locks it until it is closed.
    fn lock(&self) -> io::Result<()>;
    /// Its bytes, holes counted.
    fn size(&self) -> io::Result<u64>;
    /// Cuts it or extends it by a hole.
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Says when it was changed last.
    fn set_modified(&self, time: SystemTime) -> io::Result<()>;
    /// Fills `buf` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the bytes durable that were written, cut off and punched out: fdatasync(2).
    fn sync(&self) -> io::Result<()>;
    /// Gives back the space of these bytes, which read as zeros from then on; the size stays.
    fn punch(&self, bytes: Range<u64>) -> io::Result<()>;
    /// Where data begin, from `from` on; `None` if only a hole is left.
    fn next_data(&self, from: u64) -> io::Result<Option<u64>>;
    /// Where a hole begins, from `from` on; the end of the file counts as one. `None` if `from` lies behind it.
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>>;
}

/// The machine's own disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    type File = File;

    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        if dir.is_dir() {
            return Ok(false);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(true)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn facts(&self, path: &Path) -> io::Result<FileFacts> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(FileFacts { len: metadata.len(), modified: metadata.modified()? })
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn lock(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(self, FlockOperation::LockExclusive)?)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn set_modified(&self, time: SystemTime) -> io::Result<()> {
        File::set_modified(self, time)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn punch(&self, bytes: Range<u64>) -> io::Result<()> {
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(self, how, bytes.start, bytes.end - bytes.start)?)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        found(rustix::fs::seek(self, SeekFrom::Data(from)))
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        found(rustix::fs::seek(self, SeekFrom::Hole(from)))
    }
}

/// What lseek(2) found; ENXIO says that there is nothing of the kind.
fn found(at: rustix::io::Result<u64>) -> io::Result<Option<u64>> {
    match at {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
