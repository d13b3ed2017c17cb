//! A FUSE session: the threads that answer the kernel, and how its end is noticed.
use super::{
    connection,
    filesystem::TreeFilesystem,
    handshake::{self, Agreement},
};
use crate::{
    LazyImage, MountError, MountOptions,
    handover::{Keeping, MountNote, Note},
    mount_point::{self, MountPoint},
    session::{Life, Session},
};
use fuser::{Config, Filesystem, SessionACL};
use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    thread,
};
use tokio::{runtime::Handle, sync::watch};

/// A tree that an earlier process served.
pub(crate) struct KeptTree {
    /// What it is kept as.
    pub(crate) name: String,
    pub(crate) image: LazyImage,
    pub(crate) connection: OwnedFd,
    /// What was agreed on with the kernel.
    pub(crate) flags: u64,
    pub(crate) threads: usize,
}

/// Mounts `image` on `dir`. Blocks for the handshake with the kernel.
pub(crate) fn mount(
    image: LazyImage,
    dir: &Path,
    options: &MountOptions,
    runtime: Handle,
    keeping: &Keeping,
) -> Result<Session, MountError> {
    let refused = |doing| move |source: io::Error| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let threads = options.threads.max(1);
    let filesystem = TreeFilesystem::new(image.clone(), runtime, threads)
        .map_err(|error| refused("reading the tree's root")(io::Error::other(error)))?;
    let (real, connection) = connection::attach(dir, filesystem.root_mode())?;
    // Until the session runs, an error must not leave a mount behind that answers nothing.
    let abandon = |error| {
        if let Err(error) = mount_point::detach_all(&real) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed mount can't be undone");
        }
        error
    };
    let kept = connection.try_clone().map_err(|error| abandon(refused("mounting")(error)))?;
    let agreement = filesystem.agreement();
    let name = keeping.name("tree");
    let (end, life) = ending(name.clone(), keeping.clone());
    serve(filesystem, connection, threads, real.display().to_string(), end)
        .map_err(|source| abandon(refused("the handshake with the kernel")(source)))?;
    let mount_point = MountPoint::of(real.clone()).map_err(abandon)?;
    if let Err(error) = mount_point.set_read_ahead(options.read_ahead_kib) {
        tracing::warn!(dir = %real.display(), %error, "read-ahead stays at the kernel's default");
    }
    if let (Some(flags), Some(origin)) = (agreement.lasting(), image.origin()) {
        let mount = MountNote { dir: real, device: mount_point.device(), origin: origin.clone() };
        keeping.keep(&name, &Note::Tree { flags, threads, mount }, &[kept.as_fd()]);
    }
    Ok(Session { mount_point, life })
}

/// Serves a tree that an earlier process served; tells what becomes of it. Blocks for a moment.
pub(crate) fn take_over(tree: KeptTree, runtime: Handle, keeping: Keeping) -> io::Result<watch::Receiver<Life>> {
    let KeptTree { name, image, connection, flags, threads } = tree;
    let filesystem = TreeFilesystem::new(image, runtime, threads).map_err(io::Error::other)?;
    let agreement = filesystem.agreement();
    let (end, life) = ending(name.clone(), keeping);
    serve_again(filesystem, connection, (flags, agreement), threads, name, end)?;
    Ok(life)
}

/// What is to happen when a tree kept as `name` is gone, and a look at whether it is.
fn ending(name: String, keeping: Keeping) -> (impl FnOnce(Life) + Send + 'static, watch::Receiver<Life>) {
    let (sender, life) = watch::channel(Life::Running);
    let end = move |life| {
        keeping.release(&name);
        // Nobody waits any more if this fails.
        let _ = sender.send(life);
    };
    (end, life)
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
    run(fuser::Session::from_fd(filesystem, connection, SessionACL::All, config(threads))?, name, end)
}

/// As [`serve`], through a `connection` that another process has shaken hands on, with these flags, and left. What it was
/// asked and hasn't answered is asked again.
pub(crate) fn serve_again(
    filesystem: impl Filesystem,
    connection: OwnedFd,
    (flags, agreement): (u64, Agreement),
    threads: usize,
    name: String,
    end: impl FnOnce(Life) + Send + 'static,
) -> io::Result<()> {
    let (played, _answer) = handshake::played(flags)?;
    let session = fuser::Session::from_fd(filesystem, played, SessionACL::All, config(threads))?;
    if agreement.lasting() != Some(flags) {
        return Err(io::Error::other("another version agreed with the kernel on what this one can't keep to"));
    }
    replace(&session, &connection)?;
    handshake::resend(&connection)?;
    run(session, name, end)
}

fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    config
}

/// Makes `session`, whose threads don't run yet, read from `connection` from now on.
#[allow(unsafe_code)]
fn replace<F: Filesystem>(session: &fuser::Session<F>, connection: &OwnedFd) -> io::Result<()> {
    let number = session.as_fd().as_raw_fd();
    // SAFETY: the session owns the descriptor of this number and outlives the call. It isn't closed here, as its second
    // owner is never dropped; what it is open for changes, which the session takes no note of: it only reads and writes.
    let mut descriptor = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup3(connection, &mut descriptor, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Starts the threads of a session.
fn run(
    session: fuser::Session<impl Filesystem>,
    name: String,
    end: impl FnOnce(Life) + Send + 'static,
) -> io::Result<()> {
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
