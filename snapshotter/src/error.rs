//! Why an operation on snapshots failed, in the classes that containerd tells apart.
use std::path::{Path, PathBuf};

/// Result of an operation on snapshots.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on snapshots failed. The classes are those of containerd's `errdefs`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such snapshot or parent.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The key or name is taken; or the layer that was to be prepared is there already, which is how a snapshotter
    /// tells containerd that it needs no download.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The snapshot's kind or children don't allow it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// Worth trying again: a registry or a mount isn't there now.
    #[error("{0}")]
    Unavailable(String),
    /// The database of records failed.
    #[error("the records database failed: {0}")]
    Database(Box<redb::Error>),
    /// A record can't be read back.
    #[error("the record of snapshot {name:?} is corrupt: {reason}")]
    CorruptRecord {
        /// Whose record.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// A file operation failed.
    #[error("{action} {path:?}: {source}", path = .path.display())]
    Io {
        /// What was tried, such as `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A piece of work ended without an answer: it was cancelled at shutdown, or it panicked.
    #[error("the operation was interrupted")]
    Interrupted,
}

impl Error {
    /// For `map_err` of a file operation.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// For `map_err` of any of redb's errors.
    pub fn database(error: impl Into<redb::Error>) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// `error` and what caused it, in one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat the cause in their own message.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
