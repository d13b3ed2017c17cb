//! The nouns of the lifecycle: kinds of snapshots, what is told of them, and mounts.
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// Label by which containerd tells the chain ID that a snapshot being prepared is going to have, and by which it
/// finds the committed snapshot again (containerd, `metadata/snapshot.go`).
pub const LABEL_SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// What a snapshot is (containerd, `snapshots.Kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, mountable, not a parent.
    View,
    /// Writable, mountable, not a parent.
    Active,
    /// Unchangeable, a parent of others, not mountable itself.
    Committed,
}

/// Point in time: seconds and nanoseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64, pub u32);

impl Timestamp {
    /// The time now; 1970 if the clock is before that.
    pub fn now() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(now.as_secs()).unwrap_or(i64::MAX), now.subsec_nanos())
    }
}

/// What Stat and List tell of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Key of a view or active snapshot, name of a committed one.
    pub name: String,
    /// Name of the snapshot it lies on, if any.
    pub parent: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Labels.
    pub labels: Labels,
    /// When it was prepared, or committed.
    pub created: Timestamp,
    /// When its labels were last changed.
    pub updated: Timestamp,
}

/// Local resources of one snapshot, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes allocated on disk.
    pub size: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A mount for containerd to perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// Directory of a bind mount; `overlay` otherwise.
    pub source: PathBuf,
    /// Options as in fstab.
    pub options: Vec<String>,
}
