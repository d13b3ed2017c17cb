//! Layers that are mounted instead of unpacked.
use crate::{
    daemon::{Daemon, Labels, Mounted, option},
    image::{Image, Source, noise},
};
use clipper_tests::tarball::Entry;
use std::{fs, os::unix::fs::MetadataExt};

fn two_layers() -> Image {
    let lower = [
        Entry::dir("etc/").owner(3, 4),
        Entry::file("etc/keep", "kept"),
        Entry::file("etc/change", "old"),
        Entry::file("etc/drop", "gone"),
        Entry::file("big", noise(1, 1 << 20)),
    ];
    let upper = [Entry::file("etc/change", "new").mode(0o4755).owner(5, 6), Entry::file("etc/.wh.drop", "")];
    Image::new(&[Source::Indexed(&lower), Source::Indexed(&upper)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_accelerated_image_is_pulled_without_its_layers_and_runs() {
    let (daemon, mut client) = Daemon::start().await;
    let image = two_layers();
    let pulled = client.pull(&image, "default").await;
    assert_eq!(pulled.unpacked, [false, false]);
    // Bare chain IDs, and the labels that containerd gave.
    assert_eq!(pulled.names, [image.layers[0].chain.to_string(), image.layers[1].chain.to_string()]);
    let info = client.stat(pulled.top()).await.unwrap();
    assert_eq!((info.parent, info.labels), (pulled.names[0].clone(), image.layers[1].labels.clone()));
    assert_eq!(info.kind, 3);

    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    assert!(!option(&mounts[0], "lowerdir").contains(':'), "one lower directory: {mounts:?}");
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(mounted.names("etc"), ["change", "keep"]);
    assert_eq!(fs::read(mounted.path("etc/change")).unwrap(), b"new");
    let meta = fs::metadata(mounted.path("etc/change")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o4755, 5, 6));
    assert_eq!(fs::metadata(mounted.path("etc")).unwrap().uid(), 3);
    fs::write(mounted.path("etc/keep"), "changed").unwrap();
    fs::remove_file(mounted.path("etc/change")).unwrap();
    assert_eq!(mounted.names("etc"), ["keep"]);

    // Another container of the same image sees none of that, through the same mount.
    let other = client.prepare("other", pulled.top(), &Labels::new()).await.unwrap();
    assert_eq!(option(&other[0], "lowerdir"), option(&mounts[0], "lowerdir"));
    let other = Mounted::new(&other, daemon.scratch.join("other"));
    assert_eq!(fs::read(other.path("etc/keep")).unwrap(), b"kept");
    assert_eq!(client.mounts("container").await.unwrap(), mounts);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_view_of_a_remote_image_is_bound_read_only() {
    let (daemon, mut client) = Daemon::start().await;
    let image = two_layers();
    let pulled = client.pull(&image, "default").await;
    let mounts = client.view("view", pulled.top()).await.unwrap();
    assert_eq!(
        (mounts[0].r#type.as_str(), &mounts[0].options[..]),
        ("bind", &["ro".to_owned(), "rbind".to_owned()][..])
    );
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(fs::read(mounted.path("etc/keep")).unwrap(), b"kept");
    assert!(fs::write(mounted.path("etc/keep"), "x").is_err());
    // The lower layer alone, too.
    let lower = client.view("lower", &pulled.names[0]).await.unwrap();
    let lower = Mounted::new(&lower, daemon.scratch.join("lower"));
    assert_eq!(lower.names("etc"), ["change", "drop", "keep"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn usage_tells_what_is_cached() {
    let (daemon, mut client) = Daemon::start().await;
    let image = two_layers();
    let pulled = client.pull(&image, "default").await;
    assert_eq!(client.usage(&pulled.names[0]).await.size, 0);
    let mounts = client.view("view", pulled.top()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(fs::read(mounted.path("big")).unwrap(), noise(1, 1 << 20));
    let usage = client.usage(&pulled.names[0]).await;
    assert!(((1 << 20)..(2 << 20)).contains(&usage.size), "{usage:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn namespaces_share_remote_layers() {
    let (_daemon, mut client) = Daemon::start().await;
    let image = two_layers();
    let first = client.pull(&image, "default").await;
    let second = client.pull(&image, "k8s.io").await;
    assert_eq!(first.names, second.names);
    assert_eq!(client.names(&[]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn remote_and_ordinary_layers_mix_in_any_order() {
    let (daemon, mut client) = Daemon::start().await;
    let usr = |uid| Entry::dir("usr/").owner(uid, uid);
    let a = [usr(11), Entry::dir("srv/"), Entry::file("srv/a", "a"), Entry::file("usr/x", "from a")];
    let b = [
        usr(11),
        Entry::dir("srv/"),
        Entry::file("srv/b", "b"),
        Entry::file("usr/x", "from b"),
        Entry::file("old/f", "f"),
    ];
    // Doesn't describe usr/, which ordinary layers do, and hides what they have.
    let c = [Entry::file("usr/y", "from c"), Entry::file("srv/.wh.b", ""), Entry::file("old/.wh..wh..opq", "")];
    let d = [Entry::file("usr/x", "from d"), Entry::file("srv/.wh.a", "")];
    let e = [Entry::file("srv/e", "e")];
    let image = Image::new(&[
        Source::Ordinary(&a),
        Source::Ordinary(&b),
        Source::Indexed(&c),
        Source::Indexed(&d),
        Source::Ordinary(&e),
    ]);
    let pulled = client.pull(&image, "default").await;
    assert_eq!(pulled.unpacked, [true, true, false, false, true]);
    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    assert_eq!(option(&mounts[0], "lowerdir").split(':').count(), 4);
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(mounted.names("srv"), ["e"]);
    assert_eq!(mounted.names("usr"), ["x", "y"]);
    assert_eq!(mounted.names("old"), [""; 0]);
    assert_eq!(fs::read(mounted.path("usr/x")).unwrap(), b"from d");
    assert_eq!(fs::read(mounted.path("usr/y")).unwrap(), b"from c");
    assert_eq!(fs::metadata(mounted.path("usr")).unwrap().uid(), 11);

    // Another namespace has ordinary layers of its own, and so a remote layer above them of its own.
    let other = client.pull(&image, "other").await;
    assert_ne!(other.names[2], pulled.names[2]);
    let mounts = client.prepare("other", other.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("other"));
    assert_eq!(mounted.names("usr"), ["x", "y"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_trees_of_an_image_are_merged_while_it_is_pulled() {
    let (daemon, mut client) = Daemon::start().await;
    let image = two_layers();
    let first = &image.layers[0];
    client.prepare("extract", "", &first.labels).await.unwrap_err();
    let merged = || fs::read_dir(daemon.root("trees")).unwrap().count() == 1;
    let wait = async {
        while !merged() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("nothing is merged");
    let pulled = client.pull(&image, "default").await;
    client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    assert!(merged(), "another tree was made for the container");
}
