//! Files that appear whole or not at all.
use super::StoreError;
use clipper_device::disk::{Disk, DiskFile as _, LocalDisk};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Ending of files that were being written when the process ended; removed when their directory is opened.
const PARTIAL: &str = ".partial";

/// Whether a new file must outlive a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// On stable storage before it gets its name.
    Synced,
    /// May be torn by a power cut: its reader notices and it can be made again from what is on this disk.
    Rebuildable,
}

/// A directory of our own, only for root.
pub(super) struct Directory<D: Disk = LocalDisk> {
    disk: D,
    path: PathBuf,
}

impl<D: Disk> Directory<D> {
    /// Opens the directory, made if it is missing, and removes what an interrupted write left.
    pub(super) fn open(disk: D, path: PathBuf) -> Result<Self, StoreError> {
        let make = || match (disk.make_dir(&path)?, path.parent()) {
            (true, Some(above)) => disk.sync_dir(above),
            _ => Ok(()),
        };
        make().map_err(|source| StoreError::Disk { path: path.clone(), doing: "making the directory", source })?;
        let directory = Self { disk, path };
        for name in directory.names()? {
            if name.ends_with(PARTIAL) {
                directory.remove(&name)?;
            }
        }
        Ok(directory)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names of all files whose names are text; nothing of ours has another.
    pub(super) fn names(&self) -> Result<Vec<String>, StoreError> {
        let names = self.disk.names(&self.path);
        names.map_err(|source| StoreError::Disk { path: self.path.clone(), doing: "listing", source })
    }

    /// The bytes of file `name`; `None` if it isn't there.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(name);
        match self.disk.read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Disk { path, doing: "reading", source }),
        }
    }

    /// Writes `bytes` as file `name`, which appears whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8], durability: Durability) -> Result<(), StoreError> {
        let partial = self.path(&format!("{name}{PARTIAL}"));
        let path = self.path(name);
        let write = || -> io::Result<()> {
            let file = self.disk.create(&partial)?;
            file.write_at(bytes, 0)?;
            if durability == Durability::Synced {
                file.sync()?;
            }
            self.disk.rename(&partial, &path)?;
            if durability == Durability::Synced {
                self.disk.sync_dir(&self.path)?;
            }
            Ok(())
        };
        write().map_err(|source| {
            // Best effort: the next start removes it otherwise.
            let _ = self.disk.remove(&partial);
            StoreError::Disk { path, doing: "writing", source }
        })
    }

    /// Removes file `name` and tells how many bytes it had; 0 if it wasn't there.
    pub(super) fn remove(&self, name: &str) -> Result<u64, StoreError> {
        let path = self.path(name);
        let remove = |path: &Path| -> io::Result<u64> {
            let size = self.disk.facts(path)?.len;
            self.disk.remove(path)?;
            Ok(size)
        };
        match remove(&path) {
            Ok(size) => Ok(size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(StoreError::Disk { path, doing: "removing", source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_replaced_whole_and_leftovers_of_interrupted_writes_go() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(LocalDisk, root.path().join("a/b")).unwrap();
        assert!(directory.read("x").unwrap().is_none());
        directory.write("x", b"one", Durability::Synced).unwrap();
        directory.write("x", b"two!", Durability::Rebuildable).unwrap();
        assert_eq!(directory.read("x").unwrap().unwrap(), b"two!");

        fs::write(directory.path("y.partial"), b"half").unwrap();
        let directory = Directory::open(LocalDisk, root.path().join("a/b")).unwrap();
        assert_eq!(directory.names().unwrap(), ["x"]);
        assert_eq!(directory.remove("x").unwrap(), 4);
        assert_eq!(directory.remove("x").unwrap(), 0);
    }

    #[test]
    fn a_disk_that_refuses_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"").unwrap();
        let error = Directory::open(LocalDisk, root.path().join("file/dir")).err().unwrap();
        assert!(error.to_string().contains("file/dir: making the directory"), "{error}");
    }
}
