//! Containers outlive the daemon: it is killed while they read, replaced by another version, and the node reboots.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clipper_tests::clipper::is_mounted;
use clipper_tests::scratch::mounts_below;
use rustix::mount::{UnmountFlags, unmount};

use crate::run::Node;
use crate::world::world;

/// Reads all files of an image, and runs the programs it is made of: a line of a digest for each.
const ALL: [&str; 3] = ["sh", "-c", "find / -xdev -type f -print0 | sort -z | xargs -0 -n 40 sha256sum"];

/// What [`ALL`] prints in a container of the ordinary image.
fn expected(node: &Node) -> String {
    node.containerd.pull("overlayfs", &world().small.base).unwrap();
    let said = node.containerd.run("overlayfs", &world().small.base, "expected", &ALL).unwrap();
    assert!(said.lines().count() > 1000, "{said}");
    // Both images have one configuration, which would keep the snapshots of the other one, too.
    node.containerd.remove_image(&world().small.base).unwrap();
    said
}

/// Tells the other threads that it is over, also if a test fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lines that differ.
#[track_caller]
fn assert_same(said: &str, expected: &str) {
    let differ = said.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert!(said == expected, "{differ:?}; {} and {} lines", said.lines().count(), expected.lines().count());
}

fn reboot(node: &mut Node) {
    node.snapshotter.kill().unwrap();
    for mount in mounts_below(node.snapshotter.root()) {
        unmount(&mount, UnmountFlags::DETACH).unwrap();
    }
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    node.snapshotter.launch().unwrap();
    node.containerd.restart().unwrap();
}

#[test]
fn containers_read_right_while_daemons_are_killed() {
    let node = Node::new();
    let expected = expected(&node);
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    // Before anything is killed, and removed after that: containerd passes on what it can't ask of a dead daemon.
    node.containerd.start_container("clipper", &image, "reader", &["sleep", "1000"]).unwrap();
    let over = AtomicBool::new(false);
    let kills = thread::scope(|scope| {
        let kills = scope.spawn(|| {
            let mut kills = 0;
            // Fewer than would be slowed down much.
            while !over.load(Ordering::Relaxed) && kills < 8 {
                node.snapshotter.kill_serving().unwrap();
                kills += 1;
                let pause = Instant::now() + Duration::from_millis(700);
                while Instant::now() < pause && !over.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            kills
        });
        let _done = Done(&over);
        for round in 0..2 {
            // Cold, then warm.
            let said = node.containerd.exec("reader", ["cold", "warm"][round], &ALL).unwrap();
            assert_same(&said, &expected);
        }
        over.store(true, Ordering::Relaxed);
        kills.join().unwrap()
    });
    assert!(kills > 2, "{kills}");
    assert_eq!(mounts_below(&node.snapshotter.root().join("mounts")).len(), 1);
    assert_eq!(node.snapshotter.pids().len(), 2);
    let log = node.snapshotter.log();
    assert!(log.matches("another daemon has taken over").count() >= kills - 1, "{log}");
    // All that was taken over ends as it should.
    node.containerd.remove_container("reader").unwrap();
    node.containerd.remove_image(&image).unwrap();
    assert_eq!(node.containerd.snapshots("clipper").unwrap(), [""; 0]);
    assert_eq!(mounts_below(&node.snapshotter.root().join("mounts")).len(), 0);
    for dir in ["devices", "trees", "indexes"] {
        let entries = fs::read_dir(node.snapshotter.root().join(dir)).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
        assert!(names.is_empty(), "{dir}: {names:?}");
    }
}

#[test]
fn without_the_supervisor_reads_fail_and_the_next_start_mounts_anew() {
    let mut node = Node::new();
    let expected = expected(&node);
    let image = node.proxy.by_way(&world().small.accelerated);
    // So that something is cold.
    node.snapshotter.configure("background_fill = false\n").unwrap();
    node.containerd.restart().unwrap();
    node.pull(&image);
    node.containerd.start_container("clipper", &image, "stays", &["sleep", "1000"]).unwrap();
    let pid = pid_of(&node, "stays");
    let cold = File::open(format!("/proc/{pid}/root/srv/app/data/random")).unwrap();
    node.snapshotter.kill().unwrap();
    // The kernel has never had a byte of it.
    assert!(cold.read_exact_at(&mut [0; 100], 5000).is_err(), "not even zeros");
    node.snapshotter.launch().unwrap();
    node.containerd.restart().unwrap();
    let said = node.containerd.run("clipper", &image, "new", &ALL).unwrap();
    assert_same(&said, &expected);
    let mounts = mounts_below(&node.snapshotter.root().join("mounts"));
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    assert_eq!(node.snapshotter.pids().len(), 2);
    assert!(cold.read_exact_at(&mut [0; 100], 5000).is_err(), "its mount is gone for good");
    // Started again, the container has the new mount. Its process may have died of a page that it couldn't have.
    let _ = node.containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "stays"]);
    node.containerd.ctr(&["task", "delete", "--force", "stays"]).unwrap();
    node.containerd.ctr(&["task", "start", "--detach", "stays"]).unwrap();
    let pid = pid_of(&node, "stays");
    assert!(fs::read(format!("/proc/{pid}/root/srv/app/data/random")).unwrap().len() > 1000);
    node.containerd.remove_container("stays").unwrap();
}

#[test]
fn another_version_takes_over_while_containers_read() {
    let mut node = Node::new();
    let expected = expected(&node);
    let program = node.snapshotter.run_copy().unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    let replace = |with: &Path| {
        let new = program.with_extension("new");
        fs::copy(with, &new).unwrap();
        fs::rename(&new, &program).unwrap();
        fs::metadata(&program).unwrap().ino()
    };
    let good = clipper_tests::daemon::program("clipper-snapshotter").unwrap();
    let supervisor = node.snapshotter.daemon().unwrap().pid();
    let running = || fs::metadata(format!("/proc/{supervisor}/exe")).unwrap().ino();
    thread::scope(|scope| {
        let reader = scope.spawn(|| node.containerd.run("clipper", &image, "reader", &ALL).unwrap());
        for _ in 0..2 {
            let file = replace(&good);
            let serving = node.snapshotter.serving(None).unwrap();
            let said = node.snapshotter.upgrade().unwrap();
            assert!(said.contains("serves"), "{said}");
            assert_eq!(running(), file);
            assert_ne!(node.snapshotter.serving(None).unwrap(), serving);
        }
        // One that can't run leaves things as they are.
        let serving = node.snapshotter.serving(None).unwrap();
        let before = running();
        replace(Path::new("/bin/false"));
        let error = node.snapshotter.upgrade().unwrap_err().to_string();
        assert!(error.contains("not upgraded"), "{error}");
        assert_eq!((running(), node.snapshotter.serving(None).unwrap()), (before, serving));
        assert_same(&reader.join().unwrap(), &expected);
    });
    assert_eq!(mounts_below(&node.snapshotter.root().join("mounts")).len(), 1);
    assert_same(&node.containerd.run("clipper", &image, "after", &ALL).unwrap(), &expected);
}

#[test]
fn a_rebooted_node_starts_its_containers_from_what_it_has() {
    let mut node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    node.containerd.start_container("clipper", &image, "stays", &["sleep", "1000"]).unwrap();
    let before = node.containerd.run("clipper", &image, "all", &ALL).unwrap();
    // What was fetched a moment ago isn't known to be on the disk yet.
    let flushed = Instant::now();
    thread::sleep(Duration::from_secs(7));
    let pid = pid_of(&node, "stays");
    // Its processes and mounts go, but not its record.
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    node.containerd.ctr(&["task", "delete", "--force", "stays"]).unwrap();
    node.proxy.take_log();
    reboot(&mut node);
    assert!(!is_mounted(&node.snapshotter.root().join("mounts")));
    node.containerd.ctr(&["task", "start", "--detach", "stays"]).unwrap();
    assert!(Path::new(&format!("/proc/{}/root/srv/app", pid_of(&node, "stays"))).exists());
    assert_same(&node.containerd.run("clipper", &image, "again", &ALL).unwrap(), &before);
    for layer in world().small.layers() {
        let again = node.proxy.bytes_of(&layer);
        assert_eq!(again, 0, "{layer} is fetched again, {:?} after it was fetched", flushed.elapsed());
    }
    node.containerd.remove_container("stays").unwrap();
}

/// The first process of a container.
fn pid_of(node: &Node, id: &str) -> i32 {
    let listed = node.containerd.ctr(&["tasks", "list"]).unwrap();
    let line = listed.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("no {id} in {listed}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
