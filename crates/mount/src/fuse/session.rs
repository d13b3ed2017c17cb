//! A FUSE session: the threads that answer the kernel, and how its end is noticed.
use super::{connection, filesystem::TreeFilesystem};
use crate::{
    LazyImage, MountError, MountOptions,
    mount_point::{self, MountPoint},
    session::{Life, Session},
};
use fuser::{Config, Filesystem, SessionACL};
use std::{io, os::fd::OwnedFd, path::Path, thread};
use tokio::{runtime::Handle, sync::watch};

/// Mounts `image` on `dir`. Blocks for the handshake with the kernel.
pub(crate) fn mount(
    image: LazyImage,
    dir: &Path,
    options: &MountOptions,
    runtime: Handle,
) -> Result<Session, MountError> {
    let refused = |doing| move |source: io::Error| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let threads = options.threads.max(1);
    let filesystem = TreeFilesystem::new(image, runtime, threads, options.recording.clone())
        .map_err(|error| refused("reading the tree's root")(io::Error::other(error)))?;
    let (real, connection) = connection::attach(dir, filesystem.root_mode())?;
    // Until the session runs, an error must not leave a mount behind that answers nothing.
    let abandon = |error| {
        if let Err(error) = mount_point::detach_all(&real) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed mount can't be undone");
        }
        error
    };
    let (sender, life) = watch::channel(Life::Running);
    let name = real.display().to_string();
    let end = move |life| {
        // Nobody waits any more if this fails.
        let _ = sender.send(life);
    };
    serve(filesystem, connection, threads, name, end)
        .map_err(|source| abandon(refused("the handshake with the kernel")(source)))?;
    let mount_point = MountPoint::of(real.clone()).map_err(abandon)?;
    if let Err(error) = mount_point.set_read_ahead(options.read_ahead_kib) {
        tracing::warn!(dir = %real.display(), %error, "read-ahead stays at the kernel's default");
    }
    Ok(Session { mount_point, life })
}

/// Shakes hands with the kernel, for which it blocks, and answers requests from `connection` with `threads` threads until
/// the filesystem, called `name` in the log, is gone; then tells `end` how it ended.
pub(crate) fn serve(
    filesystem: impl Filesystem,
    connection: OwnedFd,
    threads: usize,
    name: String,
    end: impl FnOnce(Life) + Send + 'static,
) -> io::Result<()> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    let session = fuser::Session::from_fd(filesystem, connection, SessionACL::All, config)?;
    thread::Builder::new().name("clipper-fuse".into()).spawn(move || {
        end(match session.run() {
            Ok(()) => Life::Unmounted,
            Err(error) => {
                tracing::error!(filesystem = name, %error, "the kernel's FUSE connection broke");
                Life::Broken
            }
        });
    })?;
    Ok(())
}
