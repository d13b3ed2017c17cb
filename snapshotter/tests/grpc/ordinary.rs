//! What containerd's own suite leaves out of the life of ordinary snapshots.
use crate::daemon::{Daemon, Labels, Mounted, code};
use containerd_client::services::v1::snapshots::{Info, UpdateSnapshotRequest};
use prost_types::FieldMask;
use std::{collections::BTreeSet, fs};
use tonic::Code;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn failures_have_the_codes_that_containerd_tells_apart() {
    let (_daemon, mut client) = Daemon::start().await;
    let none = Labels::new();
    assert_eq!(code(client.stat("gone").await), Code::NotFound);
    assert_eq!(code(client.mounts("gone").await), Code::NotFound);
    assert_eq!(code(client.remove("gone").await), Code::NotFound);
    assert_eq!(code(client.commit("gone", "name", &none).await), Code::NotFound);
    assert_eq!(code(client.prepare("a", "gone", &none).await), Code::NotFound);
    assert_eq!(code(client.prepare("", "", &none).await), Code::InvalidArgument);

    client.prepare("a", "", &none).await.unwrap();
    assert_eq!(code(client.prepare("a", "", &none).await), Code::AlreadyExists);
    assert_eq!(code(client.prepare("b", "a", &none).await), Code::InvalidArgument);
    client.commit("a", "base", &none).await.unwrap();
    assert_eq!(code(client.mounts("base").await), Code::FailedPrecondition);
    client.view("v", "base").await.unwrap();
    assert_eq!(code(client.commit("v", "name", &none).await), Code::FailedPrecondition);
    assert_eq!(code(client.remove("base").await), Code::FailedPrecondition);
    assert_eq!(code(client.list(&["name=="]).await), Code::InvalidArgument);
    client.remove("v").await.unwrap();
    client.remove("base").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn update_changes_the_labels_that_the_mask_names() {
    let (_daemon, mut client) = Daemon::start().await;
    client.prepare("a", "", &labels(&[("keep", "1"), ("change", "1"), ("drop", "1")])).await.unwrap();
    let before = client.stat("a").await.unwrap();
    let update = async |client: &mut crate::daemon::Client, given: Labels, paths: &[&str]| {
        let paths = paths.iter().map(ToString::to_string).collect();
        let info = Info { name: "a".into(), labels: given, ..Default::default() };
        let request = UpdateSnapshotRequest {
            snapshotter: "clipper".into(),
            info: Some(info),
            update_mask: Some(FieldMask { paths }),
        };
        Ok(client.0.update(request).await?.into_inner().info.unwrap())
    };
    let updated = update(&mut client, labels(&[("change", "2"), ("keep", "9")]), &["labels.change", "labels.drop"]);
    let updated = updated.await.unwrap();
    assert_eq!(updated.labels, labels(&[("keep", "1"), ("change", "2")]));
    assert_eq!(client.stat("a").await.unwrap(), updated);
    assert_eq!(updated.created_at, before.created_at);
    let nanoseconds = |info: &Info| info.updated_at.map(|time| (time.seconds, time.nanos));
    assert!(nanoseconds(&updated) > nanoseconds(&before));

    for mask in [&["labels"][..], &[]] {
        let updated = update(&mut client, labels(&[("only", "1")]), mask).await.unwrap();
        assert_eq!(updated.labels, labels(&[("only", "1")]), "{mask:?}");
    }
    let refused: Result<Info, _> = update(&mut client, Labels::new(), &["parent"]).await;
    assert_eq!(code(refused), Code::InvalidArgument);
    assert_eq!(client.stat("a").await.unwrap().labels, labels(&[("only", "1")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn long_lists_come_in_batches() {
    let (_daemon, mut client) = Daemon::start().await;
    let expected: BTreeSet<_> = (0..230).map(|number| format!("k{number}")).collect();
    for name in &expected {
        client.prepare(name, "", &Labels::new()).await.unwrap();
    }
    let batches = client.list(&[]).await.unwrap();
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 30]);
    assert_eq!(batches.into_iter().flatten().map(|info| info.name).collect::<BTreeSet<_>>(), expected);
    assert_eq!(client.names(&["name==k7", "name~=^k22[89]$"]).await, ["k228", "k229", "k7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn snapshots_outlive_the_daemon_and_orphans_do_not() {
    let (mut daemon, mut client) = Daemon::start().await;
    let mounts = client.prepare("a", "", &labels(&[("l", "v")])).await.unwrap();
    fs::write(std::path::Path::new(&mounts[0].source).join("file"), b"content").unwrap();
    client.commit("a", "base", &labels(&[("l", "w")])).await.unwrap();
    let info = client.stat("base").await.unwrap();
    daemon.stop();
    assert!(!daemon.socket().exists(), "the socket stays behind");
    fs::create_dir_all(daemon.root("snapshots/77/fs")).unwrap();
    fs::create_dir_all(daemon.root("snapshots/new-1")).unwrap();

    let mut client = daemon.launch().await;
    assert_eq!(client.stat("base").await.unwrap(), info);
    assert_eq!(fs::read_dir(daemon.root("snapshots")).unwrap().count(), 1);
    let mounts = client.prepare("b", "base", &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"content");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_socket_left_by_a_killed_daemon_is_replaced() {
    let (mut daemon, _client) = Daemon::start().await;
    daemon.kill();
    assert!(daemon.socket().exists());
    let mut client = daemon.launch().await;
    assert_eq!(client.names(&[]).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn usage_is_that_of_the_snapshot_without_its_parents() {
    let (_daemon, mut client) = Daemon::start().await;
    let mounts = client.prepare("a", "", &Labels::new()).await.unwrap();
    fs::write(std::path::Path::new(&mounts[0].source).join("file"), vec![1; 1 << 20]).unwrap();
    let active = client.usage("a").await;
    assert_eq!(active.inodes, 2);
    assert!((1 << 20..2 << 20).contains(&active.size), "{active:?}");
    client.commit("a", "base", &Labels::new()).await.unwrap();
    assert_eq!(client.usage("base").await, active);
    client.prepare("b", "base", &Labels::new()).await.unwrap();
    assert_eq!(client.usage("b").await.inodes, 1);
}
