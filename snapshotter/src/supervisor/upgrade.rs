//! Replacing the running program by what is at its path now: `clipper-snapshotter upgrade` asks the supervisor, which tries
//! the other version out, and becomes it once the daemon has made room.
use super::{process::arguments, sockets};
use crate::config::{Config, Role};
use anyhow::{Context, Result, bail};
use std::{
    io::{Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::PathBuf,
    pin::Pin,
    process::{Command, Stdio},
    time::Duration,
};
use tokio::time::timeout;

/// How long the other version may take to say that its configuration is right.
const CHECK: Duration = Duration::from_secs(20);
/// How long an upgrade may take for the one who asked.
const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of an answer.
const ANSWER_MAX: u64 = 64 << 10;

type Checking = Pin<Box<dyn Future<Output = Result<(), String>>>>;

/// Upgrades that are asked for.
pub struct Upgrades {
    /// Where this program was when it started, and where the next version of it is.
    program: PathBuf,
    listener: tokio::net::UnixListener,
    waiters: Vec<Waiter>,
    checking: Option<Checking>,
}

/// What comes up.
pub enum Event {
    /// Somebody asks for an upgrade.
    Asked(Waiter),
    /// Whether the other version seems to be of use, or what it complains of.
    Checked(Result<(), String>),
}

/// Somebody who waits for an answer.
pub struct Waiter(UnixStream);

impl From<OwnedFd> for Waiter {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl Upgrades {
    /// Those asked for at `listener`, and one that is under way, for which `waiters` wait.
    pub fn new(listener: UnixListener, waiters: Vec<Waiter>) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let program = std::env::current_exe().context("find this program's file")?;
        Ok(Self { program, listener, waiters, checking: None })
    }

    /// What comes up next.
    pub async fn next(&mut self) -> Event {
        let Self { listener, checking, .. } = self;
        tokio::select! {
            waiter = asked(listener) => Event::Asked(waiter),
            checked = checked(checking) => Event::Checked(checked),
        }
    }

    /// Begins one, if none is under way; `waiter` gets its answer.
    pub fn begin(&mut self, waiter: Option<Waiter>) {
        self.waiters.extend(waiter);
        if self.checking.is_none() {
            let program = self.program.clone();
            self.checking = Some(Box::pin(check(program)));
        }
    }

    /// Answers all who wait.
    pub fn answer(&mut self, text: &str) {
        for Waiter(mut stream) in self.waiters.drain(..) {
            // Whoever hung up isn't interested.
            let _ = stream.set_nonblocking(true).and_then(|()| writeln!(stream, "{text}"));
        }
    }

    /// Answers all who wait for the end of an upgrade, unless it has only begun.
    pub fn ended(&mut self, text: &str) {
        if self.checking.is_none() {
            self.answer(text);
        }
    }

    /// What the next version needs to go on: the socket, and who waits.
    pub fn descriptors(&self) -> Result<(OwnedFd, Vec<OwnedFd>)> {
        use std::os::fd::AsFd as _;
        let waiters: std::io::Result<Vec<_>> = self.waiters.iter().map(|waiter| waiter.0.try_clone()).collect();
        let waiters = waiters?.into_iter().map(OwnedFd::from).collect();
        Ok((self.listener.as_fd().try_clone_to_owned()?, waiters))
    }

    /// Makes this process the other version; returns why it can't.
    pub fn exec(&self) -> anyhow::Error {
        let error = Command::new(&self.program).args(arguments(Role::Resumed)).exec();
        anyhow::Error::new(error).context(format!("run {}", self.program.display()))
    }
}

/// Who asks for the next one: to connect is to ask.
async fn asked(listener: &tokio::net::UnixListener) -> Waiter {
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => return Waiter(stream),
            Err(error) => {
                tracing::warn!(%error, "nobody can ask for an upgrade");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn checked(checking: &mut Option<Checking>) -> Result<(), String> {
    match checking {
        Some(under_way) => {
            let checked = under_way.await;
            *checking = None;
            checked
        }
        None => std::future::pending().await,
    }
}

/// Whether the program at this path can read its configuration, or what it complains of.
async fn check(program: PathBuf) -> Result<(), String> {
    let at = program.display().to_string();
    let mut command = tokio::process::Command::new(program);
    command.args(arguments(Role::Supervisor)).arg("--check").stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(CHECK, command.output()).await {
        Err(_) => return Err(format!("{at} says nothing")),
        Ok(Err(error)) => return Err(format!("{at} can't be run: {error}")),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{at}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

/// Has the snapshotter that serves at the address of `config` replaced by what is at its program's path now, and waits
/// until that serves; gives what it says.
pub fn upgrade(config: &Config) -> Result<String> {
    let path = sockets::own_address(&config.address);
    let mut stream = UnixStream::connect(&path)
        .with_context(|| format!("ask at {}: does clipper-snapshotter run, and with this address?", path.display()))?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut answer = String::new();
    let read = (&mut stream).take(ANSWER_MAX).read_to_string(&mut answer);
    read.context("the snapshotter doesn't answer: its log tells more")?;
    match answer.trim().split_once(": ") {
        Some(("ok", text)) => Ok(text.into()),
        Some(("error", text)) => bail!("not upgraded: {text}"),
        _ => bail!("the snapshotter ended meanwhile: its log tells more"),
    }
}
