//! Caches smaller than the images that run from them, and disks that are full: every byte is right nevertheless, and the
//! space comes back.

use std::time::{Duration, Instant};

use clipper_tests::clipper::{Snapshotter, disk_usage};
use clipper_tests::filler::Filler;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::registry::cached_image;
use clipper_tests::scratch::Scratch;
use clipper_tests::small_disk::SmallDisk;

use crate::run::Node;
use crate::world::{Converted, world};

const MIB: u64 = 1 << 20;

/// An image of busybox and 72 MiB of files in two layers, pushed as `name`, and what is in them.
fn large(name: &str) -> (Converted, [Filler; 2]) {
    let scratch = Scratch::new("limits").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let (mut layers, config) = layout.adopt(&cached_image("busybox").unwrap()).unwrap();
    let fillers = [Filler::new(1, 120, 300 << 10), Filler::new(2, 120, 300 << 10)];
    layers.push(fillers[0].layer(&layout, &Compression::gzip()).unwrap());
    layers.push(fillers[1].layer_in("more", &layout, &Compression::gzip()).unwrap());
    let image = layout.image(&Image { layers, config, ..Image::default() }).unwrap();
    layout.tag(name, &image).unwrap();
    let source = format!("oci:{}:{name}", scratch.path().display());
    (Converted::from(world().registry.push(&source, &format!("limits/{name}:1")).unwrap()), fillers)
}

/// Reads all of the image in one container, in order and then backwards, and compares it.
fn read_all(node: &Node, image: &str, fillers: &[Filler; 2], id: &str) {
    let list = |dir: &str, sort: &str| format!("find /{dir} -type f | {sort} | xargs cat | sha256sum; ");
    let script =
        [list("data", "sort"), list("more", "sort"), list("data", "sort -r"), list("more", "sort -r")].concat();
    let said = node.containerd.run("clipper", image, id, &["sh", "-c", &script]).unwrap();
    let sums = [false, true].map(|backwards| fillers.each_ref().map(|filler| filler.sha256(backwards))).concat();
    let expected: String = sums.iter().map(|sum| format!("{sum}  -\n")).collect();
    assert_eq!(said, expected, "{}", node.snapshotter.log());
}

fn devices(node: &Node) -> u64 {
    disk_usage(&node.snapshotter.root().join("devices"))
}

/// Waits until `done`, which must come about.
fn wait(what: &str, node: &Node, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {}", node.snapshotter.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_image_far_larger_than_the_cache_runs_right_and_the_limit_is_kept() {
    let (image, fillers) = large("cache");
    let mut node = Node::new();
    node.snapshotter.configure("[cache]\nmax_bytes = \"16MiB\"\n").unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&image.accelerated);
    node.pull(&image);
    read_all(&node, &image, &fillers, "all");
    wait("the limit", &node, || devices(&node) <= 17 * MIB);
    let log = node.snapshotter.log();
    assert!(log.contains("cold data were evicted") && !log.contains("ERROR"), "{log}");
    // What the kernel has cached of the image is no help to the next reader.
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    read_all(&node, &image, &fillers, "again");
    wait("the limit", &node, || devices(&node) <= 17 * MIB);
    // containerd is told what is on the disk, and no more.
    let told = node.containerd.usage("clipper").unwrap();
    let real = devices(&node);
    assert!((real / 2..=real + MIB).contains(&told), "{told} told, {real} on disk");
    node.containerd.remove_image(&image).unwrap();
    wait("space given back", &node, || devices(&node) < MIB / 4);
}

#[test]
fn a_node_whose_disk_is_full_runs_images_right_and_recovers() {
    let (image, fillers) = large("disk");
    let disk = SmallDisk::new(96 * MIB).unwrap();
    let mut node = Node::on(Snapshotter::start_at(disk.path().join("root")).unwrap(), |_| {});
    node.snapshotter.configure("[cache]\nmin_free = 0\n").unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&image.accelerated);
    // Room for a third of the image.
    disk.fill("filler", 24 * MIB).unwrap();
    node.pull(&image);
    read_all(&node, &image, &fillers, "evicting");
    let log = node.snapshotter.log();
    assert!(log.contains("cold data were evicted") && !log.contains("ERROR"), "{log}");
    assert!(devices(&node) > 8 * MIB, "what fits is cached: {}", devices(&node));

    // Others take nearly all of it: there is room for the image's tree, and for next to none of its data.
    node.containerd.remove_image(&image).unwrap();
    wait("space given back", &node, || devices(&node) < MIB / 4);
    disk.fill("rest", 3 * MIB).unwrap();
    node.pull(&image);
    read_all(&node, &image, &fillers, "full");

    // With room again it caches again, without a restart.
    disk.remove("filler").unwrap();
    disk.remove("rest").unwrap();
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    read_all(&node, &image, &fillers, "recovered");
    assert!(devices(&node) > 60 * MIB, "{}: {}", devices(&node), node.snapshotter.log());
    node.containerd.remove_image(&image).unwrap();
    wait("space given back", &node, || devices(&node) < MIB / 4);
}

#[test]
fn what_others_need_of_the_disk_is_left_to_them() {
    let (image, fillers) = large("free");
    let disk = SmallDisk::new(192 * MIB).unwrap();
    let mut node = Node::on(Snapshotter::start_at(disk.path().join("root")).unwrap(), |_| {});
    node.snapshotter.configure("[cache]\nmin_free = \"40%\"\n").unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&image.accelerated);
    node.pull(&image);
    read_all(&node, &image, &fillers, "all");
    let cached = devices(&node);
    assert!(cached > 60 * MIB, "there is room for all: {cached}");
    // Somebody else fills the disk: within a moment the cache makes way, but for what was read last.
    disk.fill("filler", 50 * MIB).unwrap();
    let spare = 64 * MIB;
    wait("way made", &node, || devices(&node) <= spare + 2 * MIB);
    read_all(&node, &image, &fillers, "still");
}
