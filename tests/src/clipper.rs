//! The project's own programs as the tests run them: `clipper` by its command line, `clipper-snapshotter` as a daemon.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::daemon::{Daemon, memory_kib, program, run};
use crate::scratch::Scratch;

/// `clipper ARGS`, not yet run.
pub fn clipper(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("clipper")?);
    command.args(args);
    Ok(command)
}

/// Runs `clipper ARGS`, which must succeed; gives what it printed.
pub fn clipper_ok(args: &[&str]) -> Result<String> {
    run(&mut clipper(args)?)
}

/// Runs `clipper ARGS` whatever comes of it.
pub fn clipper_output(args: &[&str]) -> Result<Output> {
    clipper(args)?.stdin(Stdio::null()).output().context("starting clipper")
}

/// Converts an image in place; gives the accelerated reference and what `--json` reported.
pub fn convert(reference: &str) -> Result<(String, Value)> {
    convert_with(reference, &[])
}

/// As [`convert`], with more arguments.
pub fn convert_with(reference: &str, more: &[&str]) -> Result<(String, Value)> {
    let report = clipper_ok(&[&["convert", "--json", reference], more].concat())?;
    let report = serde_json::from_str(&report).with_context(|| format!("`convert --json` printed {report}"))?;
    Ok((format!("{reference}_accelerated"), report))
}

/// The driver that images are mounted with: `$CLIPPER_TEST_DRIVER`, so that tests can be run again over another one.
pub fn driver() -> String {
    std::env::var("CLIPPER_TEST_DRIVER").unwrap_or_else(|_| "auto".into())
}

/// A running `clipper-snapshotter`.
#[derive(Debug)]
pub struct Snapshotter {
    daemon: Option<Daemon>,
    program: PathBuf,
    driver: String,
    socket: PathBuf,
    root: PathBuf,
    scratch: Scratch,
}

impl Snapshotter {
    /// Starts one on an empty root, with the driver of the tests.
    pub fn start() -> Result<Self> {
        Self::start_over(&driver())
    }

    /// As [`start`](Self::start), with this driver.
    pub fn start_over(driver: &str) -> Result<Self> {
        let scratch = Scratch::new("snapshotter")?;
        let root = scratch.join("root");
        Self::start_in(scratch, root, driver)
    }

    /// As [`start`](Self::start), on a root elsewhere, which is left behind.
    pub fn start_at(root: PathBuf) -> Result<Self> {
        Self::start_at_over(root, &driver())
    }

    /// As [`start_at`](Self::start_at), with this driver.
    pub fn start_at_over(root: PathBuf, driver: &str) -> Result<Self> {
        Self::start_in(Scratch::new("snapshotter")?, root, driver)
    }

    fn start_in(scratch: Scratch, root: PathBuf, driver: &str) -> Result<Self> {
        let (socket, program) = (scratch.join("s.sock"), program("clipper-snapshotter")?);
        let mut snapshotter = Self { daemon: None, program, driver: driver.into(), socket, root, scratch };
        snapshotter.launch()?;
        Ok(snapshotter)
    }

    /// Starts it on the root that it left, after `stop` or `kill`.
    pub fn launch(&mut self) -> Result<()> {
        let (socket, root) = (self.socket.display().to_string(), self.root.display().to_string());
        let config = self.scratch.join("config.toml");
        let config_text = config.display().to_string();
        let mut args = vec!["--address", &socket, "--root", &root, "--driver", &self.driver];
        if config.exists() {
            args.extend(["--config", &config_text]);
        }
        let log = self.scratch.join("log");
        let mut daemon = Daemon::start("clipper-snapshotter", &self.program, &args, &log)?;
        let path = self.socket.clone();
        daemon
            .wait_until("listening", Duration::from_secs(20), || std::os::unix::net::UnixStream::connect(&path).ok())?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Starts it again with a configuration file that says `config`.
    pub fn configure(&mut self, config: &str) -> Result<()> {
        self.stop()?;
        std::fs::write(self.scratch.join("config.toml"), config)?;
        self.launch()
    }

    /// Starts it again from a copy of its program, which can then be replaced; gives where that is.
    pub fn run_copy(&mut self) -> Result<PathBuf> {
        self.stop()?;
        let copy = self.scratch.join("clipper-snapshotter");
        std::fs::copy(&self.program, &copy)?;
        self.program.clone_from(&copy);
        self.launch()?;
        Ok(copy)
    }

    /// Has what runs replaced by what its program's file holds now; gives what is said about it.
    pub fn upgrade(&self) -> Result<String> {
        let mut command = Command::new(program("clipper-snapshotter")?);
        run(command.arg("upgrade").arg("--address").arg(&self.socket))
    }

    /// Ends both of its processes at once, as a power cut would.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
        }
        Ok(())
    }

    /// The process that serves, once there is one that isn't `other`. It is the only child of the supervisor.
    pub fn serving(&self, other: Option<u32>) -> Result<u32> {
        let (daemon, start) = (self.daemon.as_ref().context("the snapshotter is not running")?, Instant::now());
        loop {
            match daemon.children()[..] {
                [child] if Some(child) != other => return Ok(child),
                _ if start.elapsed() < Duration::from_secs(20) => std::thread::sleep(Duration::from_millis(5)),
                _ => bail!("no daemon, or too many: {:?}", daemon.children()),
            }
        }
    }

    /// Kills the process that serves, and gives the one that takes over.
    pub fn kill_serving(&self) -> Result<u32> {
        let serving = self.serving(None)?;
        kill_process(Pid::from_raw(serving as i32).context("no process")?, Signal::KILL)?;
        self.serving(Some(serving))
    }

    /// Asks it to end, as an operator would.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.stop()?;
        }
        Ok(())
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.join("log")).unwrap_or_default()
    }

    /// The supervisor, which the process that serves is a child of.
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Both processes: the supervisor and the one that serves.
    pub fn pids(&self) -> Vec<u32> {
        self.daemon.iter().flat_map(|daemon| [vec![daemon.pid()], daemon.children()].concat()).collect()
    }

    /// Resident memory in KiB of both processes; of the program itself, which both of them map, once.
    pub fn resident_kib(&self) -> Result<u64> {
        let [supervisor, serving] = self.pids()[..] else { bail!("the snapshotter is not running: {:?}", self.pids()) };
        Ok(memory_kib(supervisor, "RssAnon")? + memory_kib(serving, "VmRSS")?)
    }

    /// A line of `/proc/PID/status` in KiB, summed over both processes.
    pub fn memory_kib(&self, field: &str) -> Result<u64> {
        let pids = self.pids();
        ensure!(pids.len() == 2, "the snapshotter is not running: {pids:?}");
        pids.into_iter().map(|pid| memory_kib(pid, field)).sum()
    }

    /// Bytes of disk that its root takes.
    pub fn disk_usage(&self) -> u64 {
        disk_usage(&self.root)
    }
}

/// Bytes of disk that a directory takes, holes not counted, mounts not entered.
pub fn disk_usage(dir: &Path) -> u64 {
    // It fails, but counts the rest, if a file vanishes meanwhile.
    let listed = Command::new("du").args(["-sxB1"]).arg(dir).output();
    let text = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).unwrap_or_default()
}

/// `clipper mount` in the foreground, ended and unmounted when dropped.
#[derive(Debug)]
pub struct LazyMount {
    daemon: Daemon,
    at: PathBuf,
    scratch: Scratch,
}

impl LazyMount {
    /// Mounts an accelerated image.
    pub fn start(reference: &str) -> Result<Self> {
        Self::start_over(&driver(), reference)
    }

    /// As [`start`](Self::start), with this driver.
    pub fn start_over(driver: &str, reference: &str) -> Result<Self> {
        Self::start_with(&["--driver", driver], reference)
    }

    /// As [`start`](Self::start), with these arguments.
    pub fn start_with(more: &[&str], reference: &str) -> Result<Self> {
        let scratch = Scratch::new("mount")?;
        let (at, cache) = (scratch.subdir("at")?, scratch.subdir("cache")?);
        let (at_text, cache_text) = (at.display().to_string(), cache.display().to_string());
        let args = [&["mount", "--cache", &cache_text], more, &[reference, &at_text]].concat();
        let mut daemon = Daemon::start("clipper mount", &program("clipper")?, &args, &scratch.join("log"))?;
        daemon.wait_until("mounting", Duration::from_secs(30), || is_mounted(&at).then_some(()))?;
        Ok(Self { daemon, at, scratch })
    }

    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Its cache directory.
    pub fn cache(&self) -> PathBuf {
        self.scratch.join("cache")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// The process.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

/// Whether something is mounted exactly there.
pub fn is_mounted(at: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == at.to_str())
}
