//! Background processes: started with their output in a file, ended with their owner, their log shown when a test fails.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program. Its standard output and error go to the file `log`.
    pub fn start(name: &str, program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        // The kernel ends it when the thread that started it does, so that a killed test leaves no daemons.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name: name.into(), child, log: log.into() })
    }

    /// Waits until `ready` gives something.
    pub fn wait_until<T>(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            if let Some(result) = ready() {
                return Ok(result);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before {what}; it said:\n{}", self.name, self.tail());
            }
            if start.elapsed() > limit {
                bail!("{} took over {limit:?} for {what}; it said:\n{}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process ids of its children.
    pub fn children(&self) -> Vec<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap_or_default();
        children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// A line of its `/proc/PID/status`, in kibibytes: `VmRSS`, `VmHWM`, …
    pub fn memory_kib(&self, field: &str) -> Result<u64> {
        memory_kib(self.pid(), field)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to end and waits; after ten seconds it is killed.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} did not end within ten seconds of SIGTERM", self.name);
        self.kill()
    }

    /// Ends it at once, as a crash would, and waits for its children, who end with it if they are of the kind that does.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        let children = self.children();
        self.signal(Signal::KILL);
        let status = self.child.wait()?;
        let start = Instant::now();
        while children.iter().any(|child| is_running(*child)) && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(status)
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(60)..];
        last.iter().map(|line| line.chars().take(500).collect::<String>() + "\n").collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let status = self.stop();
        if thread::panicking() {
            let signal = status.ok().and_then(|status| status.signal());
            eprintln!("---- last words of {} (signal {signal:?}):\n{}\n----", self.name, self.tail());
        }
    }
}

/// A line of `/proc/PID/status`, in kibibytes.
pub fn memory_kib(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such line in /proc/PID/status")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}

/// Whether there is such a process, and it isn't merely waiting to be forgotten: its first thread may end before the others,
/// who still hold its files.
fn is_running(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

type Request = (Command, Sender<std::io::Result<Child>>);

/// `PR_SET_PDEATHSIG` counts from the *thread* that forks, and test threads end before the daemons that are shared
/// between tests should.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: LazyLock<Mutex<Sender<Request>>> = LazyLock::new(|| {
        let (requests, inbox) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in inbox {
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(requests)
    });
    let (reply, answer) = channel();
    SPAWNER.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).send((command, reply))?;
    Ok(answer.recv()??)
}

/// Runs a program to its end; gives what it printed, or fails with what it complained of.
pub fn run(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {line}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{line}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Where one of the project's own programs lies: beside the running test, bench or demo.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file()).with_context(|| {
        format!(
            "{name} is not built: run `make build` first, or `cargo build --workspace` with the profile of this program"
        )
    })
}

/// The top of the checkout.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}
