//! Scratch directories that leave nothing behind: no process, no mount, no file. Also not after a crash: the next user
//! sweeps what a dead one left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Where they all lie: on a real disk, because overlayfs will not have another overlayfs as its upper layer.
const HOME: &str = "/var/tmp/clipper-tests";

/// A directory of this process, gone with everything in and above it when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// A new, empty directory. The name only helps a reader of `ps` or `mount`.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEEP: Once = Once::new();
        SWEEP.call_once(|| {
            sweep();
            watch();
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(HOME).join(format!("{}-{number}-{name}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Its last part: a name that nothing else has while it exists.
    pub fn name(&self) -> &str {
        self.dir.file_name().and_then(|name| name.to_str()).unwrap_or("clipper-tests")
    }

    /// The path of something in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// A new directory in it.
    pub fn subdir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        evict(&self.dir);
    }
}

/// Evicts the scratch directories of processes that are no more.
fn sweep() {
    for entry in fs::read_dir(HOME).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if owner.is_none_or(|pid| test_kill_process(pid).is_err()) {
            evict(&entry.path());
        }
    }
}

/// Leaves somebody behind who deletes, at this process's end, what is never dropped because tests share it.
fn watch() {
    let script = r#"tail --pid="$1" -s 0.2 -f /dev/null; rm -rf --one-file-system "$2/$1"-*"#;
    let started = Command::new("setsid")
        .args(["sh", "-c", script, "watch", &std::process::id().to_string(), HOME])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    if let Err(error) = started {
        eprintln!("nobody watches over {HOME}: {error}");
    }
}

/// Ends the processes that live in a directory, unmounts what is mounted there, and deletes it.
fn evict(dir: &Path) {
    for _ in 0..50 {
        let tenants = tenants(dir);
        if tenants.is_empty() {
            break;
        }
        for pid in tenants {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for mount in mounts_below(dir).iter().rev() {
        let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    }
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("{} stays behind: {error}", dir.display());
    }
}

/// What is mounted below a directory, in the order of mounting.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let prefix = format!("{}/", dir.display());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|at| at.starts_with(&prefix))
        .map(PathBuf::from)
        .collect()
}

/// Processes that name the directory in their command line, or whose own root and mount namespace have it: shims, runc's
/// children and the containers themselves, which nobody else remembers once their containerd is gone. Not those that have
/// just got their mount namespace: anybody's, with all the mounts of the machine, until it is made a container's.
pub fn tenants(dir: &Path) -> Vec<Pid> {
    let needle = format!("{}/", dir.display());
    let ours = fs::read_link("/proc/self/ns/mnt").ok();
    let root = |proc: &Path| fs::metadata(proc.join("root/")).ok().map(|meta| (meta.dev(), meta.ino()));
    let our_root = root(Path::new("/proc/self"));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if pid == rustix::process::getpid() {
            continue;
        }
        let proc = entry.path();
        let named = fs::read(proc.join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(&needle));
        let mounted = fs::read_link(proc.join("ns/mnt")).ok() != ours
            && root(&proc) != our_root
            && fs::read_to_string(proc.join("mountinfo")).is_ok_and(|table| table.contains(&needle));
        let zombie = fs::read_to_string(proc.join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        if (named || mounted) && !zombie {
            found.push(pid);
        }
    }
    found
}
