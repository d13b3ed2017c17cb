//! A daemon as its supervisor sees it: a process that was started, hears and tells, and ends.
use super::{
    held::Held,
    link::{Link, Waiting},
    protocol::{History, Message},
};
use crate::config::Role;
use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::{io::unix::AsyncFd, time::timeout};

/// The program itself: the same version as the supervisor, whatever the file is now.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Makes `pidfd_open` tell of one thread (`PIDFD_THREAD`, Linux 6.9).
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(0o200);
/// How long a process usually takes to be gone after one of its threads is.
const GONE_SOON: Duration = Duration::from_millis(50);
/// How long it may take once its threads wait for nobody any more.
const GONE_LATE: Duration = Duration::from_secs(2);

/// A running daemon.
pub struct Process {
    child: Child,
    link: AsyncFd<Link>,
    process: AsyncFd<OwnedFd>,
    /// A thread whose end is the daemon's, once it has told of it.
    thread: Option<AsyncFd<OwnedFd>>,
}

/// A descriptor that is watched by the runtime.
#[allow(deprecated, reason = "it is unsound for types that don't own what they say; these do, and nothing replaces it")]
fn watched<T: AsRawFd>(descriptor: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(descriptor)
}

/// The command line of this program in another role.
pub fn arguments(role: Role) -> impl Iterator<Item = OsString> {
    let given = std::env::args_os().skip(1);
    let is_role = |argument: &OsString| argument.as_encoded_bytes().starts_with(b"--role=");
    given.filter(move |argument| !is_role(argument)).chain([format!("--role={role}").into()])
}

impl Process {
    /// Starts a daemon, and hands over what is held.
    pub fn start(held: &Held, history: History) -> Result<Self> {
        let (link, other) = Link::pair().context("make a socket for the daemon")?;
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0("clipper-snapshotter").args(arguments(Role::Daemon)).stdin(Stdio::from(other));
        let child = command.spawn().context("start the daemon")?;
        // The descriptor that the command holds would keep the socket open.
        drop(command);
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("watch the daemon")?;
        let this = Self { child, link: watched(link)?, process: watched(process)?, thread: None };
        if let Err(error) = held.hand_over(this.link.get_ref(), history, Waiting::Long) {
            tracing::error!(%error, "the daemon doesn't take what is mounted");
            this.signal(Signal::KILL);
        }
        Ok(this)
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it says next; `None` once it is dead and has said all.
    pub async fn next(&mut self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            match self.link.get_ref().receive(Waiting::Never) {
                Ok(Some((Message::Thread(thread), _))) => self.watch(thread),
                Ok(None) => {
                    // It has closed its end, so it is about to be gone, or it is of no use.
                    self.signal(Signal::KILL);
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.is_dead().await? {
                        // What it said in between.
                        let last = self.link.get_ref().receive(Waiting::Never);
                        return last.or_else(|error| match error.kind() {
                            io::ErrorKind::WouldBlock => Ok(None),
                            _ => Err(error),
                        });
                    }
                }
                told => return told,
            }
        }
    }

    /// Waits for a message, or for its death, which it tells.
    async fn is_dead(&self) -> io::Result<bool> {
        let thread = async {
            match &self.thread {
                Some(thread) => thread.readable().await.map(drop),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            readable = self.link.readable() => {
                readable?.clear_ready();
                // Level-triggered again by the next attempt to receive.
                Ok(false)
            }
            dead = self.process.readable() => dead.map(|_| true),
            dead = thread => dead.map(|()| true),
        }
    }

    fn watch(&mut self, thread: u32) {
        let Some(thread) = i32::try_from(thread).ok().and_then(Pid::from_raw) else { return };
        // Before Linux 6.9 the whole process is watched.
        let opened = rustix::process::pidfd_open(thread, PIDFD_THREAD).map_err(io::Error::from);
        match opened.and_then(watched) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::debug!(%error, "no thread of the daemon can be watched"),
        }
    }

    /// Tells it something; fails if it doesn't listen.
    pub fn tell(&self, message: &Message) -> io::Result<()> {
        self.link.get_ref().send(message, &[], Waiting::Never)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It fails if the daemon is gone, which is noticed elsewhere.
        let _ = rustix::process::pidfd_send_signal(self.process.get_ref(), signal);
    }

    /// Waits until the dead daemon is gone with all its locks. `None` if it doesn't go: a new one has to wait for these.
    ///
    /// A thread of it that waits for what the daemon itself served would wait for the next daemon, and that one for its
    /// locks: so the kernel's questions of such threads in `held` are answered here.
    pub async fn gone(mut self, held: &Held) -> Option<ExitStatus> {
        self.signal(Signal::KILL);
        if timeout(GONE_SOON, self.process.readable()).await.is_err() {
            for connection in held.connections() {
                match clipper_mount::free_threads_of(self.id(), connection.as_fd()) {
                    Ok(0) => {}
                    Ok(threads) => tracing::debug!(threads, "threads of the dead daemon waited for itself"),
                    Err(error) => tracing::debug!(%error, "a connection is broken"),
                }
            }
            if timeout(GONE_LATE, self.process.readable()).await.is_err() {
                tracing::warn!(pid = self.id(), "the dead daemon doesn't go");
                return None;
            }
        }
        self.child.wait().ok()
    }
}
