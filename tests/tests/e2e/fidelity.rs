//! What a container sees of an accelerated image equals what containerd's overlayfs snapshotter shows of the base.

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use clipper_tests::clipper::LazyMount;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::walk::{self, Tree};

use crate::run::Node;
use crate::world::{Converted, awkward, world};

/// Compares an image in three ways: containerd's unpacked tree, Clipper's by way of containerd, and `clipper mount`.
/// Gives what differs.
fn compare(image: &Converted, overlay: &Containerd, node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    overlay.pull("overlayfs", &image.base).unwrap();
    let expected = walk::read(overlay.view("overlayfs", &image.base).unwrap().path()).unwrap();

    let reference = node.proxy.by_way(&image.accelerated);
    node.pull(&reference);
    let view = node.containerd.view("clipper", &reference).unwrap();
    // Twice, because what is read from the cache is another path through the code than what is fetched.
    for pass in ["fetched", "cached"] {
        let actual = walk::read(view.path()).unwrap_or_else(|error| panic!("{}, {pass}: {error:#}", image.base));
        found.extend(unlike(&expected, actual, begun, &format!("{}, {pass}", image.base)));
    }
    let mount = LazyMount::start(&image.accelerated).unwrap();
    let actual = walk::read(mount.path()).unwrap();
    found.extend(unlike(&expected, actual, begun, &format!("{}, clipper mount", image.base)));
    found
}

/// What differs, but for two things. The times of directories that no layer names, or that a layer above changed without
/// naming them: there containerd leaves the time of day at which it unpacked. And the link count of a file some of whose
/// names a layer above has hidden: there overlayfs tells the count of the layer below, and we the names that there are.
fn unlike(unpacked: &Tree, mut actual: Tree, begun: i64, what: &str) -> Option<String> {
    let mut names: HashMap<&Path, u64> = HashMap::new();
    unpacked.values().for_each(|node| *names.entry(&node.same_as).or_default() += 1);
    let mut expected = unpacked.clone();
    for node in expected.values_mut().filter(|node| node.links > 0) {
        node.links = names[node.same_as.as_path()];
    }
    for (path, node) in &expected {
        if node.mode & 0o170000 == 0o040000
            && node.mtime.0 >= begun
            && let Some(other) = actual.get_mut(path)
        {
            other.mtime = node.mtime;
        }
    }
    let differences = walk::differences(&expected, &actual, 10);
    (!differences.is_empty()).then(|| format!("{what}:\n{}", differences.join("\n")))
}

#[test]
fn a_real_image() {
    let overlay = Containerd::start(Settings::overlayfs()).unwrap();
    let found = compare(&world().small, &overlay, &Node::new());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn awkward_images() {
    let (overlay, node) = (Containerd::start(Settings::overlayfs()).unwrap(), Node::new());
    let found: Vec<String> = awkward().iter().flat_map(|image| compare(image, &overlay, &node)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
