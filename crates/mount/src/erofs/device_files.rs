//! The running device filesystem of a process.
use super::{
    context::path_of,
    filesystem::DeviceFilesystem,
    open_files::{FileId, OpenFiles},
};
use crate::{
    LazyImage,
    fuse::{self, MAX_READ},
    session::Life,
};
use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::{runtime::Handle, sync::watch};

/// Most threads that answer the kernel, for all images together. They only answer what is cached.
const THREADS_MAX: usize = 4;

/// The device filesystem. It goes on answering after it was dropped, until the kernel has let go of the last mount.
pub(crate) struct DeviceFiles {
    root: OwnedFd,
    files: Arc<OpenFiles>,
    ended: Arc<AtomicBool>,
    mounting: Mutex<()>,
}

/// The device files of an image about to be mounted; they vanish when this is dropped, unless it is [kept](Self::keep).
pub(super) struct NewFiles {
    /// In the order of the tree's device table.
    pub(super) paths: Vec<PathBuf>,
    files: Arc<OpenFiles>,
    mount: Option<u64>,
    life: watch::Receiver<Life>,
}

impl DeviceFiles {
    /// Starts it. Blocks for the handshake with the kernel.
    pub(crate) fn start(runtime: Handle) -> io::Result<Self> {
        let (root, connection) = fuse::detached(MAX_READ)?;
        let threads = thread::available_parallelism().map_or(2, |n| n.get().clamp(2, THREADS_MAX));
        let (files, ended) = (Arc::<OpenFiles>::default(), Arc::<AtomicBool>::default());
        let filesystem = DeviceFilesystem::new(Arc::clone(&files), runtime, threads);
        let (files_at_end, ended_at_end) = (Arc::clone(&files), Arc::clone(&ended));
        fuse::serve(filesystem, connection, threads, "devices".into(), move |life| {
            ended_at_end.store(true, Ordering::Release);
            files_at_end.end(life);
        })?;
        Ok(Self { root, files, ended, mounting: Mutex::default() })
    }

    /// Whether it answers no more: somebody aborted its connection.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Keeps others from mounting meanwhile.
    pub(super) fn alone(&self) -> MutexGuard<'_, ()> {
        self.mounting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files of the devices of `image`, for one mount.
    pub(super) fn add(&self, image: &LazyImage) -> NewFiles {
        let (mount, life) = self.files.add(image.clone());
        let root = path_of(&self.root);
        let numbers = (1..=u16::MAX).take(image.devices().len());
        let paths = numbers.map(|device| root.join(FileId::new(mount, device).name())).collect();
        NewFiles { paths, files: Arc::clone(&self.files), mount: Some(mount), life }
    }
}

impl NewFiles {
    /// Leaves the files to the kernel, which has them open: they go when it closes them. Tells what becomes of the mount.
    pub(super) fn keep(mut self) -> watch::Receiver<Life> {
        self.mount = None;
        self.life.clone()
    }
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        if let Some(mount) = self.mount {
            self.files.forget(mount);
        }
    }
}
