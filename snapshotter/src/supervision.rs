//! The daemon's side of its supervisor: what an earlier daemon left, who keeps it for the next one, and when to make room.
use crate::supervisor::{API, Held, History, Link, Message, Waiting};
use anyhow::{Context, Result};
use clipper_mount::{Keeper, Kept};
use rustix::process::Signal;
use std::{
    io,
    os::{fd::BorrowedFd, unix::net::UnixListener},
    sync::Arc,
    thread,
};
use tokio::sync::oneshot;

/// What a daemon gets from its supervisor when it starts.
pub struct Supervision {
    /// containerd's socket.
    pub api: UnixListener,
    /// What an earlier daemon served.
    pub kept: Vec<Kept>,
    /// How often daemons were replaced so far.
    pub history: History,
    /// Comes when the daemon is to make room for another version.
    pub leave: oneshot::Receiver<()>,
    link: Arc<Link>,
}

impl Supervision {
    /// Takes over what the supervisor hands to this process, on its standard input. From now on this process ends with the
    /// supervisor: who reads from its mounts then must get an error.
    pub fn begin() -> Result<Self> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("follow the supervisor")?;
        // Else the kernel calls it by the path it was started from, which is `exe`.
        let _ = rustix::thread::set_name(c"clipper-snapshotter");
        let link = Arc::new(Link::from_stdin().context("listen to the supervisor")?);
        let (mut held, history) = Held::receive(&link).context("listen to the supervisor")?;
        let api = held.take(API).and_then(|api| api.into_iter().next()).context("the supervisor gave no socket")?;
        let kept = held.into_kept().map(|(name, descriptors)| Kept { name, descriptors }).collect();
        let (sender, leave) = oneshot::channel();
        let own = Arc::clone(&link);
        thread::Builder::new().name("supervision".into()).spawn(move || listen(&own, sender))?;
        Ok(Self { api: api.into(), kept, history, leave, link })
    }

    /// Has mounts kept for the next daemon.
    pub fn keeper(&self) -> Arc<dyn Keeper> {
        Arc::new(Supervisor(Arc::clone(&self.link)))
    }

    /// Tells that this daemon serves.
    pub fn serving(&self) -> io::Result<()> {
        self.link.send(&Message::Serving, &[], Waiting::Long)
    }
}

/// Listens for as long as the process lives. This thread touches no file that this process serves, so it can always end.
fn listen(link: &Link, leave: oneshot::Sender<()>) {
    let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let mut leave = Some(leave);
    if link.send(&Message::Thread(own), &[], Waiting::Long).is_ok() {
        while let Ok(Some((message, _))) = link.receive(Waiting::Long) {
            match (message, leave.take()) {
                (Message::Leave, Some(leave)) => drop(leave.send(())),
                (message, _) => tracing::warn!(?message, "the supervisor says what makes no sense"),
            }
        }
    }
    tracing::error!("the supervisor is gone");
    std::process::exit(1);
}

/// The supervisor, as the mount room knows it.
struct Supervisor(Arc<Link>);

impl Keeper for Supervisor {
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.send(&Message::Keep(name.into()), descriptors, Waiting::Long)
    }

    fn release(&self, name: &str) {
        if let Err(error) = self.0.send(&Message::Release(name.into()), &[], Waiting::Long) {
            tracing::warn!(name, %error, "the supervisor can't be told of a mount's end");
        }
    }
}

/// Ends this process at once with this status, without dropping anything: what is mounted stays, and what was asked and not
/// answered is answered by the next daemon.
pub fn leave_everything(status: i32) -> ! {
    std::process::exit(status)
}
