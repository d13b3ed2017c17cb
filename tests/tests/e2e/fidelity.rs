//! What a container sees of an accelerated image equals what containerd's overlayfs snapshotter shows of the base.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clipper_tests::clipper::LazyMount;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::walk::{self, Tree};

use crate::run::Node;
use crate::world::{Converted, awkward, awkward_below, awkward_zstd, converted_above, world};

/// Compares an image in three ways: containerd's unpacked tree, Clipper's by way of containerd, and `clipper mount`.
/// Gives what differs.
pub fn compare(image: &Converted, overlay: &Containerd, node: &Node) -> Vec<String> {
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
    let mut expected = unpacked.clone();
    count_links(&mut expected);
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

/// Gives each file as many links as it has names.
fn count_links(tree: &mut Tree) {
    let mut names: HashMap<PathBuf, u64> = HashMap::new();
    tree.values().for_each(|node| *names.entry(node.same_as.clone()).or_default() += 1);
    for node in tree.values_mut().filter(|node| node.links > 0) {
        node.links = names[&node.same_as];
    }
}

/// Compares an image of which only the topmost layers are converted with its base. Gives what differs, also if the
/// pull needed more of the registry than the layers below.
fn compare_below(image: &Converted, converted: &[String], overlay: &Containerd, node: &Node) -> Vec<String> {
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    overlay.pull("overlayfs", &image.base).unwrap();
    let expected = walk::read(overlay.view("overlayfs", &image.base).unwrap().path()).unwrap();
    let reference = node.proxy.by_way(&image.accelerated);
    // Images may share their converted layers.
    node.proxy.take_log();
    let pulled = node.pull(&reference);
    let mut found = Vec::new();
    for layer in pulled["layers"].as_array().unwrap().iter().filter(|layer| layer["lazy"] != true) {
        found.push(format!("{}: {} was left to containerd: {}", image.base, layer["digest"], node.snapshotter.log()));
    }
    let fetched = converted.iter().filter(|layer| node.proxy.bytes_of(layer) > 0);
    found.extend(fetched.map(|layer| format!("{}: the pull fetched of {layer}", image.base)));
    let view = node.containerd.view("clipper", &reference).unwrap();
    let mut actual = walk::read(view.path()).unwrap_or_else(|error| panic!("{}: {error:#}", image.base));
    // Unpacked files keep the names that layers above have hidden.
    count_links(&mut actual);
    found.extend(unlike(&expected, actual, begun, &image.base));
    found
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

#[test]
fn a_real_image_of_zstd_frames() {
    let overlay = Containerd::start(Settings::overlayfs()).unwrap();
    let found = compare(&world().small_zstd, &overlay, &Node::new());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn awkward_images_of_zstd_frames() {
    let (overlay, node) = (Containerd::start(Settings::overlayfs()).unwrap(), Node::new());
    let found: Vec<String> = awkward_zstd().iter().flat_map(|image| compare(image, &overlay, &node)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_real_image_below_converted_layers() {
    let (overlay, node) = (Containerd::start(Settings::overlayfs()).unwrap(), Node::new());
    let world = world();
    let base = world.registry.push(&format!("docker://{}", world.small.base), "fidelity/below:1").unwrap();
    let mut image = Converted::from(base);
    let layers = image.layers();
    image.accelerated = converted_above(&world.registry, &image, 2);
    let found = compare_below(&image, &layers[layers.len() - 2..], &overlay, &node);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn awkward_images_below_a_converted_layer() {
    let (overlay, node) = (Containerd::start(Settings::overlayfs()).unwrap(), Node::new());
    let compare = |(image, top): &(Converted, String)| compare_below(image, std::slice::from_ref(top), &overlay, &node);
    let found: Vec<String> = awkward_below().iter().flat_map(compare).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}
