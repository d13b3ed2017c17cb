//! The lifecycle of snapshots: what containerd's `snapshots.Snapshotter` promises, over records and directories.
use crate::{
    directories::{Directories, Owner},
    error::{Error, Result},
    filters::Filters,
    overlay::{self, OverlayOptions},
    records::{NewRecord, Record, Records},
    snapshot::{Info, Kind, Labels, Mount, Timestamp, Usage},
};
use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A snapshot to be made.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// [`Kind::Active`] or [`Kind::View`].
    pub kind: Kind,
    /// What it is to be called.
    pub key: String,
    /// Name of the committed snapshot that it lies on.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// containerd's namespace on whose behalf it is made.
    pub namespace: Option<String>,
}

/// All snapshots of a node.
pub struct Lifecycle {
    records: Records,
    directories: Directories,
    overlay: OverlayOptions,
}

impl Lifecycle {
    /// Opens or makes the snapshots below `root`, and deletes what an earlier life left half done.
    pub fn open(root: &Path) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(Error::io("create", root))?;
        let lifecycle = Self {
            records: Records::open(&root.join("records.redb"))?,
            directories: Directories::open(root.join("snapshots"))?,
            overlay: OverlayOptions::detect(),
        };
        lifecycle.sweep()?;
        Ok(lifecycle)
    }

    /// Makes a snapshot and tells how to mount it.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] also for a layer that needs no unpacking.
    pub async fn prepare(self: &Arc<Self>, new: NewSnapshot) -> Result<Vec<Mount>> {
        let parents = match new.parent.clone() {
            None => Vec::new(),
            Some(parent) => self.blocking(move |this| this.records.chain(&parent)).await?,
        };
        if let Some(parent) = parents.first()
            && parent.kind != Kind::Committed
        {
            let text = format!("parent {:?} is not a committed snapshot", new.parent.unwrap_or_default());
            return Err(Error::InvalidArgument(text));
        }
        let lowers = self.lowers(&parents).await?;
        let NewSnapshot { kind, key, parent, labels, .. } = new;
        let lower = lowers.first().cloned();
        let record = self
            .blocking(move |this| {
                let owner = lower.as_deref().map(Owner::of).transpose()?;
                let change = this.records.change()?;
                let record = change.insert(&key, NewRecord { kind, parent, labels, remote: None })?;
                this.directories.create(record.id, kind, owner)?;
                change.commit()?;
                Ok(record)
            })
            .await?;
        Ok(self.mount_list(&record, &lowers))
    }

    /// How to mount the active snapshot or view `key`; what it lies on is brought back if it is gone.
    pub async fn mounts(self: &Arc<Self>, key: String) -> Result<Vec<Mount>> {
        let name = key.clone();
        let chain = self.blocking(move |this| this.records.chain(&name)).await?;
        let Some((record, parents)) = chain.split_first() else { return Err(Error::NotFound(key)) };
        if record.kind == Kind::Committed {
            return Err(Error::FailedPrecondition(format!("snapshot {key:?} is neither active nor a view")));
        }
        let lowers = self.lowers(parents).await?;
        Ok(self.mount_list(record, &lowers))
    }

    /// Turns the active snapshot `key` into the committed one `name`.
    pub async fn commit(self: &Arc<Self>, key: String, name: String, labels: Labels) -> Result<()> {
        self.blocking(move |this| {
            let active = this.records.get(&key)?;
            if active.kind != Kind::Active {
                return Err(Error::FailedPrecondition(format!("snapshot {key:?} is not active")));
            }
            let usage = this.directories.usage(active.id)?;
            let change = this.records.change()?;
            change.commit_active(&key, &name, labels, usage)?;
            change.commit()
        })
        .await
    }

    /// Removes `name` and frees what it took.
    pub async fn remove(self: &Arc<Self>, name: String) -> Result<()> {
        self.blocking(move |this| {
            let change = this.records.change()?;
            let record = change.remove(&name)?;
            change.commit()?;
            // The snapshot is gone whatever comes of its directory; the next sweep finds that.
            if let Err(error) = this.directories.remove(record.id) {
                tracing::warn!(%error, snapshot = name, "a removed snapshot's directory stays until the next cleanup");
            }
            Ok(())
        })
        .await
    }

    /// What is known of `name`.
    pub async fn stat(self: &Arc<Self>, name: String) -> Result<Info> {
        self.blocking(move |this| Ok(this.records.get(&name)?.info(name))).await
    }

    /// Changes labels: those that `paths` (`labels`, `labels.KEY`) name, or all if it is empty. A label that becomes
    /// empty goes.
    pub async fn update(self: &Arc<Self>, name: String, labels: Labels, paths: Vec<String>) -> Result<Info> {
        self.blocking(move |this| {
            let change = this.records.change()?;
            let mut record = change.get(&name)?;
            if paths.is_empty() {
                record.labels.clone_from(&labels);
            }
            for path in &paths {
                if path == "labels" {
                    record.labels.clone_from(&labels);
                } else if let Some(key) = path.strip_prefix("labels.") {
                    let value = labels.get(key).cloned().unwrap_or_default();
                    record.labels.insert(key.into(), value);
                } else {
                    let text = format!("cannot update field {path:?} of snapshot {name:?}: only labels can change");
                    return Err(Error::InvalidArgument(text));
                }
            }
            record.labels.retain(|_, value| !value.is_empty());
            record.updated = Timestamp::now();
            change.replace(&name, &record)?;
            change.commit()?;
            Ok(record.info(name))
        })
        .await
    }

    /// All snapshots that `filters` match.
    pub async fn list(self: &Arc<Self>, filters: Filters) -> Result<Vec<Info>> {
        self.blocking(move |this| {
            let all = this.records.all()?;
            Ok(all.into_iter().map(|(name, record)| record.info(name)).filter(|info| filters.matches(info)).collect())
        })
        .await
    }

    /// Local resources that `name` takes without its parents.
    pub async fn usage(self: &Arc<Self>, name: String) -> Result<Usage> {
        self.blocking(move |this| {
            let record = this.records.get(&name)?;
            match record.kind {
                Kind::Active => this.directories.usage(record.id),
                Kind::View | Kind::Committed => Ok(record.usage),
            }
        })
        .await
    }

    /// Deletes what no snapshot owns.
    pub async fn cleanup(self: &Arc<Self>) -> Result<()> {
        self.blocking(|this| this.sweep()).await
    }

    fn sweep(&self) -> Result<()> {
        // Holding a change keeps snapshots from being made while orphans are told from others.
        let change = self.records.change()?;
        let known = change.all()?.into_iter().map(|(_, record)| record.id).collect();
        self.directories.set_orphans_aside(&known)?;
        drop(change);
        self.directories.empty_trash()
    }

    /// The directories that a snapshot over `parents` lies on, topmost first.
    async fn lowers(&self, parents: &[Record]) -> Result<Vec<PathBuf>> {
        Ok(parents.iter().map(|parent| self.directories.upper(parent.id)).collect())
    }

    fn mount_list(&self, record: &Record, lowers: &[PathBuf]) -> Vec<Mount> {
        overlay::mounts(record.kind, &self.directories.own(record.id), lowers, self.overlay)
    }

    /// Runs work on the database or the filesystem where it doesn't hold up others.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&this)).await.map_err(|_| Error::Interrupted)?
    }
}
