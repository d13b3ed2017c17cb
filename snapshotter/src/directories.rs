//! Directories of the ordinary snapshots: `ROOT/snapshots/ID/{fs,work}`.
use crate::{
    error::{Error, Result},
    overlay::Own,
    records::SnapshotId,
    snapshot::{Kind, Usage},
};
use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

/// Prefix of a directory that is being deleted.
const TRASH: &str = "trash-";

/// Owner of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// The owner of the directory `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(Error::io("stat parent", path))?;
        Ok(Self { uid: meta.uid(), gid: meta.gid() })
    }
}

/// The folder that holds a directory per ordinary snapshot.
#[derive(Clone, Debug)]
pub struct Directories {
    dir: PathBuf,
}

impl Directories {
    /// Opens or makes the folder `dir`.
    pub fn open(dir: PathBuf) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(Error::io("create", &dir))?;
        Ok(Self { dir })
    }

    /// Where the files of snapshot `id` are.
    pub fn upper(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(id.to_string()).join("fs")
    }

    /// The directories of snapshot `id`.
    pub fn own(&self, id: SnapshotId) -> Own {
        Own { upper: self.upper(id), work: self.dir.join(id.to_string()).join("work") }
    }

    /// Makes the directories of a new snapshot. What a change that never took place left under this number goes.
    ///
    /// As in containerd's overlayfs the files' root has mode 0755 and the owner of the parent's, whatever the
    /// parent's mode: a container sees the upper directory's.
    pub fn create(&self, id: SnapshotId, kind: Kind, owner: Option<Owner>) -> Result<()> {
        let dir = self.dir.join(id.to_string());
        remove_tree(&dir)?;
        make(&dir, 0o700)?;
        let upper = dir.join("fs");
        make(&upper, 0o755)?;
        if let Some(Owner { uid, gid }) = owner {
            chown(&upper, Some(uid), Some(gid)).map_err(Error::io("change the owner of", &upper))?;
        }
        if kind == Kind::Active {
            make(&dir.join("work"), 0o711)?;
        }
        // The record that comes next must not outlive the directory it speaks of.
        let sync = |path: &Path| fs::File::open(path)?.sync_all();
        sync(&dir).and_then(|()| sync(&self.dir)).map_err(Error::io("sync", &dir))
    }

    /// Makes `from`, a directory with the finished files of a new snapshot in `fs`, the directory of snapshot `id`.
    pub fn take(&self, id: SnapshotId, from: &Path) -> Result<()> {
        let dir = self.dir.join(id.to_string());
        remove_tree(&dir)?;
        fs::rename(from, &dir).map_err(Error::io("rename", from))?;
        let synced = fs::File::open(&self.dir).and_then(|folder| folder.sync_all());
        synced.map_err(Error::io("sync", &self.dir))
    }

    /// Deletes the directories of snapshot `id`, if there are any.
    pub fn remove(&self, id: SnapshotId) -> Result<()> {
        remove_tree(&self.dir.join(id.to_string()))
    }

    /// Sets aside every directory whose snapshot isn't in `known`; [`Self::empty_trash`] deletes them. The caller
    /// sees to it that no snapshot is made meanwhile.
    pub fn set_orphans_aside(&self, known: &HashSet<SnapshotId>) -> Result<()> {
        for name in self.names()? {
            if name.starts_with(TRASH) || name.parse().is_ok_and(|id| known.contains(&id)) {
                continue;
            }
            let (from, to) = (self.dir.join(&name), self.dir.join(format!("{TRASH}{name}")));
            remove_tree(&to)?;
            match fs::rename(&from, &to) {
                Ok(()) => tracing::info!(directory = %from.display(), "deleting an orphaned snapshot directory"),
                // A removal under way was quicker.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::Io { action: "rename", path: from, source: error }),
            }
        }
        Ok(())
    }

    /// Deletes what was set aside.
    pub fn empty_trash(&self) -> Result<()> {
        for name in self.names()?.into_iter().filter(|name| name.starts_with(TRASH)) {
            remove_tree(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// Disk blocks and inodes of the files of snapshot `id`; see [`usage_of`].
    pub fn usage(&self, id: SnapshotId) -> Result<Usage> {
        usage_of(&self.upper(id))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(Error::io("list", &self.dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// Disk blocks and inodes of the files below `root`, hard links counted once. Files that vanish meanwhile, as they do
/// below a running container, aren't counted.
pub fn usage_of(root: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == ErrorKind::NotFound && path != root => continue,
            Err(error) => return Err(Error::Io { action: "stat", path, source: error }),
        };
        let directory = meta.is_dir();
        if !directory && meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
            continue;
        }
        usage.size += meta.blocks() * 512;
        usage.inodes += 1;
        if directory {
            match fs::read_dir(&path) {
                Ok(entries) => pending.extend(entries.flatten().map(|entry| entry.path())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::Io { action: "list", path, source: error }),
            }
        }
    }
    Ok(usage)
}

fn make(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir(path).map_err(Error::io("create", path))?;
    // Not by mkdir(2), which the umask would thin.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("change the mode of", path))
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::Io { action: "delete", path: path.into(), source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories() -> (tempfile::TempDir, Directories) {
        let temp = tempfile::tempdir().unwrap();
        let directories = Directories::open(temp.path().join("snapshots")).unwrap();
        (temp, directories)
    }

    #[test]
    fn only_active_snapshots_have_a_work_directory() {
        let (_temp, directories) = directories();
        directories.create(1, Kind::Active, None).unwrap();
        directories.create(2, Kind::View, None).unwrap();
        assert_eq!(fs::metadata(directories.upper(1)).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(directories.own(1).work).unwrap().mode() & 0o7777, 0o711);
        assert!(!directories.own(2).work.exists());
    }

    #[test]
    fn creating_replaces_what_an_undone_change_left() {
        let (_temp, directories) = directories();
        directories.create(1, Kind::Active, None).unwrap();
        fs::write(directories.upper(1).join("left"), b"over").unwrap();
        directories.create(1, Kind::View, None).unwrap();
        assert_eq!(fs::read_dir(directories.upper(1)).unwrap().count(), 0);
        assert!(!directories.own(1).work.exists());
    }

    #[test]
    fn the_sweep_deletes_orphans_only() {
        let (temp, directories) = directories();
        for id in 1..=3 {
            directories.create(id, Kind::Active, None).unwrap();
        }
        fs::create_dir(temp.path().join("snapshots/new-half")).unwrap();
        directories.set_orphans_aside(&HashSet::from([2])).unwrap();
        directories.empty_trash().unwrap();
        assert_eq!(directories.names().unwrap(), ["2"]);
    }

    #[test]
    fn usage_counts_blocks_and_hard_links_once() {
        let (_temp, directories) = directories();
        directories.create(1, Kind::Active, None).unwrap();
        let empty = directories.usage(1).unwrap();
        assert_eq!(empty.inodes, 1);
        let upper = directories.upper(1);
        fs::create_dir(upper.join("d")).unwrap();
        fs::write(upper.join("d/a"), vec![1; 65536]).unwrap();
        fs::hard_link(upper.join("d/a"), upper.join("b")).unwrap();
        let usage = directories.usage(1).unwrap();
        assert_eq!(usage.inodes, 3);
        let bytes = usage.size - empty.size;
        assert!((65536..2 * 65536).contains(&bytes), "{bytes}");
        assert!(matches!(directories.usage(9), Err(Error::Io { .. })));
    }
}
