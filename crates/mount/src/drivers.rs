//! The drivers of a process: which of them work here, and what they keep between mounts.
use crate::{
    Driver, LazyImage, MountError, MountOptions, NoErofs,
    erofs::{self, DeviceFiles},
    fuse,
    handover::{Keeper, Keeping},
    session::Session,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    runtime::Handle,
    sync::OnceCell,
    task::{JoinError, spawn_blocking},
};

/// What mounts need beside an image. Cheap to clone.
#[derive(Clone)]
pub struct Drivers {
    inner: Arc<Inner>,
}

struct Inner {
    /// Where files without names are written.
    scratch: PathBuf,
    runtime: Handle,
    keeping: Keeping,
    /// Whether the driver `erofs` works, once that was tried.
    erofs: OnceCell<Result<(), Arc<NoErofs>>>,
    device_files: Mutex<Option<Arc<DeviceFiles>>>,
}

impl Drivers {
    /// For trees on the filesystem of directory `scratch`. Tasks that fetch run on `runtime`.
    pub fn new(scratch: PathBuf, runtime: Handle) -> Self {
        Self::kept(scratch, runtime, None)
    }

    /// As [`new`](Self::new), with somebody who keeps mounts for the next process.
    pub(crate) fn kept(scratch: PathBuf, runtime: Handle, keeper: Option<Arc<dyn Keeper>>) -> Self {
        let (keeping, erofs, device_files) = (Keeping::new(keeper), OnceCell::new(), Mutex::default());
        Self { inner: Arc::new(Inner { scratch, runtime, keeping, erofs, device_files }) }
    }

    pub(crate) fn keeping(&self) -> &Keeping {
        &self.inner.keeping
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.inner.runtime
    }

    /// Makes new mounts of the driver `erofs` have their devices in `files`.
    pub(crate) fn go_on_with(&self, files: DeviceFiles) {
        *self.inner.device_files.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(files));
    }

    /// The driver that `wanted` means here: never [`Driver::Auto`]. The first time that takes a trial mount.
    ///
    /// # Errors
    /// If `wanted` is [`Driver::Erofs`] and that can't work here.
    pub async fn choose(&self, wanted: Driver) -> Result<Driver, MountError> {
        if wanted == Driver::Fuse {
            return Ok(Driver::Fuse);
        }
        let inner = Arc::clone(&self.inner);
        let probing = async move {
            let probed = spawn_blocking(move || erofs::probe(&inner.scratch)).await?;
            if let Err(error) = &probed
                && wanted == Driver::Auto
            {
                let error = error as &dyn std::error::Error;
                tracing::warn!(error, "images are mounted with the driver fuse");
            }
            Ok::<_, JoinError>(probed.map_err(Arc::new))
        };
        match self.inner.erofs.get_or_try_init(|| probing).await? {
            Ok(()) => Ok(Driver::Erofs),
            Err(_) if wanted == Driver::Auto => Ok(Driver::Fuse),
            Err(error) => Err(MountError::NoErofs(Arc::clone(error))),
        }
    }

    pub(crate) async fn mount(
        &self,
        image: &LazyImage,
        dir: &Path,
        options: &MountOptions,
    ) -> Result<Session, MountError> {
        let wanted = options.driver;
        if self.choose(wanted).await? == Driver::Erofs {
            match self.blocking(image, dir, options, Inner::mount_erofs).await {
                Err(error) if wanted == Driver::Auto => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "an image is mounted with the driver fuse");
                }
                mounted => return mounted,
            }
        }
        self.blocking(image, dir, options, Inner::mount_fuse).await
    }

    /// Does `work`, which may block.
    async fn blocking(
        &self,
        image: &LazyImage,
        dir: &Path,
        options: &MountOptions,
        work: fn(&Inner, LazyImage, &Path, &MountOptions) -> Result<Session, MountError>,
    ) -> Result<Session, MountError> {
        let (inner, image, dir, options) = (Arc::clone(&self.inner), image.clone(), dir.to_owned(), options.clone());
        spawn_blocking(move || work(&inner, image, &dir, &options)).await?
    }
}

impl Inner {
    fn mount_fuse(&self, image: LazyImage, dir: &Path, options: &MountOptions) -> Result<Session, MountError> {
        fuse::mount(image, dir, options, self.runtime.clone(), &self.keeping)
    }

    fn mount_erofs(&self, image: LazyImage, dir: &Path, options: &MountOptions) -> Result<Session, MountError> {
        let refused = |source| {
            let doing = "starting the file system of devices";
            MountError::Kernel { dir: dir.to_owned(), doing, source }
        };
        let files = self.device_files().map_err(refused)?;
        erofs::mount(&image, dir, &files, &self.scratch, options.read_ahead_kib)
    }

    /// The device filesystem, started if it isn't running.
    fn device_files(&self) -> io::Result<Arc<DeviceFiles>> {
        let mut files = self.device_files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = files.as_ref().filter(|files| !files.has_ended()) {
            return Ok(Arc::clone(running));
        }
        let started = Arc::new(DeviceFiles::start(self.runtime.clone(), self.keeping.clone())?);
        *files = Some(Arc::clone(&started));
        Ok(started)
    }
}
