//! Why a device couldn't give the bytes it was asked for.
use crate::source::SourceError;
use clipper_format::Digest;
use std::{io, path::PathBuf, sync::Arc, time::Duration};

/// Why a device couldn't give the bytes it was asked for. No byte of the range was served. The next read tries again,
/// after a short pause if this one failed for the same reason just before. Readers wait for what may pass, so that such an
/// error tells what went wrong last when their time was over.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// What came out of a span isn't what the index promises, from any source. The blob, the checkpoints or the index
    /// is damaged: `clipper check` tells which.
    #[error("span {span} of device {device}, fetched from {from}, is corrupt: {reason}")]
    Corrupt {
        /// The device.
        device: Digest,
        /// Number of the span in the device's table.
        span: usize,
        /// The source tried last: blob and host.
        from: String,
        /// What was wrong.
        reason: String,
    },
    /// The source failed, after its own retries.
    #[error("cannot fetch span {span} of device {device} from {from}")]
    Fetch {
        /// The device.
        device: Digest,
        /// Number of the span in the device's table.
        span: usize,
        /// The source tried last: blob and host.
        from: String,
        /// What it said.
        source: SourceError,
    },
    /// The bytes didn't arrive in time.
    #[error("span {span} of device {device} did not arrive from {from} within {after:?}")]
    Timeout {
        /// The device.
        device: Digest,
        /// Number of the span in the device's table.
        span: usize,
        /// The source tried last: blob and host.
        from: String,
        /// The time given.
        after: Duration,
    },
    /// The local cache couldn't be read or written.
    #[error("cache file {}", path.display())]
    Storage {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The description of a device can't be right, or isn't that of the device of this digest that is open already.
    #[error("device {device} can't be opened: {reason}")]
    Spec {
        /// The device.
        device: Digest,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A read reaches past the end of the device.
    #[error("bytes {offset}+{len} lie outside device {device}")]
    Outside {
        /// The device.
        device: Digest,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// Another process uses this directory of devices, or this one does already.
    #[error("{} is in use by another process, or by this one", root.display())]
    InUse {
        /// The directory.
        root: PathBuf,
    },
    /// The work was given up: background fill was stopped, or the runtime is shutting down.
    #[error("fetching for device {device} was stopped")]
    Stopped {
        /// The device.
        device: Digest,
    },
}

impl DeviceError {
    pub(crate) fn storage(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Storage { path: path.into(), source: Arc::new(source) }
    }

    /// The error and what caused it, for a log.
    pub(crate) fn chain(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |error| error.source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    /// Whether it may be gone by itself in a while, as with a network that is down.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => !source.is_lasting(),
            Self::Timeout { .. } => true,
            _ => false,
        }
    }

    /// The errno a file system should answer with: ENOSPC where the disk is full, EIO for everything else.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Storage { source, .. } if is_full(source) => rustix::io::Errno::NOSPC.raw_os_error(),
            _ => rustix::io::Errno::IO.raw_os_error(),
        }
    }
}

/// Whether a write failed for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<DeviceError> for io::Error {
    fn from(error: DeviceError) -> Self {
        let kind = io::Error::from_raw_os_error(error.errno()).kind();
        Self::new(kind, error)
    }
}
