//! Accelerated images whose index can't be had or can't be right: containerd downloads and unpacks them as any other.
use crate::{
    daemon::{Daemon, Labels, Mounted},
    image::{Image, Source, noise},
};
use clipper_format::{Digest, index::ANNOTATION_LAYER};
use clipper_tests::tarball::Entry;
use std::{fs, net::TcpListener, time::Duration};

fn image() -> Image {
    let lower = [Entry::file("lower", noise(1, 100_000))];
    let upper = [Entry::file("upper", noise(2, 100_000))];
    Image::new(&[Source::Indexed(&lower), Source::Indexed(&upper)])
}

/// Pulls `image`, which must need unpacking as `unpacked` says and end up right, and gives the log.
async fn pulls(image: &Image, unpacked: [bool; 2]) -> String {
    let (daemon, mut client) = Daemon::start().await;
    let pulled = client.pull(image, "default").await;
    assert_eq!(pulled.unpacked, unpacked);
    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(fs::read(mounted.path("lower")).unwrap(), noise(1, 100_000));
    assert_eq!(fs::read(mounted.path("upper")).unwrap(), noise(2, 100_000));
    drop(mounted);
    daemon.log()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_its_index_an_image_is_unpacked() {
    let image = image();
    fs::remove_file(image.blob(&image.index())).unwrap();
    let log = pulls(&image, [true, true]).await;
    assert!(log.contains(&image.index().to_string()), "{log}");
    // It was asked for once, not once for every layer.
    assert!(log.contains("\"0 s ago: "), "{log}");
    assert!(!log.contains('\x1b'), "colours in a file: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_a_damaged_index_an_image_is_unpacked() {
    let image = image();
    let path = image.blob(&image.index());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let log = pulls(&image, [true, true]).await;
    assert!(log.contains(&image.index().to_string()), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_something_else_for_an_index_an_image_is_unpacked() {
    let mut image = image();
    let other = image.layers[0].digest.to_string();
    for layer in &mut image.layers {
        layer.labels.insert(clipper_format::index::ANNOTATION_INDEX.into(), other.clone());
    }
    let log = pulls(&image, [true, true]).await;
    assert!(log.contains(&other), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_layer_that_is_not_in_the_index_or_not_the_one_expected_is_unpacked() {
    let mut image = image();
    image.layers[1].labels.insert(ANNOTATION_LAYER.into(), Digest::of(b"unknown").to_string());
    let log = pulls(&image, [false, true]).await;
    assert!(log.contains(&Digest::of(b"unknown").to_string()), "{log}");
    // The lower layer's tree in the upper layer's place: the chain ID gives it away.
    let lower = image.layers[0].digest.to_string();
    image.layers[1].labels.insert(ANNOTATION_LAYER.into(), lower.clone());
    let log = pulls(&image, [false, true]).await;
    assert!(log.contains("chain ID") && log.contains(&lower), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_repository_an_image_is_unpacked() {
    let mut image = image();
    for layer in &mut image.layers {
        layer.labels.remove("containerd.io/snapshot/cri.image-ref");
    }
    let log = pulls(&image, [true, true]).await;
    assert!(log.contains("clipper pull"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_registry_that_never_answers_holds_up_nobody_else() {
    let (_daemon, mut client) = Daemon::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = image();
    let mut labels = image.layers[0].labels.clone();
    let reference = format!("{}/app:1", listener.local_addr().unwrap());
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), reference);
    let mut slow = client.clone();
    let waiting = tokio::spawn(async move { slow.prepare("slow", "", &labels).await });
    // The daemon asks the registry: from here on it waits.
    let connection = tokio::task::spawn_blocking(move || (listener.accept().unwrap(), listener)).await.unwrap();
    let rest = async {
        client.prepare("quick", "", &Labels::new()).await.unwrap();
        client.stat("quick").await.unwrap();
        client.commit("quick", "base", &Labels::new()).await.unwrap();
        client.remove("base").await.unwrap();
        let other = Image::new(&[Source::Indexed(&[Entry::file("other", "")])]);
        let pulled = client.pull(&other, "default").await;
        client.view("view", pulled.top()).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), rest).await.expect("others are held up");
    assert!(!waiting.is_finished());
    waiting.abort();
    drop(connection);
}
