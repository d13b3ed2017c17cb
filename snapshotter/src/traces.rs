//! Snapshots whose reads are recorded: each has a mount of its own, and leaves a trace file when it is removed.
use crate::{
    error::{Error, Result, with_causes},
    trees::{MountPlace, Trees, remove_directory},
};
use clipper_format::trace::write_trace;
use clipper_mount::{Mounted, Recording};
use std::{
    collections::HashMap,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// Label of a snapshot to be prepared whose reads are to be recorded: the file, which mustn't exist yet, that the trace
/// is written to when the snapshot is removed.
pub const LABEL_TRACE: &str = "containerd.io/snapshot/clipper.trace";

/// Recordings under way, by snapshot.
#[derive(Default)]
pub struct Traces(Mutex<HashMap<String, Traced>>);

/// One recording.
pub struct Traced {
    mounted: Mounted,
    recording: Arc<Recording>,
    file: PathBuf,
}

impl Traces {
    /// Mounts what a snapshot to be called `key` lies on, with its reads recorded for `file`; tells where.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `file` can't be a new file's name, and those of mounting.
    pub async fn start(&self, key: &str, file: &str, trees: &Trees, place: MountPlace<'_>) -> Result<PathBuf> {
        let file = PathBuf::from(file);
        if !file.is_absolute() || file.exists() {
            let text =
                format!("{LABEL_TRACE}: {} must be the absolute path of a file that isn't there", file.display());
            return Err(Error::InvalidArgument(text));
        }
        let recording = Arc::new(Recording::default());
        let mounted = trees.mount_recorded(place, Arc::clone(&recording)).await?;
        let dir = mounted.dir().to_owned();
        self.lock().insert(key.to_owned(), Traced { mounted, recording, file });
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
        let touches = self.recording.touches(self.mounted.image()).map_err(|error| with_causes(&error))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(&write_trace(&touches)));
        written.map_err(|error| error.to_string())?;
        tracing::info!(file = %self.file.display(), ranges = touches.len(), "wrote a trace");
        Ok(())
    }
}
