//! The supervisor: a small process that holds the kernel's FUSE connections and containerd's socket open, and has a daemon
//! serve them. When the daemon dies, or is replaced by another version, the next one goes on where it was, and containers
//! only see a pause. It does nothing else, so that it has no reason to die.
mod held;
mod link;
mod pace;
mod process;
mod protocol;
mod sockets;
mod upgrade;

use crate::config::{Config, Role};
use anyhow::{Context, Result, bail};
pub use held::Held;
pub use link::{Link, Waiting};
use pace::{Next, Pace};
use process::Process;
pub use protocol::{History, Message};
use std::{
    os::{fd::OwnedFd, unix::net::UnixListener},
    pin::pin,
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
pub use upgrade::upgrade;
use upgrade::{Event, Upgrades, Waiter};

/// What containerd's socket is held as; the daemon gets it beside what it had kept.
pub const API: &str = "api";
/// The supervisor's own socket, and those who wait for an upgrade to end, as one supervisor hands them to the next.
const OWN: &str = "supervisor";
const WAITERS: &str = "waiter-";

/// How long a daemon may take to end in order.
const PATIENCE: Duration = Duration::from_secs(20);

/// The supervisor of one daemon after the other.
struct Supervisor {
    config: Config,
    held: Held,
    history: History,
    pace: Pace,
    upgrades: Upgrades,
    signals: Signals,
    /// Whether any daemon ever served: until then its failure is this program's.
    served: bool,
    /// When the last daemon was found to be dead.
    died: Option<Instant>,
}

/// What this process can be told. Listened to all the time, or a signal would be lost.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// How a daemon ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It was told to stop.
    Stopped,
    /// It has made room for another version.
    Left,
    /// By itself.
    Died,
}

/// What a daemon has been asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Serve,
    Stop,
    Leave,
}

/// Supervises daemons until it is told to stop, or they don't live.
pub async fn run(config: Config, role: Role) -> Result<ExitCode> {
    let mut supervisor = if role == Role::Resumed { Supervisor::resume(config)? } else { Supervisor::begin(config)? };
    let ended = supervisor.supervise().await;
    sockets::remove(&supervisor.config.address);
    sockets::remove(&sockets::own_address(&supervisor.config.address));
    ended
}

impl Supervisor {
    fn begin(config: Config) -> Result<Self> {
        let mut held = Held::default();
        held.keep(API.into(), vec![sockets::bind(&config.address)?.into()]);
        let own = sockets::bind(&sockets::own_address(&config.address))?;
        let (history, upgrades) = (History::default(), Upgrades::new(own, Vec::new())?);
        let signals = Signals::listen()?;
        Ok(Self { config, held, history, pace: Pace::default(), upgrades, signals, served: false, died: None })
    }

    /// Goes on where this process was before it became another version of the program.
    fn resume(config: Config) -> Result<Self> {
        let link = Link::from_stdin().context("take over from the earlier version")?;
        let (mut held, mut history) = Held::receive(&link).context("take over from the earlier version")?;
        history.upgrades += 1;
        history.last = now();
        let own =
            held.take(OWN).and_then(|own| own.into_iter().next()).context("the earlier version gave no socket")?;
        let waiters = held.take_all(WAITERS).into_iter().map(Waiter::from).collect();
        let upgrades = Upgrades::new(UnixListener::from(own), waiters)?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), kept = held.len(), "the supervisor is another version now");
        let (signals, died) = (Signals::listen()?, Some(Instant::now()));
        Ok(Self { config, held, history, pace: Pace::default(), upgrades, signals, served: true, died })
    }

    async fn supervise(&mut self) -> Result<ExitCode> {
        loop {
            let (end, status) = match Process::start(&self.held, self.history) {
                Ok(daemon) => {
                    let (end, daemon) = self.attend(daemon).await;
                    self.died = Some(Instant::now());
                    (end, daemon.gone(&self.held).await)
                }
                Err(error) if !self.served => return Err(error),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "no daemon can be started");
                    (End::Died, None)
                }
            };
            let told = status.map_or_else(|| "no status".to_owned(), |status| status.to_string());
            match end {
                End::Stopped => return Ok(ExitCode::SUCCESS),
                End::Left => {
                    let error = self.become_another_version();
                    tracing::error!(%error, "the other version can't be started: this one goes on");
                    self.upgrades.answer(&format!("error: the other version can't be started: {error}"));
                }
                End::Died if !self.served => {
                    // It has told why.
                    let code = status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
                    return Ok(code.filter(|code| *code != 0).map_or(ExitCode::FAILURE, ExitCode::from));
                }
                End::Died => {
                    self.history.takeovers += 1;
                    self.history.last = now();
                    let pause = match self.pace.died(Instant::now()) {
                        Next::Start(pause) => pause,
                        Next::GiveUp(deaths) => bail!(
                            "{deaths} daemons died within a minute, the last one with {told}: containers' reads fail \
                             from now on; see the log for what they said last"
                        ),
                    };
                    let takeovers = self.history.takeovers;
                    tracing::error!(status = told, takeovers, ?pause, "the daemon died: another one takes over");
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.signals.stop() => return Ok(ExitCode::SUCCESS),
                    }
                }
            }
        }
    }

    /// Listens to the daemon until it ends.
    async fn attend(&mut self, mut daemon: Process) -> (End, Process) {
        let mut asked = Asked::Serve;
        let mut limit = pin!(sleep(Duration::MAX));
        loop {
            tokio::select! {
                // What it tells goes first: all of it counts, also of a daemon that is dead.
                biased;
                told = daemon.next() => match told {
                    Ok(Some((Message::Keep(name), descriptors))) => self.held.keep(name, descriptors),
                    Ok(Some((Message::Release(name), _))) => drop(self.held.take(&name)),
                    Ok(Some((Message::Serving, _))) => self.is_serving(daemon.id()),
                    Ok(Some((message, _))) => tracing::warn!(?message, "the daemon says what makes no sense"),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "the daemon can't be understood");
                        break;
                    }
                },
                told = self.signals.next() => match told {
                    Told::Stop => {
                        asked = Asked::Stop;
                        limit.as_mut().reset(tokio::time::Instant::now() + PATIENCE);
                        daemon.signal(rustix::process::Signal::TERM);
                    }
                    Told::Upgrade => self.upgrades.begin(None),
                },
                event = self.upgrades.next() => match event {
                    Event::Asked(waiter) => self.upgrades.begin(Some(waiter)),
                    Event::Checked(Ok(())) if asked == Asked::Serve => {
                        asked = Asked::Leave;
                        limit.as_mut().reset(tokio::time::Instant::now() + PATIENCE);
                        tracing::info!("another version of the program takes over");
                        if daemon.tell(&Message::Leave).is_err() {
                            break;
                        }
                    }
                    Event::Checked(Ok(())) => {}
                    Event::Checked(Err(error)) => {
                        tracing::error!(error, "the other version of the program is of no use: this one goes on");
                        self.upgrades.answer(&format!("error: {error}"));
                    }
                },
                () = &mut limit => {
                    tracing::warn!("the daemon takes too long to end: it is killed");
                    daemon.signal(rustix::process::Signal::KILL);
                    limit.as_mut().reset(tokio::time::Instant::now() + PATIENCE);
                }
            }
        }
        let end = match asked {
            Asked::Serve => End::Died,
            Asked::Stop => End::Stopped,
            Asked::Leave => End::Left,
        };
        (end, daemon)
    }

    fn is_serving(&mut self, pid: u32) {
        let History { takeovers, upgrades, .. } = self.history;
        if let Some(died) = self.died.take() {
            let after = died.elapsed();
            tracing::info!(pid, ?after, takeovers, upgrades, "another daemon has taken over");
        }
        self.served = true;
        self.upgrades.ended(&format!("ok: version {} serves", env!("CARGO_PKG_VERSION")));
    }

    /// Makes this process run what is at the program's path now, with all that is held. Returns if that fails, and why.
    fn become_another_version(&mut self) -> anyhow::Error {
        let resumed = |this: &mut Self| -> Result<()> {
            let (link, other) = Link::pair()?;
            let (own, waiters) = this.upgrades.descriptors()?;
            this.held.keep(OWN.into(), vec![own]);
            for (number, waiter) in waiters.into_iter().enumerate() {
                this.held.keep(format!("{WAITERS}{number}"), vec![waiter]);
            }
            this.held.hand_over(&link, this.history, Waiting::Never)?;
            rustix::stdio::dup2_stdin(&other)?;
            Err(this.upgrades.exec())
        };
        let error = resumed(self).err().unwrap_or_else(|| anyhow::anyhow!("it did nothing"));
        drop((self.held.take(OWN), self.held.take_all(WAITERS)));
        if let Ok(null) = std::fs::File::open("/dev/null").map(OwnedFd::from) {
            let _ = rustix::stdio::dup2_stdin(null);
        }
        error
    }
}

/// What a signal says.
enum Told {
    Stop,
    Upgrade,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("listen to signals");
        let (terminate, interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: listen(SignalKind::hangup())? })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Upgrade,
        }
    }

    /// Waits until it is told to stop.
    async fn stop(&mut self) {
        while !matches!(self.next().await, Told::Stop) {}
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
