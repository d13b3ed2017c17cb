//! Images behind a login: what the snapshotter is told is enough to read them lazily, also after a restart, and shows nowhere.

use std::collections::HashMap;
use std::path::Path;

use clipper_tests::cri::Cri;
use clipper_tests::proxy::Proxy;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest};

use crate::run::Node;
use crate::world::{Converted, world};

pub const USER: &str = "me";
pub const PASSWORD: &str = "hush-hush";

/// A node whose registry wants a login; the sandbox image comes from elsewhere.
pub fn node() -> Node {
    let node = Node::with(|settings| settings.sandbox_image = world().busybox.base.clone());
    node.proxy.require_login(USER, PASSWORD);
    node
}

/// Panics if the password is in a file below the snapshotter's root, or in its log.
pub fn assert_hidden(node: &Node) {
    fn search(dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let Ok(kind) = std::fs::symlink_metadata(&path).map(|meta| meta.file_type()) else { continue };
            if kind.is_dir() && !path.ends_with("mounts") {
                search(&path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).unwrap_or_default();
                let found = bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
                assert!(!found, "the password is in {}", path.display());
            }
        }
    }
    search(node.snapshotter.root());
    assert!(!node.snapshotter.log().contains(PASSWORD), "{}", node.snapshotter.log());
}

/// What `clipper` or containerd would tell the snapshotter of the image's lowest layer.
pub fn labels(image: &Converted, proxy: &Proxy) -> HashMap<String, String> {
    let (index, _) = world().registry.manifest(&image.accelerated).unwrap();
    let repository = image.accelerated.rsplit_once(':').unwrap().0;
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let (manifest, _) = world().registry.manifest(&format!("{repository}@{digest}")).unwrap();
    let layer = &manifest["layers"][0];
    let config = world().registry.blob_file(manifest["config"]["digest"].as_str().unwrap());
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let annotations = layer["annotations"].as_object().unwrap().iter();
    let mut labels: HashMap<String, String> =
        annotations.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
    labels.insert("containerd.io/snapshot.ref".into(), config["rootfs"]["diff_ids"][0].as_str().unwrap().into());
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), proxy.by_way(&image.accelerated));
    labels
}

#[test]
fn labels_of_a_snapshot_open_its_registry_and_are_seen_by_nobody_else() {
    let mut node = node();
    let mut labels = labels(&world().busybox, &node.proxy);
    let chain = labels["containerd.io/snapshot.ref"].clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = node.snapshotter.socket().to_owned();
    let prepare = |labels: &HashMap<String, String>| {
        runtime.block_on(async {
            let mut client = SnapshotsClient::new(containerd_client::connect(&socket).await.unwrap());
            let request = PrepareSnapshotRequest { key: "layer".into(), labels: labels.clone(), ..Default::default() };
            let answer = client.prepare(request).await.map(drop);
            let known = client.stat(StatSnapshotRequest { key: chain.clone(), ..Default::default() }).await;
            (answer, known.ok().map(|known| known.into_inner().info.unwrap().labels))
        })
    };
    labels.insert("containerd.io/snapshot/pullusername".into(), USER.into());
    labels.insert("containerd.io/snapshot/pullsecret".into(), PASSWORD.into());
    let (answer, known) = prepare(&labels);
    assert_eq!(answer.unwrap_err().code(), tonic::Code::AlreadyExists, "{}", node.snapshotter.log());
    let known = known.unwrap();
    assert!(
        known.keys().all(|key| !key.contains("pull")) && known.contains_key("containerd.io/snapshot/cri.image-ref")
    );
    assert_hidden(&node);
    // Nobody tells it again.
    node.snapshotter.stop().unwrap();
    node.snapshotter.launch().unwrap();
    let mounts = runtime.block_on(async {
        let mut client = SnapshotsClient::new(containerd_client::connect(node.snapshotter.socket()).await.unwrap());
        let request = ViewSnapshotRequest { key: "view".into(), parent: chain.clone(), ..Default::default() };
        client.view(request).await.unwrap().into_inner().mounts
    });
    let passwd = std::fs::read_to_string(Path::new(&mounts[0].source).join("etc/passwd")).unwrap();
    assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\n");
    assert_hidden(&node);
}

#[test]
fn a_pod_s_pull_secret_is_enough_if_kubelet_pulls_by_way_of_the_snapshotter() {
    let mut node = node();
    // What isn't read at first is still missing when the daemon has been started again.
    let config = format!("containerd_address = {:?}\nbackground_fill = false\n", node.containerd.socket());
    node.snapshotter.configure(&config).unwrap();
    // It gives up on the connection to the one before only after a while.
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&world().small.accelerated);
    // As a kubelet with `--image-service-endpoint`.
    let images = Cri::connect(node.snapshotter.socket()).unwrap();
    let refused = images.pull(&image).unwrap_err();
    assert!(format!("{refused:#}").contains("401"), "containerd's own words: {refused:#}");
    images.pull_as(&image, USER, "guess").unwrap_err();
    images.pull_as(&image, USER, PASSWORD).unwrap();
    assert!(images.has_image(&image).unwrap(), "other calls are passed on as well");
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the pull fetched of {layer}: {}", node.snapshotter.log());
    }
    let run = |node: &Node, name: &str, path: &str| {
        let cri = Cri::connect(node.containerd.socket()).unwrap();
        let sandbox = cri.run_sandbox(name).unwrap();
        let container = cri.start_container(&sandbox, name, &image, &["sleep", "1000"]).unwrap();
        let said = cri.exec(&container, &["head", "-c", "7", path]).unwrap();
        cri.remove_container(&container).unwrap();
        cri.remove_sandbox(sandbox).unwrap();
        assert_eq!(said.exit_code, 0, "{}", String::from_utf8_lossy(&said.stderr));
        said.stdout
    };
    assert_eq!(run(&node, "first", "/srv/app/data/countdown"), b"400000\n");
    assert_hidden(&node);
    // Kubelet doesn't pull an image again that is there: what it told must outlive the daemon.
    node.snapshotter.stop().unwrap();
    node.snapshotter.launch().unwrap();
    node.containerd.restart().unwrap();
    node.proxy.take_log();
    assert_eq!(run(&node, "second", "/srv/app/data/random").len(), 7);
    assert!(node.proxy.log().iter().any(|access| access.status == 206), "{:?}", node.proxy.log());
    assert_hidden(&node);
}
