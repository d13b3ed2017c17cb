//! What images say themselves of where they came from: followed only where the node's configuration lists the host.

use std::collections::HashMap;
use std::time::Duration;

use clipper_tests::clipper::Snapshotter;
use clipper_tests::proxy::Proxy;
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use tonic::Code;

use crate::world::world;

const REF: &str = "containerd.io/snapshot/clipper.ref";

/// Prepares busybox's one layer with labels that tell all but where it came from, and the hint; whether the layer is
/// there then.
fn prepare(snapshotter: &Snapshotter, hint: &str, key: &str) -> bool {
    let busybox = &world().busybox;
    let (index, _) = world().registry.manifest(&busybox.accelerated).unwrap();
    let repository = busybox.accelerated.rsplit_once(':').unwrap().0;
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let (manifest, _) = world().registry.manifest(&format!("{repository}@{digest}")).unwrap();
    let config = std::fs::read(world().registry.blob_file(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let annotations = manifest["layers"][0]["annotations"].as_object().unwrap();
    let mut labels: HashMap<_, _> =
        annotations.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
    let chain = config["rootfs"]["diff_ids"][0].as_str().unwrap();
    labels.insert("containerd.io/snapshot.ref".into(), chain.into());
    labels.insert(REF.into(), hint.into());
    let request =
        PrepareSnapshotRequest { snapshotter: "clipper".into(), key: key.into(), parent: String::new(), labels };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = SnapshotsClient::new(containerd_client::connect(snapshotter.socket()).await.unwrap());
        match client.prepare(request).await {
            Ok(_) => false,
            Err(status) if status.code() == Code::AlreadyExists => true,
            Err(status) => panic!("{status}"),
        }
    })
}

#[test]
fn hints_of_images_are_followed_only_to_hosts_that_are_listed() {
    let proxy = Proxy::start(world().registry.address(), Duration::ZERO).unwrap();
    let image = proxy.by_way(&world().busybox.accelerated);
    let hint = image.rsplit_once(':').unwrap().0;
    let mut snapshotter = Snapshotter::start().unwrap();
    let nowhere = "containerd_address = \"/nowhere/containerd.sock\"\n";
    let others = ["", "[registry]\nfollow_refs = []\n", "[registry]\nfollow_refs = [\"registry.example\"]\n"];
    for (starts, follow) in (1..).zip(others) {
        snapshotter.configure(&format!("{nowhere}{follow}")).unwrap();
        for key in ["one", "two"] {
            assert!(!prepare(&snapshotter, hint, &format!("{key}-{}", follow.len())), "{follow}");
        }
        let log = snapshotter.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains(hint) && line.contains(REF)).collect();
        assert!(lines.len() == starts && lines.iter().all(|line| line.contains("registry.follow_refs")), "{log}");
        assert!(proxy.log().is_empty(), "{follow}: nobody was asked");
    }
    // A directory of the node is nothing that an image may name, whatever is listed.
    let layout = snapshotter.root().display().to_string();
    snapshotter.configure(&format!("{nowhere}[registry]\nfollow_refs = [\"*\", \"{}\"]\n", proxy.host())).unwrap();
    assert!(!prepare(&snapshotter, &format!("oci:{layout}"), "layout"));
    assert!(proxy.log().is_empty());
    assert!(prepare(&snapshotter, hint, "followed"), "{}", snapshotter.log());
    assert!(!proxy.log().is_empty());
}
