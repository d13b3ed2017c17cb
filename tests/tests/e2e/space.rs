//! Layers are stored once, and all space comes back.

use std::fs;
use std::io::Read;
use std::time::{Duration, Instant};

use clipper_tests::clipper::disk_usage;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::scratch::{Scratch, mounts_below};
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::json;

use crate::run::Node;
use crate::world::{Converted, world};

#[test]
fn images_share_their_layers() {
    let world = world();
    // Another image, in another repository, on the same busybox layer.
    let scratch = Scratch::new("sharing").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let (manifest, _) = world.registry.manifest(&world.busybox.base).unwrap();
    let shared = world.busybox.layers().remove(0);
    fs::copy(world.registry.blob_file(&shared), layout.path_of(&shared)).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(world.registry.blob_file(config)).unwrap()).unwrap();
    let diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap().to_owned();
    let below = clipper_tests::layout::Layer { descriptor: manifest["layers"][0].clone(), diff_id };
    let above = layout
        .layer(&Compression::gzip(), |out| {
            let mut tar = TarWriter::new(out);
            tar.entry(&Entry::file("second", "image"))?;
            tar.finish()?;
            Ok(())
        })
        .unwrap();
    let config = json!({"Env": ["PATH=/bin"], "Cmd": ["cat", "/second"]});
    let image = layout.image(&Image { layers: vec![below, above], config, ..Image::default() }).unwrap();
    layout.tag("1", &image).unwrap();
    let source = format!("oci:{}:1", scratch.path().display());
    let second = Converted::from(world.registry.push(&source, "sharing/second:1").unwrap());

    let node = Node::new();
    let (one, two) = (node.proxy.by_way(&world.busybox.accelerated), node.proxy.by_way(&second.accelerated));
    node.pull(&one);
    node.containerd.run("clipper", &one, "one", &["sha256sum", "/bin/busybox"]).unwrap();
    let fetched = node.proxy.bytes_of(&shared);
    assert!(fetched > 0);
    node.pull(&two);
    assert_eq!(node.containerd.run("clipper", &two, "two", &[]).unwrap(), "image");
    node.containerd.run("clipper", &two, "three", &["sha256sum", "/bin/busybox"]).unwrap();
    assert_eq!(node.proxy.bytes_of(&shared), fetched, "the shared layer was fetched once");
}

#[test]
fn removal_gives_everything_back() {
    let node = Node::new();
    let (lazy, ordinary) = (node.proxy.by_way(&world().small.accelerated), node.proxy.by_way(&world().busybox.base));
    let before = disk_usage(node.snapshotter.root());
    node.pull(&lazy);
    node.containerd.pull("clipper", &ordinary).unwrap();
    node.containerd
        .run("clipper", &lazy, "reads", &["sh", "-c", "cat /srv/app/data/* /bin/* > /dev/null 2>&1 || true"])
        .unwrap();
    node.containerd.run("clipper", &ordinary, "writes", &["sh", "-c", "head -c 5000000 /dev/zero > /big"]).unwrap();
    let during = disk_usage(node.snapshotter.root());
    assert!(during > before + 10_000_000, "{before} {during}");
    assert!(!mounts_below(node.snapshotter.root()).is_empty());
    node.containerd.remove_image(&lazy).unwrap();
    node.containerd.remove_image(&ordinary).unwrap();
    // Removal may be left to the garbage collector or to a task of the snapshotter's own.
    let begun = Instant::now();
    let gone = || {
        node.containerd.snapshots("clipper").unwrap().is_empty()
            && mounts_below(node.snapshotter.root()).is_empty()
            && disk_usage(node.snapshotter.root()) < before + 3_000_000
    };
    while !gone() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(
        gone(),
        "snapshots {:?}, mounts {:?}, {} bytes where there were {before}",
        node.containerd.snapshots("clipper").unwrap(),
        mounts_below(node.snapshotter.root()),
        disk_usage(node.snapshotter.root())
    );
    // And it can all come again.
    node.pull(&lazy);
    assert_eq!(node.containerd.run("clipper", &lazy, "again", &[]).unwrap(), "hello from the small image\n");
}

#[test]
fn what_is_removed_while_in_use_goes_with_its_last_user() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    node.containerd.run("clipper", &image, "reads", &["sh", "-c", "cat /srv/app/data/random > /dev/null"]).unwrap();
    let devices = || disk_usage(&node.snapshotter.root().join("devices"));
    let cached = devices();
    assert!(cached > 1_000_000, "{cached}");
    let [mount] = &mounts_below(node.snapshotter.root())[..] else { panic!("one mount") };
    let mut file = fs::File::open(mount.join("etc/passwd")).unwrap();
    node.containerd.remove_image(&image).unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {}", node.snapshotter.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("unmounted", &|| mounts_below(node.snapshotter.root()).is_empty());
    assert!(devices() >= cached, "{} of {cached}", devices());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("root:"), "{text}");
    drop(file);
    wait("given back", &|| devices() < 100_000);
}
