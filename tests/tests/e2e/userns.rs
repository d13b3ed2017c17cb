//! Containers in user namespaces: the image is theirs, whatever it lies on, and nothing is copied for that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clipper_tests::clipper::disk_usage;
use clipper_tests::scratch::mounts_below;

use crate::run::{Node, converted_above_ordinary};
use crate::world::world;

/// Runs `script` as root of a user namespace that begins at ID 100000, whose layers are mapped by the snapshotter.
fn start(node: &Node, image: &str, id: &str, script: &str) -> String {
    let map = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"];
    let said = node.containerd.run_with("clipper", image, id, &map, &["sh", "-c", script]);
    said.unwrap_or_else(|error| panic!("{error:#}\n{}", node.snapshotter.log()))
}

/// The way to a container's root passes directories that only root may enter in the tests.
pub fn open_the_way(node: &Node) {
    let mut dir = Some(node.containerd.socket());
    while let Some(path) = dir.and_then(Path::parent).filter(|path| path.starts_with("/var/tmp/")) {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o011)).unwrap();
        dir = Some(path);
    }
}

#[test]
fn containers_in_user_namespaces_own_their_image() {
    let node = Node::new();
    open_the_way(&node);
    let (mixed, _) = converted_above_ordinary("userns/mixed");
    let look = "cat /proc/self/uid_map; stat -c %u:%g / /etc/passwd /bin/busybox; echo x >>/etc/passwd; touch /new; \
                stat -c %u:%g /new /etc/passwd";
    for (id, image) in [("lazy", &world().small.accelerated), ("ordinary", &world().small.base), ("mixed", &mixed)] {
        let image = node.proxy.by_way(image);
        match id {
            "ordinary" => node.containerd.pull("clipper", &image).unwrap(),
            _ => drop(node.pull(&image)),
        }
        let before = disk_usage(&node.snapshotter.root().join("snapshots"));
        let look = look.replace("/bin/busybox", "/usr/bin/env");
        let said = start(&node, &image, id, &look);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "65536", "0:0", "0:0", "0:0", "0:0", "0:0"], "{id}: {said}");
        let grown = disk_usage(&node.snapshotter.root().join("snapshots")).saturating_sub(before);
        assert!(grown < 1 << 20, "{id}: nothing is copied: {grown}");
        node.wait_until_nothing_is_mapped();
    }
}

#[test]
fn what_they_write_is_theirs_outside() {
    let node = Node::new();
    open_the_way(&node);
    let image = node.proxy.by_way(&world().busybox.accelerated);
    node.pull(&image);
    let map = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"];
    let script = "echo mine >>/etc/passwd; chown 7:8 /etc/passwd; touch /new; sleep 1000";
    let run =
        [&["run", "--detach", "--snapshotter", "clipper"], &map[..], &[&image, "writer", "sh", "-c", script]].concat();
    node.containerd.ctr(&run).unwrap();
    let upper = || {
        let mut dirs = fs::read_dir(node.snapshotter.root().join("snapshots")).unwrap();
        dirs.find_map(|dir| Some(dir.unwrap().path().join("fs")).filter(|dir| dir.join("new").exists()))
    };
    let begun = Instant::now();
    let upper: PathBuf = loop {
        match upper() {
            Some(upper) => break upper,
            None => assert!(begun.elapsed() < Duration::from_secs(30), "{}", node.snapshotter.log()),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let owner = |name: &str| fs::metadata(upper.join(name)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!(owner("new"), (100_000, 200_000));
    assert_eq!(owner("etc/passwd"), (100_007, 200_008));
    assert_eq!(owner(""), (100_000, 200_000));
    node.containerd.remove_container("writer").unwrap();
    node.containerd.remove_image(&image).unwrap();
    for dir in ["mapped", "mounts"] {
        assert!(mounts_below(&node.snapshotter.root().join(dir)).is_empty(), "{dir}: {}", node.snapshotter.log());
    }
}
