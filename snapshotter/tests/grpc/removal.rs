//! Removing images: what they took comes back, unless others use it.
use crate::{
    daemon::{Client, Daemon, Labels, Mounted, code},
    image::{Image, Source, noise},
    pull::Pulled,
};
use clipper_tests::{scratch::mounts_below, tarball::Entry};
use std::{fs, path::Path};
use tonic::Code;

/// Names of the files in `dir` but its lock; none if there is no such directory.
fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lock").collect()
}

async fn remove_layers(client: &mut Client, pulled: &Pulled, keep: usize) {
    for name in pulled.names[keep..].iter().rev() {
        client.remove(name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn images_share_layers_and_the_last_one_to_go_frees_them() {
    let (daemon, mut client) = Daemon::start().await;
    let base = [Entry::file("base", noise(1, 300_000))];
    let (a, b) = ([Entry::file("a", noise(2, 200_000))], [Entry::file("b", noise(3, 200_000))]);
    let first = Image::new(&[Source::Indexed(&base), Source::Indexed(&a)]);
    let second = Image::new(&[Source::Indexed(&base), Source::Indexed(&b)]);
    let pulled = [client.pull(&first, "default").await, client.pull(&second, "default").await];
    assert_eq!(pulled[0].names[0], pulled[1].names[0]);
    assert_eq!(client.names(&[]).await.len(), 3);
    for (key, pulled) in ["a", "b"].into_iter().zip(&pulled) {
        let mounts = client.prepare(key, pulled.top(), &Labels::new()).await.unwrap();
        let mounted = Mounted::new(&mounts, daemon.scratch.join(key));
        assert_eq!(fs::read(mounted.path("base")).unwrap(), noise(1, 300_000));
        assert_eq!(fs::read(mounted.path(key)).unwrap().len(), 200_000);
    }
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 2);

    assert_eq!(code(client.remove(pulled[0].top()).await), Code::FailedPrecondition);
    client.remove("a").await.unwrap();
    remove_layers(&mut client, &pulled[0], 1).await;
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 1);
    // What the other image uses is still there and still whole, with no source to fetch it from.
    first.unplug();
    second.unplug();
    let mounts = client.mounts("b").await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("again"));
    assert_eq!(fs::read(mounted.path("base")).unwrap(), noise(1, 300_000));
    drop(mounted);

    client.remove("b").await.unwrap();
    remove_layers(&mut client, &pulled[1], 0).await;
    for dir in ["mounts", "snapshots", "indexes", "trees", "devices"] {
        assert_eq!(files(&daemon.root(dir)), [""; 0], "{dir}");
    }
    assert_eq!(mounts_below(&daemon.root("mounts")), [""; 0].map(std::path::PathBuf::from));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_container_that_runs_keeps_its_files_when_its_image_is_mounted_no_more() {
    let (daemon, mut client) = Daemon::start().await;
    let image = Image::new(&[Source::Indexed(&[Entry::file("file", noise(4, 300_000))])]);
    let pulled = client.pull(&image, "default").await;
    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    client.remove("container").await.unwrap();
    client.remove(pulled.top()).await.unwrap();
    assert_eq!(fs::read(mounted.path("file")).unwrap(), noise(4, 300_000));
    drop(mounted);
    client.0.cleanup(containerd_client::services::v1::snapshots::CleanupRequest::default()).await.unwrap();
    assert_eq!(files(&daemon.root("mounts")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_image_comes_back_after_it_was_removed() {
    let (daemon, mut client) = Daemon::start().await;
    let image = Image::new(&[Source::Indexed(&[Entry::file("file", noise(5, 100_000))])]);
    for round in 0..3 {
        let pulled = client.pull(&image, "default").await;
        assert_eq!(pulled.unpacked, [false]);
        let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
        let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
        assert_eq!(fs::read(mounted.path("file")).unwrap(), noise(5, 100_000), "round {round}");
        drop(mounted);
        client.remove("container").await.unwrap();
        client.remove(pulled.top()).await.unwrap();
    }
}
