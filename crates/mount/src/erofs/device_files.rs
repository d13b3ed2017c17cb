//! The running device filesystem of a process.
use super::{
    context::path_of,
    filesystem::DeviceFilesystem,
    open_files::{FileId, OpenFiles},
};
use crate::{
    LazyImage,
    fuse::{self, MAX_READ},
    handover::{Keeping, MountNote, Note},
    session::Life,
};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
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
    keeping: Keeping,
    /// What it is kept as for the next process, if it can be.
    kept: Option<String>,
}

/// A device filesystem that an earlier process served.
pub(crate) struct KeptFiles {
    /// What it is kept as.
    pub(crate) name: String,
    pub(crate) connection: OwnedFd,
    pub(crate) root: OwnedFd,
    /// What was agreed on with the kernel.
    pub(crate) flags: u64,
}

/// A mount whose devices are in such a filesystem.
pub(crate) struct KeptImage {
    /// What it is kept as.
    pub(crate) name: String,
    /// Its number in the filesystem.
    pub(crate) number: u64,
    pub(crate) image: LazyImage,
}

/// The device files of an image about to be mounted; they vanish when this is dropped, unless it is [kept](DeviceFiles::keep).
pub(super) struct NewFiles {
    /// In the order of the tree's device table.
    pub(super) paths: Vec<PathBuf>,
    files: Arc<OpenFiles>,
    number: u64,
    kept: bool,
    life: watch::Receiver<Life>,
}

impl DeviceFiles {
    /// Starts it. Blocks for the handshake with the kernel.
    pub(crate) fn start(runtime: Handle, keeping: Keeping) -> io::Result<Self> {
        let (root, connection) = fuse::detached(MAX_READ)?;
        let kept = connection.try_clone()?;
        let name = keeping.name("devices");
        let (mut this, filesystem, end) = Self::over(root, runtime, keeping, name.clone());
        let agreement = filesystem.agreement();
        fuse::serve(filesystem, connection, threads(), "devices".into(), end)?;
        if let Some(flags) = agreement.lasting() {
            this.keeping.keep(&name, &Note::Devices { flags }, &[kept.as_fd(), this.root.as_fd()]);
            this.kept = Some(name);
        }
        Ok(this)
    }

    /// Goes on with one that an earlier process served, and with the mounts that have their devices in it; tells what
    /// becomes of each. Blocks for a moment.
    pub(crate) fn take_over(
        kept: KeptFiles,
        images: Vec<KeptImage>,
        runtime: Handle,
        keeping: Keeping,
    ) -> io::Result<(Self, Vec<watch::Receiver<Life>>)> {
        let KeptFiles { name, connection, root, flags } = kept;
        let (mut this, filesystem, end) = Self::over(root, runtime, keeping, name.clone());
        let take_over = |KeptImage { name, number, image }| this.files.take_over(number, image, name);
        // All of them before it answers: what it doesn't know it says isn't there.
        let lives = images.into_iter().map(take_over).collect();
        let agreement = filesystem.agreement();
        fuse::serve_again(filesystem, connection, (flags, agreement), threads(), "devices".into(), end)?;
        this.kept = Some(name);
        Ok((this, lives))
    }

    /// The filesystem below `root`, kept as `name`, and what is to happen at its end.
    fn over(
        root: OwnedFd,
        runtime: Handle,
        keeping: Keeping,
        name: String,
    ) -> (Self, DeviceFilesystem, impl FnOnce(Life) + Send + 'static) {
        let (files, ended) = (Arc::new(OpenFiles::new(keeping.clone())), Arc::<AtomicBool>::default());
        let filesystem = DeviceFilesystem::new(Arc::clone(&files), runtime, threads());
        let (files_at_end, ended_at_end, kept) = (Arc::clone(&files), Arc::clone(&ended), keeping.clone());
        let end = move |life| {
            ended_at_end.store(true, Ordering::Release);
            files_at_end.end(life);
            kept.release(&name);
        };
        (Self { root, files, ended, mounting: Mutex::default(), keeping, kept: None }, filesystem, end)
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
        let (number, life) = self.files.add(image.clone());
        let root = path_of(&self.root);
        let numbers = (1..=u16::MAX).take(image.devices().len());
        let paths = numbers.map(|device| root.join(FileId::new(number, device).name())).collect();
        NewFiles { paths, files: Arc::clone(&self.files), number, kept: false, life }
    }

    /// Leaves `files` to the kernel, which has them open for what `mount` tells of: they go when it closes them. Tells
    /// what becomes of the mount, which the next process can take over.
    pub(super) fn keep(&self, mut files: NewFiles, mount: Option<MountNote>) -> watch::Receiver<Life> {
        files.kept = true;
        if let (Some(own), Some(mount)) = (&self.kept, mount) {
            let note = Note::Image { files: own.clone(), number: files.number, mount };
            self.files.keep(files.number, |name| self.keeping.keep(name, &note, &[]));
        }
        files.life.clone()
    }
}

fn threads() -> usize {
    thread::available_parallelism().map_or(2, |n| n.get().clamp(2, THREADS_MAX))
}

impl Drop for NewFiles {
    fn drop(&mut self) {
        if !self.kept {
            self.files.forget(self.number);
        }
    }
}
