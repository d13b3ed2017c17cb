//! Files that appear whole or not at all.
use super::StoreError;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
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
pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Opens the directory, made if it is missing, and removes what an interrupted write left.
    pub(super) fn open(path: PathBuf) -> Result<Self, StoreError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| StoreError::Disk { path: path.clone(), doing: "making the directory", source })?;
        let directory = Self { path };
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
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(&self.path)? {
                names.extend(entry?.file_name().into_string());
            }
            Ok(names)
        };
        list().map_err(|source| StoreError::Disk { path: self.path.clone(), doing: "listing", source })
    }

    /// Opens file `name` for reading; `None` if it isn't there.
    pub(super) fn read(&self, name: &str) -> Result<Option<File>, StoreError> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Disk { path, doing: "opening", source }),
        }
    }

    /// Writes `bytes` as file `name`, which appears whole or not at all.
    pub(super) fn write(&self, name: &str, bytes: &[u8], durability: Durability) -> Result<(), StoreError> {
        let partial = self.path(&format!("{name}{PARTIAL}"));
        let path = self.path(name);
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(bytes)?;
            if durability == Durability::Synced {
                file.sync_all()?;
            }
            fs::rename(&partial, &path)?;
            if durability == Durability::Synced {
                File::open(&self.path)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|source| {
            // Best effort: the next start removes it otherwise.
            let _ = fs::remove_file(&partial);
            StoreError::Disk { path, doing: "writing", source }
        })
    }

    /// Removes file `name` and tells how many bytes it had; 0 if it wasn't there.
    pub(super) fn remove(&self, name: &str) -> Result<u64, StoreError> {
        let path = self.path(name);
        let remove = |path: &Path| -> io::Result<u64> {
            let size = fs::symlink_metadata(path)?.len();
            fs::remove_file(path)?;
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
    use std::io::Read as _;

    #[test]
    fn a_file_is_replaced_whole_and_leftovers_of_interrupted_writes_go() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::open(root.path().join("a/b")).unwrap();
        assert!(directory.read("x").unwrap().is_none());
        directory.write("x", b"one", Durability::Synced).unwrap();
        directory.write("x", b"two!", Durability::Rebuildable).unwrap();
        let mut text = String::new();
        directory.read("x").unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "two!");

        fs::write(directory.path("y.partial"), b"half").unwrap();
        let directory = Directory::open(root.path().join("a/b")).unwrap();
        assert_eq!(directory.names().unwrap(), ["x"]);
        assert_eq!(directory.remove("x").unwrap(), 4);
        assert_eq!(directory.remove("x").unwrap(), 0);
    }

    #[test]
    fn a_disk_that_refuses_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), b"").unwrap();
        let error = Directory::open(root.path().join("file/dir")).err().unwrap();
        assert!(error.to_string().contains("file/dir: making the directory"), "{error}");
    }
}
