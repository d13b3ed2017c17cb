//! A FUSE session: the mount, the threads that answer the kernel, and how its end is noticed.
use super::{
    filesystem::TreeFilesystem,
    mount_point::{self, MountPoint},
};
use crate::{LazyImage, MountError, MountOptions};
use fuser::{Config, Session, SessionACL};
use std::{io, path::Path, thread};
use tokio::{runtime::Handle, sync::watch};

/// A mounted FUSE filesystem. Dropping it leaves it mounted: see [`FuseSession::unmount`].
pub(crate) struct FuseSession {
    mount_point: MountPoint,
    life: watch::Receiver<Life>,
}

/// Whether the kernel still asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// It was unmounted, and nothing of it is left.
    Unmounted,
    /// The connection broke, or was aborted through sysfs: it may still be mounted, and every request fails.
    Broken,
}

/// Mounts `image` on `dir`. Blocks for the handshake with the kernel.
pub(crate) fn mount(
    image: LazyImage,
    dir: &Path,
    options: &MountOptions,
    runtime: Handle,
) -> Result<FuseSession, MountError> {
    let refused = |doing| move |source: io::Error| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let threads = options.threads.max(1);
    let filesystem = TreeFilesystem::new(image, runtime, threads, options.recording.clone())
        .map_err(|error| refused("reading the tree's root")(io::Error::other(error)))?;
    let (real, connection) = mount_point::attach(dir, filesystem.root_mode())?;
    // Until the session runs, an error must not leave a mount behind that answers nothing.
    let abandon = |error| {
        if let Err(error) = mount_point::detach_all(&real) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed mount can't be undone");
        }
        error
    };
    let mut config = Config::default();
    config.n_threads = Some(threads);
    let session = Session::from_fd(filesystem, connection, SessionACL::All, config)
        .map_err(|source| abandon(refused("the handshake with the kernel")(source)))?;
    let (sender, life) = watch::channel(Life::Running);
    let name = real.clone();
    thread::Builder::new()
        .name("clipper-fuse".into())
        .spawn(move || {
            let end = match session.run() {
                Ok(()) => Life::Unmounted,
                Err(error) => {
                    tracing::error!(dir = %name.display(), %error, "the kernel's FUSE connection broke");
                    Life::Broken
                }
            };
            // Nobody waits any more if this fails.
            let _ = sender.send(end);
        })
        .map_err(|source| abandon(refused("starting a thread")(source)))?;
    let mount_point = MountPoint::of(real.clone()).map_err(abandon)?;
    if let Err(error) = mount_point.set_read_ahead(options.read_ahead_kib) {
        tracing::warn!(dir = %real.display(), %error, "read-ahead stays at the kernel's default");
    }
    Ok(FuseSession { mount_point, life })
}

impl FuseSession {
    pub(crate) fn dir(&self) -> &Path {
        self.mount_point.dir()
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.life.borrow() != Life::Running
    }

    pub(crate) async fn ended(&self) {
        // An error means that the sender is gone, and with it the session.
        let _ = self.life.clone().wait_for(|life| *life != Life::Running).await;
    }

    pub(crate) fn unmount(&self) -> Result<(), MountError> {
        // Another filesystem may have got the directory and even the device number since.
        if *self.life.borrow() == Life::Unmounted {
            return Ok(());
        }
        self.mount_point.detach()
    }
}
