//! Lower directories for containers in user namespaces: each shown once more, with the owners that the namespace has.
//!
//! Clipper maps them itself, instead of telling containerd to, because containerd can do it only from 2.0 on, and because
//! an error comes here when the container is prepared, and names its cause.
use crate::{
    error::{Error, Result, with_causes},
    snapshot::Labels,
    trees::{make_directory, make_mount_point, remove_directory},
};
use clipper_format::Digest;
use clipper_mount::{IdMap, detach_stale, mount_idmapped, shows};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{RwLock, RwLockReadGuard},
    task::spawn_blocking,
};

/// Labels with the IDs of the user namespace that a container is going to have: `INSIDE:OUTSIDE:COUNT`, several with
/// commas between (containerd, `snapshots.LabelSnapshotUIDMapping`).
const LABEL_USERS: &str = "containerd.io/snapshot/uidmapping";
const LABEL_GROUPS: &str = "containerd.io/snapshot/gidmapping";
/// Hex digits of a mapping's name in its path: paths go into mount options, which have to fit a page.
const NAME_DIGITS: usize = 12;
/// What the names of directories of snapshots, and of mounted trees, begin with.
const SNAPSHOT: &str = "s";
const TREE: &str = "m";

/// The mounts below `ROOT/mapped/MAPPING`.
///
/// What is there is all that is known of them: they outlive the daemon, and are looked at before they are used.
pub struct Mapped {
    dir: PathBuf,
    /// Held for writing while those that nobody needs are unmounted.
    gate: RwLock<()>,
    /// Held while one is mounted.
    mounting: Arc<Mutex<()>>,
}

/// Keeps mapped directories until the snapshot that needs them is recorded.
pub type Kept<'a> = RwLockReadGuard<'a, ()>;

/// The mapping that `labels` ask for, if any.
///
/// # Errors
/// [`Error::InvalidArgument`] if they make no sense.
pub fn id_map(labels: &Labels) -> Result<Option<IdMap>> {
    match (labels.get(LABEL_USERS), labels.get(LABEL_GROUPS)) {
        (None, None) => Ok(None),
        (Some(users), Some(groups)) => {
            let map = IdMap::parse(users, groups).map_err(|error| Error::InvalidArgument(error.to_string()))?;
            Ok(Some(map))
        }
        _ => Err(Error::InvalidArgument(format!("of {LABEL_USERS} and {LABEL_GROUPS} one is missing"))),
    }
}

impl Mapped {
    /// Opens or makes `ROOT/mapped`.
    pub fn open(root: &Path) -> Result<Self> {
        let dir = root.join("mapped");
        make_directory(&dir)?;
        Ok(Self { dir, gate: RwLock::default(), mounting: Arc::default() })
    }

    /// Nothing is unmounted as long as the answer lives.
    pub async fn keep(&self) -> Kept<'_> {
        self.gate.read().await
    }

    /// The directories `lowers` with the owners of `map`, mounted if they aren't.
    ///
    /// # Errors
    /// [`Error::FailedPrecondition`] if the kernel can't.
    pub async fn of(&self, map: IdMap, lowers: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
        let (dir, mounting) = (self.place(&map), Arc::clone(&self.mounting));
        let work = move || lowers.iter().map(|source| ensure(&dir, source, &map, &mounting)).collect();
        spawn_blocking(work).await.map_err(|_| Error::Interrupted)?
    }

    /// Unmounts all that aren't in `needed`, or show what isn't there any more. `needed` reads which lower directories
    /// snapshots lie on, and with which mapping.
    pub async fn retain(&self, needed: impl AsyncFnOnce() -> Result<Vec<(IdMap, Vec<PathBuf>)>>) -> Result<()> {
        let _gate = self.gate.write().await;
        let mut sources = HashMap::new();
        for (map, lowers) in needed().await? {
            let dir = self.place(&map);
            sources.extend(lowers.into_iter().map(|source| (dir.join(name(&source)), source)));
        }
        let dir = self.dir.clone();
        let keeps = move |target: &Path| sources.get(target).is_some_and(|source| shows(target, source));
        spawn_blocking(move || sweep(&dir, keeps)).await.map_err(|_| Error::Interrupted)?
    }

    fn place(&self, map: &IdMap) -> PathBuf {
        let name = Digest::of(format!("{}\n{}", map.users(), map.groups()).as_bytes());
        self.dir.join(&name.hex()[..NAME_DIGITS])
    }
}

impl Drop for Mapped {
    /// Unmounts those of trees that are unmounted: nobody answers for them any more.
    fn drop(&mut self) {
        let mounts = self.dir.with_file_name("mounts");
        let tree = |target: &Path| Some(mounts.join(target.file_name()?.to_str()?.strip_prefix(TREE)?));
        if let Err(error) = sweep(&self.dir, |target| tree(target).is_none_or(|tree| shows(target, &tree))) {
            tracing::warn!(%error, "mounts with mapped owners stay until the next start");
        }
    }
}

/// What a lower directory is called below its mapping: as the directory that it is alone in.
fn name(source: &Path) -> String {
    // `snapshots/12/fs` and a tree with a name of digits only must not be taken for each other.
    let (kind, own) = match source.parent().filter(|_| source.ends_with("fs")) {
        Some(own) => (SNAPSHOT, own),
        None => (TREE, source),
    };
    format!("{kind}{}", own.file_name().unwrap_or_default().display())
}

fn ensure(dir: &Path, source: &Path, map: &IdMap, mounting: &Mutex<()>) -> Result<PathBuf> {
    let target = dir.join(name(source));
    // Nothing that could panic happens under this lock.
    let _alone = mounting.lock().unwrap_or_else(PoisonError::into_inner);
    if shows(&target, source) {
        return Ok(target);
    }
    make_directory(dir)?;
    make_mount_point(&target)?;
    mount_idmapped(source, &target, map).map_err(|error| Error::FailedPrecondition(with_causes(&error)))?;
    tracing::debug!(mount = %target.display(), source = %source.display(), "mounted with mapped owners");
    Ok(target)
}

/// Unmounts all but what `keeps` says, and removes directories that are empty then.
fn sweep(dir: &Path, keeps: impl Fn(&Path) -> bool) -> Result<()> {
    let list = |dir: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(dir).map_err(Error::io("list", dir))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    };
    for mapping in list(dir)? {
        let mut left = false;
        for target in list(&mapping)? {
            if keeps(&target) {
                left = true;
                continue;
            }
            match detach_stale(&target) {
                Ok(_) => remove_directory(&target),
                Err(error) => {
                    left = true;
                    tracing::warn!(error = with_causes(&error), "a mount with mapped owners stays");
                }
            }
        }
        if !left {
            remove_directory(&mapping);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn a_mapping_takes_both_labels() {
        assert_eq!(id_map(&labels(&[("other", "x")])).unwrap(), None);
        let both = labels(&[(LABEL_USERS, "0:1:2"), (LABEL_GROUPS, "0:3:4")]);
        assert_eq!(id_map(&both).unwrap().unwrap().root(), (1, 3));
        for (one, told) in [(LABEL_USERS, LABEL_GROUPS), (LABEL_GROUPS, LABEL_USERS)] {
            let error = id_map(&labels(&[(one, "0:1:2")])).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument(text) if text.contains(told)), "{error}");
        }
        let error = id_map(&labels(&[(LABEL_USERS, "0:1:2"), (LABEL_GROUPS, "root")])).unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("\"root\"")), "{error}");
    }

    #[test]
    fn snapshots_and_trees_have_names_of_their_own() {
        assert_eq!(name(Path::new("/r/snapshots/12/fs")), "s12");
        assert_eq!(name(Path::new("/r/mounts/0123456789012345")), "m0123456789012345");
        assert_eq!(name(Path::new("/r/mounts/recorded-1")), "mrecorded-1");
    }
}
