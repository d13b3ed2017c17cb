//! Images behind a login that only a Kubernetes secret opens to the snapshotter, and API servers that come and go.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clipper_tests::cri::Cri;
use clipper_tests::kubernetes::{ApiServer, Fault};
use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use tonic::Code;

use crate::credentials::{PASSWORD, USER, assert_hidden, labels, node};
use crate::run::Node;
use crate::world::world;

/// A node that watches the secrets of a cluster, and whose registry wants a login.
fn watching(api: &ApiServer) -> Node {
    let mut node = node();
    let config = format!(
        "containerd_address = {:?}\nbackground_fill = false\n[fetch]\nwait_seconds = 20\n\
         [credentials.kubernetes]\nkubeconfig = {:?}\n",
        node.containerd.socket(),
        api.kubeconfig().unwrap()
    );
    node.snapshotter.configure(&config).unwrap();
    // It gives up on the connection to the one before only after a while.
    node.containerd.restart().unwrap();
    node
}

fn eventually(what: &str, mut true_: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it didn't come to {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Seven bytes of a file by `head` or `tail`, read in a container of an image that is there.
fn read(node: &Node, image: &str, name: &str, [program, path]: [&str; 2]) -> Vec<u8> {
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    let sandbox = cri.run_sandbox(name).unwrap();
    let container = cri.start_container(&sandbox, name, image, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&container, &[program, "-c", "7", path]).unwrap();
    cri.remove_container(&container).unwrap();
    cri.remove_sandbox(sandbox).unwrap();
    assert_eq!(said.exit_code, 0, "{} {}", String::from_utf8_lossy(&said.stderr), node.snapshotter.log());
    said.stdout
}

#[test]
fn a_secret_alone_opens_an_image_and_its_rotation_and_an_absent_api_server_need_nobody() {
    let api = ApiServer::start().unwrap();
    let mut node = watching(&api);
    api.put_login("team", "pull", &node.proxy.host(), USER, PASSWORD);
    let image = node.proxy.by_way(&world().small.accelerated);
    // Kubelet, and so containerd, has the pod's pull secret; the snapshotter is told nothing.
    Cri::connect(node.containerd.socket()).unwrap().pull_as(&image, USER, PASSWORD).unwrap();
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the pull fetched of {layer}: {}", node.snapshotter.log());
    }
    assert_eq!(read(&node, &image, "first", ["head", "/srv/app/data/countdown"]), b"400000\n");
    assert_hidden(&node);
    // The password changes, and the secret a moment later: readers wait for it.
    let rotated = format!("{PASSWORD}-2");
    node.proxy.require_login(USER, &rotated);
    node.proxy.take_log();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&node, &image, "second", ["head", "/srv/app/data/random"]));
        eventually("a refusal", || node.proxy.log().iter().any(|access| access.status == 401));
        api.put_login("team", "pull", &node.proxy.host(), USER, &rotated);
        assert_eq!(reader.join().unwrap().len(), 7);
    });
    assert!(node.proxy.log().iter().any(|access| access.status == 206), "{:?}", node.proxy.log());
    // The node starts again while the control plane is away.
    let kept = node.snapshotter.root().join("credentials.kubernetes");
    eventually("being kept", || kept.exists());
    std::thread::sleep(Duration::from_secs(1));
    api.down(true);
    node.snapshotter.stop().unwrap();
    node.snapshotter.launch().unwrap();
    node.containerd.restart().unwrap();
    node.proxy.take_log();
    assert_eq!(read(&node, &image, "third", ["tail", "/srv/app/data/countdown"]), b"\n3\n2\n1\n");
    assert!(node.proxy.log().iter().any(|access| access.status == 206), "{:?}", node.proxy.log());
    assert_hidden(&node);
}

#[test]
fn without_a_secret_it_stays_shut_and_trouble_is_told_once() {
    let api = ApiServer::start().unwrap();
    let node = watching(&api);
    let (busybox, small) = (labels(&world().busybox, &node.proxy), labels(&world().small, &node.proxy));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Whether a layer is read lazily; if not, containerd is told to download it, and the log says why.
    let mut keys = 0..;
    let mut prepare = |labels: &HashMap<String, String>| {
        let key = format!("layer-{}", keys.next().unwrap());
        runtime.block_on(async {
            let mut client = SnapshotsClient::new(containerd_client::connect(node.snapshotter.socket()).await.unwrap());
            let request = PrepareSnapshotRequest { key, labels: labels.clone(), ..Default::default() };
            match client.prepare(request).await {
                Ok(_) => false,
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
                    true
                }
            }
        })
    };
    let refusals = || {
        let log = node.snapshotter.log();
        log.lines().filter(|line| line.contains("download a layer whole") && line.contains("401")).count()
    };
    // Secrets that are of no use: broken, and of another registry's.
    let label = [("images.clipper.io/accelerated", "true")];
    api.put("team", "broken", &label, &format!("{PASSWORD} is no JSON"));
    api.put_login("team", "other", "r.example", USER, PASSWORD);
    eventually("a warning", || node.snapshotter.log().contains("team/broken"));
    assert!(node.snapshotter.log().contains("isn't a docker config"), "{}", node.snapshotter.log());
    assert!(!prepare(&busybox) && refusals() == 1, "{}", node.snapshotter.log());
    // One that opens it, and then is deleted: what it would still be needed for is shut again.
    api.put_login("team", "pull", &node.proxy.host(), USER, PASSWORD);
    eventually("being let in", || prepare(&busybox));
    api.delete("team", "pull");
    let kept = node.snapshotter.root().join("credentials.kubernetes");
    let full = std::fs::metadata(&kept).unwrap().len();
    eventually("being forgotten", || std::fs::metadata(&kept).is_ok_and(|meta| meta.len() < full));
    let before = refusals();
    assert!(!prepare(&small) && refusals() > before, "{}", node.snapshotter.log());
    // However long it takes, and however many secrets are watched for.
    let told = || node.snapshotter.log().matches("can't be read just now").count();
    assert_eq!(told(), 0, "{}", node.snapshotter.log());
    api.down(true);
    eventually("a warning", || told() > 0);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(told(), 1, "{}", node.snapshotter.log());
    api.down(false);
    eventually("all being well", || node.snapshotter.log().contains("can be read again"));
    // What can't be understood isn't shown either.
    api.fail("/secrets", Fault::Body(format!("{{\"items\": [\"{PASSWORD}\"\n")), 100);
    api.cut();
    eventually("another warning", || node.snapshotter.log().contains("makes no sense"));
    assert_eq!(told(), 2, "{}", node.snapshotter.log());
    assert_hidden(&node);
}
