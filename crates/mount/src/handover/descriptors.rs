//! Descriptors that somebody keeps beyond the end of this process.
use super::Note;
use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Who keeps descriptors for the next process. It must hold them open, or the kernel gives up on what is mounted.
pub trait Keeper: Send + Sync + 'static {
    /// Keeps `descriptors` under `name`, in the place of what was kept under it.
    ///
    /// # Errors
    /// If it can't be told of them.
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()>;

    /// Lets go of what is kept under `name`. If that fails, the next process finds it out.
    fn release(&self, name: &str);
}

/// What an earlier process left to be kept.
#[derive(Debug)]
pub struct Kept {
    /// What it called them.
    pub name: String,
    /// In the order that they were kept in.
    pub descriptors: Vec<OwnedFd>,
}

/// How this process has its mounts kept. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keeping {
    keeper: Option<Arc<dyn Keeper>>,
    /// Makes names differ from those of earlier processes.
    generation: u64,
    last: Arc<AtomicU64>,
    /// Whether what is dropped stays mounted.
    stays_mounted: Arc<AtomicBool>,
}

impl Keeping {
    /// With nobody to keep them, mounts end with the process.
    pub(crate) fn new(keeper: Option<Arc<dyn Keeper>>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stays_mounted = Arc::new(AtomicBool::new(keeper.is_some()));
        Self { keeper, generation: since.as_millis() as u64, last: Arc::default(), stays_mounted }
    }

    /// Whether what is dropped stays mounted: the process may be about to end in disorder, and its successor goes on.
    pub(crate) fn stays_mounted(&self) -> bool {
        self.stays_mounted.load(Ordering::Acquire)
    }

    /// There will be no successor.
    pub(crate) fn unmount_dropped(&self) {
        self.stays_mounted.store(false, Ordering::Release);
    }

    /// A number that is larger than any that an earlier process counted to, if that counted from its own: the
    /// milliseconds since 1970.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// A name that was never given before.
    pub(crate) fn name(&self, kind: &str) -> String {
        format!("{kind}-{:x}-{}", self.generation, self.last.fetch_add(1, Ordering::Relaxed))
    }

    /// Has `note` and `descriptors` kept under `name`. If that fails, what they serve ends with this process, and the
    /// log says so.
    pub(crate) fn keep(&self, name: &str, note: &Note, descriptors: &[BorrowedFd<'_>]) {
        let Some(keeper) = &self.keeper else { return };
        let kept = note.to_file().and_then(|file| {
            let mut all = vec![file.as_fd()];
            all.extend_from_slice(descriptors);
            keeper.keep(name, &all)
        });
        if let Err(error) = kept {
            tracing::warn!(name, %error, "a mount is not kept: it would not outlive this process");
        }
    }

    /// Has what is kept under `name` let go.
    pub(crate) fn release(&self, name: &str) {
        if let Some(keeper) = &self.keeper {
            keeper.release(name);
        }
    }
}
