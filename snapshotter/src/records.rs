//! Records: what is known of every snapshot, in a redb database, one write transaction per change.
#[cfg(test)]
mod power;

use crate::{
    error::{Error, Result},
    snapshot::{Info, Kind, LABEL_SNAPSHOT_REF, Labels, Timestamp, Usage},
};
use clipper_format::Digest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::{fs, io::ErrorKind, path::Path};

/// Name or key of a snapshot to its record, in JSON: few and small, and readable when something is wrong.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// (parent, child) for every snapshot with a parent.
const CHILDREN: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("children");
/// Counters.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
/// Counter: the last number given to a snapshot.
const LAST_ID: &str = "last-id";
/// Bytes of pages that redb may keep; the whole database of a busy node is smaller.
const CACHE: usize = 4 << 20;

/// Number of a snapshot, the name of its directory; never given twice.
pub type SnapshotId = u64;

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: SnapshotId,
    /// What it is.
    pub kind: Kind,
    /// Name of the snapshot it lies on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created: Timestamp,
    /// When its labels were last changed.
    pub updated: Timestamp,
    /// Of a committed snapshot with a directory: what that took when it was committed.
    #[serde(default)]
    pub usage: Usage,
    /// Of a remote layer: what it is made from. It has no directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteLayer>,
}

/// A layer that is mounted instead of unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteLayer {
    /// Digest of the index blob that describes it.
    pub index: Digest,
    /// Digest of the layer blob.
    pub layer: Digest,
    /// Chain ID of this layer and those below it.
    pub chain: Digest,
    /// Names the merged tree of this layer and the remote layers directly below it.
    pub tree: Digest,
    /// Image references whose repositories hold both blobs; alternatives.
    pub repositories: Vec<String>,
    /// The image that it was pulled for first, if the pull told: for logs and figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl Record {
    /// What is told of it under `name`.
    pub fn info(self, name: String) -> Info {
        let Self { kind, parent, labels, created, updated, .. } = self;
        Info { name, parent, kind, labels, created, updated }
    }

    /// The chain ID that containerd gave it.
    pub fn chain(&self) -> Option<Digest> {
        match &self.remote {
            Some(remote) => Some(remote.chain),
            None => self.labels.get(LABEL_SNAPSHOT_REF)?.parse().ok(),
        }
    }
}

/// The database of records.
pub struct Records {
    database: Database,
}

impl Records {
    /// Opens or makes the database `path`.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.try_exists().map_err(Error::io("look for", path))? {
            // Under another name first: a process that dies in the middle must not leave half a database.
            let new = path.with_extension("new");
            match fs::remove_file(&new) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &new)(error)),
                _ => drop(Self::create(&new)?),
            }
            fs::rename(&new, path).map_err(Error::io("rename", &new))?;
            // What is recorded from now on must not be lost for want of the name.
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))?;
        }
        Self::create(path)
    }

    /// Opens `path`, or makes it step by step.
    fn create(path: &Path) -> Result<Self> {
        Self::over(redb::Builder::new().set_cache_size(CACHE).create(path).map_err(Error::database)?)
    }

    /// The records in `database`, which may be empty.
    fn over(database: Database) -> Result<Self> {
        let transaction = database.begin_write().map_err(Error::database)?;
        transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        transaction.open_table(CHILDREN).map_err(Error::database)?;
        transaction.open_table(COUNTERS).map_err(Error::database)?;
        transaction.commit().map_err(Error::database)?;
        Ok(Self { database })
    }

    /// The record of `name`.
    pub fn get(&self, name: &str) -> Result<Record> {
        let transaction = self.database.begin_read().map_err(Error::database)?;
        load(&transaction.open_table(SNAPSHOTS).map_err(Error::database)?, name)
    }

    /// The record of `name`, if there is one.
    pub fn find(&self, name: &str) -> Result<Option<Record>> {
        match self.get(name) {
            Ok(record) => Ok(Some(record)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The records of `name` and all its parents, `name`'s first, as of one moment.
    pub fn chain(&self, name: &str) -> Result<Vec<Record>> {
        let transaction = self.database.begin_read().map_err(Error::database)?;
        let table = transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        let mut chain = vec![load(&table, name)?];
        while let Some(parent) = chain.last().and_then(|record| record.parent.clone()) {
            chain.push(load(&table, &parent)?);
        }
        Ok(chain)
    }

    /// All records by name, as of one moment.
    pub fn all(&self) -> Result<Vec<(String, Record)>> {
        let transaction = self.database.begin_read().map_err(Error::database)?;
        all(&transaction.open_table(SNAPSHOTS).map_err(Error::database)?)
    }

    /// Starts a change. Others wait until it is committed or dropped, which undoes it.
    pub fn change(&self) -> Result<Change> {
        Ok(Change { transaction: self.database.begin_write().map_err(Error::database)? })
    }
}

/// A change of the records that takes place whole when it is committed, or not at all.
pub struct Change {
    transaction: WriteTransaction,
}

impl Change {
    /// Makes the change durable.
    pub fn commit(self) -> Result<()> {
        self.transaction.commit().map_err(Error::database)
    }

    /// The record of `name` as this change leaves it.
    pub fn get(&self, name: &str) -> Result<Record> {
        load(&self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?, name)
    }

    /// All records as this change leaves them.
    pub fn all(&self) -> Result<Vec<(String, Record)>> {
        all(&self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?)
    }

    /// Adds a snapshot called `name`.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`]; [`Error::NotFound`] of the parent; [`Error::InvalidArgument`] for an empty name or
    /// a parent that isn't committed.
    pub fn insert(&self, name: &str, new: NewRecord) -> Result<Record> {
        if name.is_empty() {
            return Err(Error::InvalidArgument("a snapshot must have a key".into()));
        }
        let mut snapshots = self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        if let Some(parent) = &new.parent
            && load(&snapshots, parent)?.kind != Kind::Committed
        {
            return Err(Error::InvalidArgument(format!("parent {parent:?} is not a committed snapshot")));
        }
        if snapshots.get(name).map_err(Error::database)?.is_some() {
            return Err(Error::AlreadyExists(name.into()));
        }
        let mut counters = self.transaction.open_table(COUNTERS).map_err(Error::database)?;
        let id = counters.get(LAST_ID).map_err(Error::database)?.map_or(0, |last| last.value()) + 1;
        counters.insert(LAST_ID, id).map_err(Error::database)?;
        let now = Timestamp::now();
        let NewRecord { kind, parent, labels, usage, remote } = new;
        let record = Record { id, kind, parent, labels, created: now, updated: now, usage, remote };
        store(&mut snapshots, name, &record)?;
        drop(snapshots);
        self.link(name, &record)?;
        Ok(record)
    }

    /// Turns the active snapshot `key` into a committed one called `name`. Labels are replaced, not inherited.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::AlreadyExists`] of the name; [`Error::FailedPrecondition`] if not active.
    pub fn commit_active(&self, key: &str, name: &str, labels: Labels, usage: Usage) -> Result<Record> {
        if name.is_empty() {
            return Err(Error::InvalidArgument("a committed snapshot must have a name".into()));
        }
        let mut snapshots = self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        if snapshots.get(name).map_err(Error::database)?.is_some() {
            return Err(Error::AlreadyExists(name.into()));
        }
        let active = load(&snapshots, key)?;
        if active.kind != Kind::Active {
            return Err(Error::FailedPrecondition(format!("snapshot {key:?} is not active")));
        }
        let now = Timestamp::now();
        let record = Record { kind: Kind::Committed, labels, created: now, updated: now, usage, ..active };
        store(&mut snapshots, name, &record)?;
        snapshots.remove(key).map_err(Error::database)?;
        drop(snapshots);
        self.unlink(key, &record)?;
        self.link(name, &record)?;
        Ok(record)
    }

    /// Removes the snapshot `name`.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::FailedPrecondition`] if others lie on it.
    pub fn remove(&self, name: &str) -> Result<Record> {
        let mut snapshots = self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?;
        let record = load(&snapshots, name)?;
        let children = self.transaction.open_table(CHILDREN).map_err(Error::database)?;
        if let Some(first) = children.range((name, "")..).map_err(Error::database)?.next() {
            let (link, _) = first.map_err(Error::database)?;
            if link.value().0 == name {
                let child = link.value().1;
                let text = format!("cannot remove snapshot {name:?}: it has children, such as {child:?}");
                return Err(Error::FailedPrecondition(text));
            }
        }
        drop(children);
        snapshots.remove(name).map_err(Error::database)?;
        drop(snapshots);
        self.unlink(name, &record)?;
        Ok(record)
    }

    /// Writes back the labels, times and remote layer of an existing record; the rest of a record never changes.
    pub fn replace(&self, name: &str, record: &Record) -> Result<()> {
        store(&mut self.transaction.open_table(SNAPSHOTS).map_err(Error::database)?, name, record)
    }

    fn link(&self, name: &str, record: &Record) -> Result<()> {
        if let Some(parent) = &record.parent {
            let mut children = self.transaction.open_table(CHILDREN).map_err(Error::database)?;
            children.insert((parent.as_str(), name), ()).map_err(Error::database)?;
        }
        Ok(())
    }

    fn unlink(&self, name: &str, record: &Record) -> Result<()> {
        if let Some(parent) = &record.parent {
            let mut children = self.transaction.open_table(CHILDREN).map_err(Error::database)?;
            children.remove((parent.as_str(), name)).map_err(Error::database)?;
        }
        Ok(())
    }
}

/// What a snapshot is made with.
#[derive(Clone, Debug)]
pub struct NewRecord {
    /// What it is.
    pub kind: Kind,
    /// Name of the committed snapshot it lies on.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// What a committed snapshot with a directory takes.
    pub usage: Usage,
    /// What a remote layer is made from.
    pub remote: Option<RemoteLayer>,
}

type Snapshots<'a> = redb::Table<'a, &'static str, &'static [u8]>;

fn load(table: &impl ReadableTable<&'static str, &'static [u8]>, name: &str) -> Result<Record> {
    let value = table.get(name).map_err(Error::database)?.ok_or_else(|| Error::NotFound(name.into()))?;
    decode(name, value.value())
}

fn all(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Vec<(String, Record)>> {
    let mut records = Vec::new();
    for entry in table.iter().map_err(Error::database)? {
        let (name, value) = entry.map_err(Error::database)?;
        records.push((name.value().to_owned(), decode(name.value(), value.value())?));
    }
    Ok(records)
}

fn store(table: &mut Snapshots<'_>, name: &str, record: &Record) -> Result<()> {
    let value = serde_json::to_vec(record)
        .map_err(|error| Error::CorruptRecord { name: name.into(), reason: error.to_string() })?;
    table.insert(name, value.as_slice()).map_err(Error::database)?;
    Ok(())
}

fn decode(name: &str, value: &[u8]) -> Result<Record> {
    serde_json::from_slice(value).map_err(|error| Error::CorruptRecord { name: name.into(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> (tempfile::TempDir, Records) {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("records.redb")).unwrap();
        (dir, records)
    }

    fn new(kind: Kind, parent: Option<&str>) -> NewRecord {
        NewRecord { kind, parent: parent.map(Into::into), labels: Labels::new(), usage: Usage::default(), remote: None }
    }

    fn change<T>(records: &Records, f: impl FnOnce(&Change) -> Result<T>) -> Result<T> {
        let change = records.change()?;
        let result = f(&change)?;
        change.commit()?;
        Ok(result)
    }

    #[test]
    fn records_outlive_the_process_and_numbers_are_never_given_twice() {
        let (dir, records) = records();
        let a = change(&records, |c| c.insert("a", new(Kind::Active, None))).unwrap();
        change(&records, |c| c.remove("a")).unwrap();
        drop(records);
        let records = Records::open(&dir.path().join("records.redb")).unwrap();
        let b = change(&records, |c| c.insert("b", new(Kind::Active, None))).unwrap();
        assert!(b.id > a.id);
        assert_eq!(records.get("b").unwrap(), b);
        assert!(matches!(records.get("a"), Err(Error::NotFound(name)) if name == "a"));
    }

    #[test]
    fn a_database_half_made_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.redb");
        fs::write(path.with_extension("new"), [0; 5000]).unwrap();
        let records = Records::open(&path).unwrap();
        assert_eq!(records.all().unwrap(), []);
        assert!(path.exists() && !path.with_extension("new").exists());
    }

    #[test]
    fn a_dropped_change_leaves_nothing() {
        let (_dir, records) = records();
        let dropped = records.change().unwrap();
        let id = dropped.insert("a", new(Kind::Active, None)).unwrap().id;
        drop(dropped);
        assert_eq!(records.all().unwrap(), []);
        assert_eq!(change(&records, |c| c.insert("b", new(Kind::Active, None))).unwrap().id, id);
    }

    #[test]
    fn parents_must_be_committed_and_cannot_go_before_their_children() {
        let (_dir, records) = records();
        change(&records, |c| c.insert("work", new(Kind::Active, None))).unwrap();
        let on_active = change(&records, |c| c.insert("x", new(Kind::Active, Some("work"))));
        assert!(matches!(on_active, Err(Error::InvalidArgument(_))));
        let on_nothing = change(&records, |c| c.insert("x", new(Kind::Active, Some("gone"))));
        assert!(matches!(on_nothing, Err(Error::NotFound(name)) if name == "gone"));

        let usage = Usage { size: 7, inodes: 2 };
        change(&records, |c| c.commit_active("work", "base", Labels::new(), usage)).unwrap();
        assert_eq!(records.get("base").unwrap().usage, usage);
        change(&records, |c| c.insert("upper", new(Kind::Active, Some("base")))).unwrap();
        // A name that sorts just after the parent's must not be taken for its child.
        change(&records, |c| c.insert("base2", new(Kind::View, None))).unwrap();
        assert!(matches!(change(&records, |c| c.remove("base")), Err(Error::FailedPrecondition(_))));
        change(&records, |c| c.commit_active("upper", "top", Labels::new(), usage)).unwrap();
        assert!(matches!(change(&records, |c| c.remove("base")), Err(Error::FailedPrecondition(_))));
        assert_eq!(records.chain("top").unwrap().iter().map(|r| r.id).collect::<Vec<_>>(), [2, 1]);
        change(&records, |c| c.remove("top")).unwrap();
        change(&records, |c| c.remove("base")).unwrap();
        assert_eq!(records.all().unwrap().len(), 1);
    }

    #[test]
    fn commit_wants_a_free_name_and_an_active_snapshot() {
        let (_dir, records) = records();
        change(&records, |c| c.insert("a", new(Kind::Active, None))).unwrap();
        change(&records, |c| c.insert("v", new(Kind::View, None))).unwrap();
        let commit =
            |key: &str, name: &str| change(&records, |c| c.commit_active(key, name, Labels::new(), Usage::default()));
        assert!(matches!(commit("a", "v"), Err(Error::AlreadyExists(_))));
        assert!(matches!(commit("v", "n"), Err(Error::FailedPrecondition(_))));
        assert!(matches!(commit("gone", "n"), Err(Error::NotFound(_))));
        assert!(matches!(commit("a", ""), Err(Error::InvalidArgument(_))));
        assert_eq!(commit("a", "n").unwrap().kind, Kind::Committed);
        assert!(matches!(commit("n", "m"), Err(Error::FailedPrecondition(_))));
    }
}
