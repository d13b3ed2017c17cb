//! Running accelerated images by containerd: lazily, mixed with ordinary ones, several at a time.

use std::time::{Duration, Instant};

use clipper_tests::clipper::{Snapshotter, clipper_ok, convert};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::corpus::noise;
use clipper_tests::layout::{Compression, Layout};
use clipper_tests::proxy::Proxy;
use clipper_tests::scratch::{Scratch, mounts_below};
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::json;

use crate::world::{Converted, converted_above, world};

/// A containerd with Clipper, behind a proxy that counts.
pub struct Node {
    // In the order in which they have to end: containers and containerd before the snapshotter before the network.
    pub containerd: Containerd,
    pub snapshotter: Snapshotter,
    pub proxy: Proxy,
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// One whose containerd has other settings.
    pub fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(Snapshotter::start().unwrap(), change)
    }

    /// One with this snapshotter.
    pub fn on(snapshotter: Snapshotter, change: impl FnOnce(&mut Settings)) -> Self {
        let proxy = Proxy::start(world().registry.address(), Duration::ZERO).unwrap();
        let sandbox_image = proxy.by_way(&world().busybox.base);
        let mut settings = Settings { sandbox_image, ..Settings::clipper(snapshotter.socket()).unwrap() };
        change(&mut settings);
        Self { containerd: Containerd::start(settings).unwrap(), snapshotter, proxy }
    }

    /// `clipper pull`; gives its report.
    pub fn pull(&self, reference: &str) -> serde_json::Value {
        let socket = self.containerd.socket().display().to_string();
        let report = clipper_ok(&[
            "pull",
            "--json",
            "--address",
            &socket,
            "--namespace",
            self.containerd.namespace(),
            reference,
        ])
        .unwrap();
        serde_json::from_str(&report).unwrap()
    }

    /// Waits until no layer is mounted with mapped owners any more: containerd removes a container's snapshot when it
    /// collects its garbage next.
    pub fn wait_until_nothing_is_mapped(&self) {
        let begun = Instant::now();
        while !mounts_below(&self.snapshotter.root().join("mapped")).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "left over: {}", self.snapshotter.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn runs_before_it_is_downloaded() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the pull fetched of {layer}");
    }
    let said = node.containerd.run("clipper", &image, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
    let said =
        node.containerd.run("clipper", &image, "head", &["head", "-c", "14", "/srv/app/data/countdown"]).unwrap();
    assert_eq!(said, "400000\n399999\n");
}

#[test]
fn containers_write_to_their_own() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().busybox.accelerated);
    node.pull(&image);
    let script = "echo mine > /etc/passwd; rm /bin/vi; mkdir /new; cat /etc/passwd; ls /bin/vi 2>&1 || true";
    let said = node.containerd.run("clipper", &image, "one", &["sh", "-c", script]).unwrap();
    assert!(said.starts_with("mine\n") && said.contains("No such file"), "{said}");
    let said = node.containerd.run("clipper", &image, "two", &["cat", "/etc/passwd"]).unwrap();
    assert_eq!(said, "root:x:0:0:root:/root:/bin/sh\n");
}

#[test]
fn several_containers_at_once() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    let said: Vec<String> = std::thread::scope(|scope| {
        let (node, image) = (&node, &image);
        let run = move |number: usize| {
            let id = format!("c{number}");
            node.containerd.run("clipper", image, &id, &["sha256sum", "/srv/app/data/random"]).unwrap()
        };
        let threads: Vec<_> = (0..6).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(said.iter().all(|line| *line == said[0] && line.ends_with("/srv/app/data/random\n")), "{said:?}");
    // Whatever six containers asked for at once was fetched once.
    for layer in world().small.layers() {
        let size = world().registry.blobs().unwrap().into_iter().find(|(digest, _)| *digest == layer).unwrap().1;
        let fetched = node.proxy.bytes_of(&layer);
        assert!(fetched <= size + size / 10 + 100_000, "{layer}: {fetched} of {size}");
    }
}

#[test]
fn ordinary_images_work_through_the_same_snapshotter() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.base);
    node.containerd.pull("clipper", &image).unwrap();
    let said = node.containerd.run("clipper", &image, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
    // And so does the accelerated image pulled by a client that passes no labels.
    let image = node.proxy.by_way(&world().busybox.accelerated);
    node.containerd.pull("clipper", &image).unwrap();
    assert_eq!(node.containerd.run("clipper", &image, "echo", &["echo", "hi"]).unwrap(), "hi\n");
}

#[test]
fn images_of_indexed_and_ordinary_layers() {
    let world = world();
    // Ordinary layers on top of indexed ones, as `docker build` with an accelerated base makes them.
    let scratch = Scratch::new("mixed").unwrap();
    let source = format!("docker://{}", world.small.accelerated);
    let layout = Layout::create(scratch.path()).unwrap();
    let top = layout
        .layer(&Compression::gzip(), |out| {
            let mut tar = TarWriter::new(out);
            tar.entry(&Entry::dir("srv/app"))?;
            tar.entry(&Entry::file("srv/app/top", noise(3, 50_000)))?;
            tar.entry(&Entry::file("srv/app/.wh.symlink", ""))?;
            tar.entry(&Entry::file("srv/app/hello.py", "print('from the top layer')\n"))?;
            tar.finish()?;
            Ok(())
        })
        .unwrap();
    let base = world.registry.push(&source, "mixed/app:1").unwrap();
    let (index, _) = world.registry.manifest(&base).unwrap();
    let repository = base.rsplit_once(':').unwrap().0;
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let (mut manifest, _) = world.registry.manifest(&format!("{repository}@{digest}")).unwrap();
    // The image is the accelerated one with a layer more, so its config has a diff_id more.
    let config = manifest["config"]["digest"].as_str().unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(world.registry.blob_file(config)).unwrap()).unwrap();
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(top.diff_id));
    let config = serde_json::to_vec(&config).unwrap();
    manifest["config"]["digest"] = json!(layout.blob(&config).unwrap());
    manifest["config"]["size"] = json!(config.len());
    manifest["layers"].as_array_mut().unwrap().push(top.descriptor);
    for layer in world.small.layers() {
        std::fs::copy(world.registry.blob_file(&layer), layout.path_of(&layer)).unwrap();
    }
    let bytes = serde_json::to_vec(&manifest).unwrap();
    let descriptor =
        json!({"mediaType": manifest["mediaType"], "digest": layout.blob(&bytes).unwrap(), "size": bytes.len()});
    layout.tag("mixed", &descriptor).unwrap();
    let mixed = world.registry.push(&format!("oci:{}:mixed", scratch.path().display()), "mixed/app:mixed").unwrap();

    let node = Node::new();
    let image = node.proxy.by_way(&mixed);
    let pulled = node.pull(&image);
    let lazy: Vec<bool> = pulled["layers"].as_array().unwrap().iter().map(|layer| layer["lazy"] == true).collect();
    assert_eq!(lazy, [true, true, true, true, true, true, false], "{pulled}");
    assert_eq!(node.containerd.run("clipper", &image, "hello", &[]).unwrap(), "from the top layer\n");
    let script = "test ! -e /srv/app/symlink && sha256sum < /srv/app/top && cat /srv/app/old/other";
    let said = node.containerd.run("clipper", &image, "look", &["sh", "-c", script]).unwrap();
    assert!(said.ends_with("-\nnew\n"), "{said}");
}

/// The small image with its upper half converted, and the digests of its layers.
pub fn converted_above_ordinary(repository: &str) -> (String, Vec<String>) {
    let world = world();
    let base = world.registry.push(&format!("docker://{}", world.small.base), &format!("{repository}:1")).unwrap();
    let image = Converted::from(base);
    (converted_above(&world.registry, &image, 3), image.layers())
}

#[test]
fn converted_layers_above_ordinary_ones() {
    let (image, layers) = converted_above_ordinary("above/run");
    let node = Node::new();
    let image = node.proxy.by_way(&image);
    let pulled = node.pull(&image);
    // Nothing is left for the pull to download: what isn't converted has been unpacked by the snapshotter.
    assert!(pulled["layers"].as_array().unwrap().iter().all(|layer| layer["lazy"] == true), "{pulled}");
    let (ordinary, converted) = layers.split_at(3);
    for layer in converted {
        assert_eq!(node.proxy.bytes_of(layer), 0, "the pull fetched of {layer}");
    }
    for layer in ordinary {
        let size = std::fs::metadata(world().registry.blob_file(layer)).unwrap().len();
        assert_eq!(node.proxy.bytes_of(layer), size, "{layer} once: {}", node.snapshotter.log());
    }
    assert_eq!(node.containerd.run("clipper", &image, "hello", &[]).unwrap(), "hello from the small image\n");
    // Both kinds come back when the image goes.
    node.containerd.remove_image(&image).unwrap();
    assert_eq!(node.containerd.snapshots("clipper").unwrap(), [""; 0]);
    for dir in ["snapshots", "unpacking", "devices", "trees", "indexes"] {
        let entries = std::fs::read_dir(node.snapshotter.root().join(dir)).unwrap();
        let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).filter(|name| name != "lock").collect();
        assert!(names.is_empty(), "{dir}: {names:?}");
    }
}

#[test]
fn the_daemon_is_small_when_idle() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.pull(&image);
    node.containerd.start_container("clipper", &image, "idle", &["sleep", "1000"]).unwrap();
    let resident = node.snapshotter.resident_kib().unwrap();
    assert!(resident < 40 << 10, "{resident} KiB");
    node.containerd.remove_container("idle").unwrap();
}

#[test]
fn a_conversion_by_way_of_another_host_is_the_same() {
    let proxy = Proxy::start(world().registry.address(), Duration::ZERO).unwrap();
    let (_, report) = convert(&proxy.by_way(&world().busybox.base)).unwrap();
    assert_eq!(report["digest"], world().busybox.report["digest"], "nothing is keyed by the image's name");
}
