//! Snapshots whose reads are recorded: each has a mount of its own, and leaves a trace file when it is removed.
use crate::{
    error::{Error, Result, with_causes},
    snapshot::Labels,
    trees::{MountPlace, Trees, remove_directory},
};
use clipper_mount::{Driver, Mounted};
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Label of a snapshot to be prepared whose reads are to be recorded: the file, which mustn't exist yet, that the trace
/// is written to when the snapshot is removed.
pub const LABEL_TRACE: &str = "containerd.io/snapshot/clipper.trace";
/// The driver of the mount that is recorded, `erofs` or `fuse`; without this label, the node's. The kernel asks for other
/// bytes with each.
const LABEL_TRACE_DRIVER: &str = "containerd.io/snapshot/clipper.trace-driver";

/// A trace that somebody wants.
pub struct WantedTrace {
    /// Where it is written to: the absolute path of a file that isn't there yet.
    file: PathBuf,
    /// What the mount is to be made with, if not with the node's driver.
    driver: Option<Driver>,
}

/// Recordings under way, by snapshot.
#[derive(Default)]
pub struct Traces(Mutex<HashMap<String, Traced>>);

/// One recording.
pub struct Traced {
    mounted: Mounted,
    file: PathBuf,
}

impl WantedTrace {
    /// What the labels of a snapshot to be prepared say.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if that can't be done.
    pub fn by(labels: &Labels) -> Result<Option<Self>> {
        let Some(file) = labels.get(LABEL_TRACE).map(PathBuf::from) else { return Ok(None) };
        if !file.is_absolute() || file.exists() {
            let text =
                format!("{LABEL_TRACE}: {} must be the absolute path of a file that isn't there", file.display());
            return Err(Error::InvalidArgument(text));
        }
        let driver = labels.get(LABEL_TRACE_DRIVER).map(|name| name.parse()).transpose();
        let driver = driver.map_err(|error| Error::InvalidArgument(format!("{LABEL_TRACE_DRIVER}: {error}")))?;
        Ok(Some(Self { file, driver }))
    }
}

impl Traces {
    /// Mounts what a snapshot to be called `key` lies on, with its reads recorded; tells where.
    ///
    /// # Errors
    /// Those of mounting.
    pub async fn start(
        &self,
        key: &str,
        WantedTrace { file, driver }: WantedTrace,
        trees: &Trees,
        place: MountPlace<'_>,
    ) -> Result<PathBuf> {
        let mounted = trees.mount_recorded(place, driver).await?;
        let dir = mounted.dir().to_owned();
        self.lock().insert(key.to_owned(), Traced { mounted, file });
        Ok(dir)
    }

    /// Where the recorded mount of snapshot `key` is, if it has one.
    pub fn dir(&self, key: &str) -> Option<PathBuf> {
        self.lock().get(key).map(|traced| traced.mounted.dir().to_owned())
    }

    /// Takes the recording of snapshot `key`, which is removed.
    pub fn take(&self, key: &str) -> Option<Traced> {
        self.lock().remove(key)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Traced>> {
        // Nothing that could panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Traced {
    /// Writes the trace, and unmounts. Blocks.
    pub fn finish(self) {
        if let Err(error) = self.write() {
            tracing::error!(file = %self.file.display(), error, "a trace can't be written");
        }
        let dir = self.mounted.dir().to_owned();
        self.mounted.end();
        remove_directory(&dir);
    }

    fn write(&self) -> std::result::Result<(), String> {
        let touches = self.mounted.image().watch().touches().map_err(|error| with_causes(&error))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(&touches.text()));
        written.map_err(|error| error.to_string())?;
        tracing::info!(file = %self.file.display(), ranges = touches.ranges.len(), "wrote a trace");
        Ok(())
    }
}
