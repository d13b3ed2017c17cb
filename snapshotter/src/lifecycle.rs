//! The lifecycle of snapshots: what containerd's `snapshots.Snapshotter` promises, over records and directories.
use crate::{
    chain::{self, Lower},
    directories::{Directories, Owner},
    error::{Error, Result, with_causes},
    filters::Filters,
    mapped::{Mapped, id_map},
    ordinary::{Candidate, Ordinary},
    overlay::{self, OverlayOptions},
    records::{NewRecord, Record, Records},
    remote::{Remote, repository_of},
    snapshot::{Info, Kind, LABEL_SNAPSHOT_REF, Labels, Mount, Timestamp, Usage},
    traces::{LABEL_TRACE, WantedTrace},
    trees::layer_ref,
    wanted::{Wanted, snapshot_name},
};
use clipper_mount::{IdMap, ImageWatch};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
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
    remote: Remote,
    // After what it may show: dropped in this order.
    mapped: Mapped,
    ordinary: Ordinary,
}

impl Lifecycle {
    /// Opens or makes the snapshots below `root`, which exists, and deletes what an earlier life left half done.
    pub async fn open(root: &Path, remote: Remote, ordinary: Ordinary) -> Result<Arc<Self>> {
        let lifecycle = Arc::new(Self {
            records: Records::open(&root.join("records.redb"))?,
            directories: Directories::open(root.join("snapshots"))?,
            mapped: Mapped::open(root)?,
            overlay: OverlayOptions::detect(),
            remote,
            ordinary,
        });
        lifecycle.cleanup().await?;
        lifecycle.prefer_what_is_in_use().await;
        tokio::spawn(Self::collect_late(Arc::downgrade(&lifecycle)));
        Ok(lifecycle)
    }

    /// Frees what was removed while it was still in use, once it isn't: the kernel lets go of a mount some time after the
    /// container that it was for. Ends with the last who needs `this`.
    async fn collect_late(this: Weak<Self>) {
        while let Some(collectable) = this.upgrade().map(|this| this.remote.collectable()) {
            collectable.await;
            let Some(this) = this.upgrade() else { return };
            if let Err(error) = this.collect().await {
                tracing::warn!(error = with_causes(&error), "unused cached data stays until the next cleanup");
            }
        }
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
        if let Some(chain) = new.labels.get(LABEL_SNAPSHOT_REF)
            && new.kind == Kind::Active
            && self.adopt(&new, chain, &parents).await?
        {
            return Err(Error::AlreadyExists(chain.clone()));
        }
        let mut lowers = self.lowers(&parents).await?;
        let recorded = self.record(&new, &parents, &mut lowers).await?;
        let made = self.make(new, lowers).await;
        if made.is_err()
            && let Some(key) = recorded
        {
            self.end_recording(&key).await;
        }
        if parents.iter().any(|parent| parent.remote.is_some()) {
            self.users_changed();
        }
        made
    }

    /// A snapshot that may lie on remote layers came or went: the cache is told, without anybody waiting for that.
    fn users_changed(self: &Arc<Self>) {
        let this = Arc::clone(self);
        tokio::spawn(async move { this.prefer_what_is_in_use().await });
    }

    async fn prefer_what_is_in_use(self: &Arc<Self>) {
        let in_use = async || {
            let records = self.records().await?;
            Ok(chain::in_use(&records).into_iter().map(layer_ref).collect())
        };
        self.remote.prefer(in_use).await;
    }

    /// Puts a mount whose reads are recorded in the place of the topmost of `lowers`, if `new` asks for it. Returns the
    /// snapshot's key then.
    async fn record(&self, new: &NewSnapshot, parents: &[Record], lowers: &mut [PathBuf]) -> Result<Option<String>> {
        let wanted = if new.kind == Kind::Active { WantedTrace::by(&new.labels)? } else { None };
        let Some(wanted) = wanted else { return Ok(None) };
        let below = chain::lowers(parents);
        let (Some(Lower::Tree(run)), Some((top, rest))) = (below.first(), lowers.split_first_mut()) else {
            let text = format!("{LABEL_TRACE}: the topmost layer of the image was not converted by Clipper");
            return Err(Error::FailedPrecondition(text));
        };
        *top = self.remote.mount_recorded(&new.key, wanted, run, rest).await?;
        Ok(Some(new.key.clone()))
    }

    /// Ends the recording of snapshot `key`, if there is one.
    async fn end_recording(&self, key: &str) {
        if let Some(traced) = self.remote.traces().take(key) {
            // A panic is reported where it happens.
            let _ = tokio::task::spawn_blocking(move || traced.finish()).await;
        }
    }

    async fn make(self: &Arc<Self>, new: NewSnapshot, mut lowers: Vec<PathBuf>) -> Result<Vec<Mount>> {
        let NewSnapshot { kind, key, parent, labels, .. } = new;
        let (mut root, mut _kept) = (None, None);
        if let Some(map) = id_map(&labels)? {
            let (uid, gid) = map.root();
            (root, _kept) = (Some(Owner { uid, gid }), Some(self.mapped.keep().await));
            lowers = self.mapped.of(map, lowers).await?;
        }
        let lower = lowers.first().cloned();
        let record = self
            .blocking(move |this| {
                let owner = lower.as_deref().map(Owner::of).transpose()?.or(root);
                let change = this.records.change()?;
                let record =
                    change.insert(&key, NewRecord { kind, parent, labels, usage: Usage::default(), remote: None })?;
                this.directories.create(record.id, kind, owner)?;
                change.commit()?;
                Ok(record)
            })
            .await?;
        Ok(self.mount_list(&record, &lowers))
    }

    /// Whether the layer with chain ID `chain` that containerd wants to unpack into `new` is there already, can be
    /// mounted instead, or had better be unpacked here, in which cases it is there from now on.
    async fn adopt(self: &Arc<Self>, new: &NewSnapshot, chain: &str, parents: &[Record]) -> Result<bool> {
        let name = snapshot_name(chain, new.parent.as_deref());
        let wanted = Wanted::from_labels(&new.labels);
        let found = name.clone();
        if let Some(record) = self.blocking(move |this| this.records.find(&found)).await? {
            let same = is_layer(&record, new, chain);
            if same && let Some(image) = wanted.and_then(|wanted| wanted.image) {
                let repository = repository_of(&image).to_string();
                self.blocking(move |this| this.add_repository(&name, repository)).await?;
            }
            return Ok(same);
        }
        let Some(wanted) = wanted else { return self.unpack(new, chain, name, parents).await };
        let Some(adopted) = self.remote.adopt(&wanted, parents.first(), new.namespace.as_deref()).await else {
            return Ok(false);
        };
        let NewSnapshot { parent, labels, .. } = new.clone();
        let remote = Some(adopted.layer.clone());
        let record = NewRecord { kind: Kind::Committed, parent, labels, usage: Usage::default(), remote };
        let inserted = self
            .blocking(move |this| {
                let change = this.records.change()?;
                change.insert(&name, record)?;
                change.commit()
            })
            .await;
        match inserted {
            // Somebody else pulled the same layer meanwhile.
            Ok(()) | Err(Error::AlreadyExists(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether the ordinary layer with chain ID `chain`, to be called `name`, is there: it is unpacked here if converted
    /// ones lie above it, which containerd would download otherwise.
    async fn unpack(
        self: &Arc<Self>,
        new: &NewSnapshot,
        chain: &str,
        name: String,
        parents: &[Record],
    ) -> Result<bool> {
        // Marks for overlayfs in a user namespace are others, and devices can't be made there.
        if self.overlay.user_xattr {
            return Ok(false);
        }
        let Some(candidate) = Candidate::from_labels(&new.labels) else { return Ok(false) };
        // Before anything is asked: who waited for another's work mustn't do again what has failed meanwhile.
        let _door = self.ordinary.enter(&name).await;
        let found = name.clone();
        if let Some(record) = self.blocking(move |this| this.records.find(&found)).await? {
            // Somebody else pulled the same layer meanwhile.
            return Ok(is_layer(&record, new, chain));
        }
        let namespace = new.namespace.as_deref();
        let Some(listed) = self.ordinary.below_converted(&candidate, namespace).await else { return Ok(false) };
        let below = parents.first().map(Record::chain);
        let lowers = self.lowers(parents).await?;
        let Some(unpacked) = self.ordinary.unpack(&candidate, &listed, below, lowers).await else { return Ok(false) };
        let NewSnapshot { parent, labels, .. } = new.clone();
        let record = NewRecord { kind: Kind::Committed, parent, labels, usage: unpacked.usage, remote: None };
        let inserted = self
            .blocking(move |this| {
                let change = this.records.change()?;
                let record = change.insert(&name, record)?;
                this.directories.take(record.id, &unpacked.directory())?;
                change.commit()
            })
            .await;
        match inserted {
            // Of another image, in which it is a converted layer.
            Ok(()) | Err(Error::AlreadyExists(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Remembers another repository that the remote layer `name` was pulled from.
    fn add_repository(&self, name: &str, repository: String) -> Result<()> {
        let change = self.records.change()?;
        let mut record = change.get(name)?;
        match &mut record.remote {
            Some(remote) if !remote.repositories.contains(&repository) => remote.repositories.push(repository),
            _ => return Ok(()),
        }
        change.replace(name, &record)?;
        change.commit()
    }

    /// How to mount the active snapshot or view `key`; what it lies on is brought back if it is gone.
    pub async fn mounts(self: &Arc<Self>, key: String) -> Result<Vec<Mount>> {
        let name = key.clone();
        let chain = self.blocking(move |this| this.records.chain(&name)).await?;
        let Some((record, parents)) = chain.split_first() else { return Err(Error::NotFound(key)) };
        if record.kind == Kind::Committed {
            return Err(Error::FailedPrecondition(format!("snapshot {key:?} is neither active nor a view")));
        }
        let mut lowers = self.lowers(parents).await?;
        if let (Some(top), Some(dir)) = (lowers.first_mut(), self.remote.traces().dir(&key)) {
            *top = dir;
        }
        if let Some(map) = id_map(&record.labels)? {
            let _kept = self.mapped.keep().await;
            lowers = self.mapped.of(map, lowers).await?;
        }
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
        let key = name.clone();
        let record = self
            .blocking(move |this| {
                let change = this.records.change()?;
                let record = change.remove(&name)?;
                change.commit()?;
                // The snapshot is gone whatever comes of its directory; the next cleanup finds that.
                if let Err(error) = this.directories.remove(record.id) {
                    tracing::warn!(%error, snapshot = name, "a removed snapshot's directory stays for now");
                }
                Ok(record)
            })
            .await?;
        if id_map(&record.labels).is_ok_and(|map| map.is_some()) {
            self.unmap().await;
        }
        self.end_recording(&key).await;
        if record.kind != Kind::Committed {
            self.users_changed();
        }
        if record.remote.is_some() {
            self.collect().await?;
        }
        Ok(())
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

    /// All records by name, as of one moment.
    pub async fn records(self: &Arc<Self>) -> Result<Vec<(String, Record)>> {
        self.blocking(|this| this.records.all()).await
    }

    /// The mounted images, by the first digits of their trees' names.
    pub fn mounted(&self) -> Vec<(String, ImageWatch)> {
        self.remote.mounted()
    }

    /// Local resources that `name` takes without its parents: of a remote layer, what is cached.
    pub async fn usage(self: &Arc<Self>, name: String) -> Result<Usage> {
        let record = self.blocking(move |this| this.records.get(&name)).await?;
        match (&record.remote, record.kind) {
            (Some(layer), _) => Ok(Usage { size: self.remote.cached(layer).await, inodes: 0 }),
            (None, Kind::Active) => self.blocking(move |this| this.directories.usage(record.id)).await,
            (None, Kind::View | Kind::Committed) => Ok(record.usage),
        }
    }

    /// Deletes what no snapshot owns.
    pub async fn cleanup(self: &Arc<Self>) -> Result<()> {
        self.blocking(|this| {
            // Holding a change keeps snapshots from being made while orphans are told from others.
            let change = this.records.change()?;
            let known = change.all()?.into_iter().map(|(_, record)| record.id).collect();
            this.directories.set_orphans_aside(&known)?;
            drop(change);
            this.directories.empty_trash()
        })
        .await?;
        self.collect().await
    }

    /// Unmounts directories with mapped owners that no snapshot lies on.
    async fn unmap(self: &Arc<Self>) {
        let needed = async || self.blocking(|this| this.mapped_lowers()).await;
        if let Err(error) = self.mapped.retain(needed).await {
            tracing::warn!(%error, "mounts with mapped owners stay until the next cleanup");
        }
    }

    /// The lower directories, mounted or not, of all snapshots for containers in user namespaces.
    fn mapped_lowers(&self) -> Result<Vec<(IdMap, Vec<PathBuf>)>> {
        let mut needed = Vec::new();
        let records = self.records.all()?.into_iter().filter(|(_, record)| record.kind != Kind::Committed);
        for (name, record) in records {
            // What makes no sense has never been mounted.
            let Ok(Some(map)) = id_map(&record.labels) else { continue };
            // It may have been removed since.
            let chain = match self.records.chain(&name) {
                Err(Error::NotFound(_)) => continue,
                chain => chain?,
            };
            let path = |lower| match lower {
                Lower::Directory(id) => self.directories.upper(id),
                Lower::Tree(run) => self.remote.mount_point(run.tree),
            };
            let lowers = chain::lowers(&chain[1..]).into_iter().map(path);
            needed.push((map, lowers.chain(self.remote.traces().dir(&name)).collect()));
        }
        Ok(needed)
    }

    /// Frees what remote layers took that have no record any more.
    async fn collect(self: &Arc<Self>) -> Result<()> {
        // First what would keep a tree from being unmounted.
        self.unmap().await;
        let layers = async || {
            let records = self.records().await?;
            Ok(records.into_iter().filter_map(|(_, record)| record.remote).collect())
        };
        self.remote.collect(layers).await
    }

    /// The directories that a snapshot over `parents` lies on, topmost first. Trees are mounted if they aren't.
    async fn lowers(&self, parents: &[Record]) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        // From the bottom up: a tree above directories is made with a look at them.
        for lower in chain::lowers(parents).into_iter().rev() {
            let path = match lower {
                Lower::Directory(id) => self.directories.upper(id),
                Lower::Tree(run) => self.remote.mount(&run, &paths).await?,
            };
            paths.insert(0, path);
        }
        Ok(paths)
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

/// Whether a record is of the committed layer with chain ID `chain` that containerd wants to unpack into `new`.
fn is_layer(record: &Record, new: &NewSnapshot, chain: &str) -> bool {
    let told = record.labels.get(LABEL_SNAPSHOT_REF).is_some_and(|told| told == chain);
    record.kind == Kind::Committed && record.parent == new.parent && (record.remote.is_some() || told)
}
