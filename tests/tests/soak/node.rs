//! The node: containerd and the snapshotter, a registry behind a faulty proxy, and when which fault was at work.

use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use clipper_tests::clipper::{Snapshotter, clipper};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::proxy::Proxy;
use clipper_tests::registry::Registry;

/// Less than the images need together, so that there is always something to evict.
const CONFIG: &str = "[cache]\nmax_bytes = \"40MiB\"\nmin_free = 0\n";

pub struct Node {
    // In the order in which they have to end.
    pub containerd: Containerd,
    /// Written to when it is started anew.
    pub snapshotter: RwLock<Snapshotter>,
    pub proxy: Proxy,
    pub registry: Registry,
    /// How often the supervisor was killed, counted when that begins and again when a new one serves.
    pub supervisors: AtomicUsize,
    /// How often the daemon was killed, counted likewise.
    pub daemons: AtomicUsize,
    /// Network faults, counted when they begin and again when they end.
    pub network: AtomicUsize,
    /// The last container's number.
    ids: Mutex<u64>,
}

/// What was at work at a moment, so that it can be told later what has been since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    supervisors: usize,
    daemons: usize,
    network: usize,
}

impl Node {
    pub fn start() -> Self {
        let registry = Registry::start().unwrap();
        let proxy = Proxy::start(registry.address(), Duration::from_millis(1)).unwrap();
        let mut snapshotter = Snapshotter::start().unwrap();
        snapshotter.configure(CONFIG).unwrap();
        let containerd = Containerd::start(Settings::clipper(snapshotter.socket()).unwrap()).unwrap();
        let (supervisors, daemons, network) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Self {
            containerd,
            snapshotter: RwLock::new(snapshotter),
            proxy,
            registry,
            supervisors,
            daemons,
            network,
            ids: Mutex::new(0),
        }
    }

    /// A name that no container had.
    pub fn id(&self, kind: &str) -> String {
        let mut last = self.ids.lock().unwrap();
        *last += 1;
        format!("{kind}-{last}")
    }

    pub fn now(&self) -> Moment {
        let [supervisors, daemons, network] =
            [&self.supervisors, &self.daemons, &self.network].map(|count| count.load(SeqCst));
        Moment { supervisors, daemons, network }
    }

    /// Whether readers may have seen errors since then: the supervisor was dead for a while.
    pub fn may_have_failed_since(&self, then: Moment) -> bool {
        let now = self.now();
        now.supervisors != then.supervisors || !now.supervisors.is_multiple_of(2)
    }

    /// Whether `error` is what containerd says to a request that was under way when the daemon died. Reads never fail then;
    /// requests do, and kubelet tries them again.
    pub fn is_cut_off(&self, error: &str, then: Moment) -> bool {
        let now = self.now();
        let killed = now.daemons != then.daemons || !now.daemons.is_multiple_of(2);
        killed && error.to_lowercase().contains("unavailable")
    }

    /// Whether pulls may have seen errors since then.
    pub fn network_may_have_failed_since(&self, then: Moment) -> bool {
        let now = self.now();
        now.network != then.network || !now.network.is_multiple_of(2)
    }

    /// `clipper pull`.
    pub fn pull(&self, reference: &str) -> Result<(), String> {
        let socket = self.containerd.socket().display().to_string();
        let mut command =
            clipper(&["pull", "--address", &socket, "--namespace", self.containerd.namespace(), reference]).unwrap();
        finish(&mut command)
    }

    /// What the snapshotter logged last, for messages.
    pub fn last_words(&self) -> String {
        let log = self.snapshotter.read().unwrap().log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits until `done`.
    pub fn wait(&self, what: &str, limit: Duration, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < limit, "{what}: not within {limit:?}\n{}", self.last_words());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn finish(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
