//! A mounted image: the directory it is on, and how its life ends.
use crate::{Drivers, LazyImage, MountOptions, NoErofs, StoreError, handover::Keeping, mount_point, session::Session};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// An image mounted read-only on a directory. Dropping it unmounts; files that are still open then stay readable until
/// they are closed, as does an overlay that uses the mount. One of a store that was
/// [opened kept](crate::Store::open_kept) stays mounted when it is dropped, for the process's successor, until
/// [`unmount_dropped`](crate::Store::unmount_dropped) is called.
pub struct Mounted {
    dir: PathBuf,
    image: LazyImage,
    session: Session,
    keeping: Keeping,
}

/// Why an image can't be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The store can't make the image.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The kernel or the directory refuses.
    #[error("{}: {doing}", dir.display())]
    Kernel {
        /// Where the image is or should be mounted.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The driver `erofs` was asked for and can't work here.
    #[error(transparent)]
    NoErofs(Arc<NoErofs>),
    /// Something else is mounted over the image.
    #[error("{}: another file system is mounted over this one: unmount it first", dir.display())]
    Covered {
        /// Where the image is mounted.
        dir: PathBuf,
    },
    /// The process is shutting down.
    #[error("the mount was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl From<StoreError> for MountError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

impl Mounted {
    /// Mounts `image` on `dir`, an existing directory, with one of `drivers`.
    ///
    /// # Errors
    /// If `dir` isn't a directory or the kernel refuses; needs root and `/dev/fuse`.
    pub async fn mount(
        image: LazyImage,
        dir: &Path,
        options: &MountOptions,
        drivers: &Drivers,
    ) -> Result<Self, MountError> {
        let session = drivers.mount(&image, dir, options).await?;
        Ok(Self::adopt(image, session, options, drivers.keeping().clone()))
    }

    /// An image that this process or an earlier one has mounted, and this one serves.
    pub(crate) fn adopt(image: LazyImage, session: Session, options: &MountOptions, keeping: Keeping) -> Self {
        if options.background_fill {
            for device in image.devices() {
                device.device.start_fill();
            }
        }
        Self { dir: session.dir().to_owned(), image, session, keeping }
    }

    /// Where the image is mounted, as an absolute path without symlinks.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is mounted.
    pub fn image(&self) -> &LazyImage {
        &self.image
    }

    /// Whether the kernel still asks: not after an unmount, by whomever, once the last file is closed.
    pub fn is_live(&self) -> bool {
        !self.session.has_ended()
    }

    /// Waits until the kernel asks no more: the image was unmounted, by whomever, and the last open file and the last
    /// overlay on it are gone.
    pub async fn ended(&self) {
        self.session.ended().await;
    }

    /// Unmounts, also if the store's mounts stay when they are dropped. If that fails, the log tells.
    pub fn end(self) {
        self.unmount_or_tell();
    }

    fn unmount_or_tell(&self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(error = &error as &dyn std::error::Error, "an image can't be unmounted");
        }
    }

    /// Unmounts. If files are open, the image vanishes from the directory and lives on for who has them open. Nothing
    /// happens if it was unmounted already.
    ///
    /// # Errors
    /// If something else is mounted over the image, or the kernel refuses.
    pub fn unmount(&self) -> Result<(), MountError> {
        self.session.unmount()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.keeping.stays_mounted() {
            self.unmount_or_tell();
        }
    }
}

/// Unmounts whatever is mounted on `dir`, layer upon layer, lazily: what a process that died left behind. Tells whether
/// anything was.
///
/// # Errors
/// If the kernel refuses.
pub fn detach_stale(dir: &Path) -> Result<bool, MountError> {
    mount_point::detach_all(dir)
}
