//! What a node has and is not to have any more when everything was removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use clipper_tests::clipper::disk_usage;
use clipper_tests::scratch::{mounts_below, tenants};

use crate::images::SoakImage;
use crate::node::Node;

/// How far the memory of a daemon may be above where it began, in KiB: what allocators keep, and threads.
const SLACK_KIB: u64 = 24 << 10;

/// After all images are removed.
pub struct Leftovers {
    mounts: usize,
    devices: u64,
    files: BTreeSet<String>,
    snapshots: Vec<String>,
    processes: usize,
    descriptors: usize,
    memory_kib: u64,
}

impl Leftovers {
    /// Removes all images and looks, once everything that takes a moment has had it.
    pub fn of(node: &Node, images: &[SoakImage]) -> Self {
        node.proxy.behave();
        node.proxy.down(false);
        for image in images {
            if std::mem::take(&mut *image.pulled.write().unwrap()) {
                node.containerd.remove_image(&image.reference).unwrap();
            }
        }
        let root = node.snapshotter.read().unwrap().root().to_owned();
        node.wait("all removed", Duration::from_secs(30), || {
            node.containerd.snapshots("clipper").unwrap().is_empty()
                && mounts_below(&root).is_empty()
                && disk_usage(&root.join("devices")) < 100_000
        });
        // Connections and threads that nobody uses end by themselves.
        std::thread::sleep(Duration::from_secs(3));
        let snapshotter = node.snapshotter.read().unwrap();
        let pids = snapshotter.pids();
        Self {
            mounts: mounts_below(&root).len(),
            devices: disk_usage(&root.join("devices")),
            files: names(&root),
            snapshots: node.containerd.snapshots("clipper").unwrap(),
            processes: pids.len() + tenants(node.containerd.socket().parent().unwrap()).len(),
            descriptors: pids.iter().map(|pid| entries(&format!("/proc/{pid}/fd")).len()).sum(),
            memory_kib: snapshotter.resident_kib().unwrap(),
        }
    }

    /// Panics if there is more than there was.
    pub fn assert_none_since(&self, before: &Self, node: &Node) {
        let log = node.last_words();
        assert_eq!((self.mounts, self.snapshots.len()), (0, 0), "{log}");
        assert!(self.devices <= before.devices + 4096, "{} bytes of devices\n{log}", self.devices);
        assert_eq!(self.files, before.files, "files below the root\n{log}");
        assert_eq!(self.processes, before.processes, "processes\n{log}");
        assert!(
            self.descriptors <= before.descriptors + 8,
            "{} descriptors, {} before",
            self.descriptors,
            before.descriptors
        );
        eprintln!("memory: {} KiB at first, {} KiB at the end", before.memory_kib, self.memory_kib);
        assert!(
            self.memory_kib <= before.memory_kib + SLACK_KIB,
            "{} KiB, {} before",
            self.memory_kib,
            before.memory_kib
        );
    }
}

/// The names of everything in the directories of the root that images have something in.
fn names(root: &Path) -> BTreeSet<String> {
    let dirs = ["snapshots", "unpacking", "devices", "trees", "indexes", "mounts"];
    dirs.iter()
        .flat_map(|dir| {
            entries(&root.join(dir).display().to_string()).into_iter().map(move |name| format!("{dir}/{name}"))
        })
        .collect()
}

fn entries(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
