//! What goes wrong: one thing after the other, at random.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use clipper_tests::proxy::Fault;
use rand::Rng;
use rand::rngs::StdRng;

use crate::node::Node;
use crate::tally::{Tally, count};

/// Between two deaths of the supervisor.
const SUPERVISOR: Duration = Duration::from_secs(40);
/// Least time between two deaths of daemons: with many a minute the supervisor gives up, as it should.
const DAEMON: Duration = Duration::from_secs(5);
/// Longest outage: below what readers wait.
const OUTAGE: Duration = Duration::from_secs(4);

/// Rages until told to stop. In the last quarter nothing is killed any more, so that one daemon grows old.
pub fn rage(node: &Node, mut random: StdRng, length: Duration, stop: &AtomicBool, tally: &Tally) {
    let (begun, mut daemon, mut supervisor) = (Instant::now(), Instant::now(), Instant::now());
    while !stop.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(random.random_range(200..2500)));
        let calm = begun.elapsed() > length * 3 / 4;
        match random.random_range(0..10) {
            0..5 if !calm && daemon.elapsed() > DAEMON => {
                kill_daemon(node, tally);
                daemon = Instant::now();
            }
            5 => std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap(),
            _ if !calm && supervisor.elapsed() > SUPERVISOR => {
                kill_supervisor(node, tally);
                supervisor = Instant::now();
            }
            _ => network(node, &mut random, tally),
        }
        let evictions = node.snapshotter.read().unwrap().log().matches("were evicted").count();
        tally.evictions.fetch_max(evictions, SeqCst);
    }
}

/// The daemon dies; its supervisor starts another.
fn kill_daemon(node: &Node, tally: &Tally) {
    node.daemons.fetch_add(1, SeqCst);
    node.snapshotter.read().unwrap().kill_serving().unwrap();
    node.daemons.fetch_add(1, SeqCst);
    count(&tally.daemon_kills);
}

/// Both die, and an operator's service manager starts them anew.
fn kill_supervisor(node: &Node, tally: &Tally) {
    let mut snapshotter = node.snapshotter.write().unwrap();
    node.supervisors.fetch_add(1, SeqCst);
    snapshotter.kill().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    snapshotter.launch().unwrap();
    drop(snapshotter);
    // containerd tries again only after a while.
    node.wait("containerd's return", Duration::from_secs(60), || node.containerd.snapshots("clipper").is_ok());
    node.supervisors.fetch_add(1, SeqCst);
    count(&tally.supervisor_kills);
}

fn network(node: &Node, random: &mut StdRng, tally: &Tally) {
    node.network.fetch_add(1, SeqCst);
    let times = Some(random.random_range(1..5));
    match random.random_range(0..6) {
        0 => node.proxy.down(true),
        1 => node.proxy.rule("/blobs/", Fault::Status(500), times),
        2 => node.proxy.rule("/blobs/", Fault::Status(429), times),
        3 => node.proxy.rule("/blobs/", Fault::Cut(random.random_range(0..100_000)), times),
        4 => node.proxy.rule("/blobs/", Fault::Stall(random.random_range(0..100_000)), Some(1)),
        // Once: who sends the same wrong bytes again has others no more, and readers are told so.
        _ => node.proxy.rule("/blobs/", Fault::Flip(random.random_range(0..2_000_000)), Some(1)),
    }
    std::thread::sleep(OUTAGE.mul_f64(random.random_range(0.05..1.0)));
    node.proxy.down(false);
    node.proxy.behave();
    node.network.fetch_add(1, SeqCst);
    count(&tally.network_faults);
}
