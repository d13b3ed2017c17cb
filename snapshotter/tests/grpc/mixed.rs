//! Images with ordinary layers below converted ones: the snapshotter unpacks those itself, and only those.
use crate::{
    daemon::{Client, Daemon, Labels, Mounted, option},
    image::{Image, Source, noise},
};
use clipper_tests::tarball::{Entry, Kind, Sparse, SparseFormat};
use rustix::mount::{MountFlags, mount};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::PathBuf,
};

fn bottom() -> Vec<Entry> {
    let holes = Sparse { size: 5_000_000, runs: vec![(1 << 20, noise(2, 4096))], format: SparseFormat::Pax10 };
    vec![
        Entry::dir("etc").mode(0o711).owner(7, 8).mtime(1_600_000_000, 123_456_789).xattr("user.d", "directory"),
        Entry::file("etc/keep", "kept").mode(0o4750).owner(5, 6).mtime(1_500_000_000, 999_999_999),
        Entry::file("etc/drop", "gone"),
        Entry::file("etc/replace", "old"),
        Entry::file("capable", "c")
            .xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()),
        Entry::symlink("link", "etc/keep").mtime(1_400_000_000, 5).owner(9, 9),
        Entry::hardlink("etc/of-a-link", "link").mtime(1_400_000_000, 5).owner(9, 9),
        Entry::hardlink("same", "etc/keep").mode(0o4750).owner(5, 6).mtime(1_500_000_000, 999_999_999),
        Entry::new("fifo", Kind::Fifo).mode(0o622),
        Entry::new("null", Kind::CharDevice(1, 3)).mode(0o666),
        Entry::new("holes", Kind::Sparse(holes)),
        Entry::dir("old"),
        Entry::file("old/hidden", "below an opaque directory"),
        Entry::file("big", noise(1, 700_000)),
    ]
}

fn second() -> Vec<Entry> {
    // Doesn't describe etc/, which is then as below.
    vec![
        Entry::file("etc/.wh.replace", ""),
        Entry::file("etc/second", "2"),
        Entry::dir("old"),
        Entry::file("old/.wh..wh..opq", ""),
        Entry::file("old/seen", "s"),
    ]
}

fn converted() -> Vec<Entry> {
    vec![Entry::file("etc/.wh.drop", ""), Entry::file("etc/third", "3"), Entry::file("lazy", noise(3, 200_000))]
}

fn image() -> Image {
    let top = [Entry::file("top", "t")];
    let sources = [
        Source::Ordinary(&bottom()),
        Source::Ordinary(&second()),
        Source::Indexed(&converted()),
        Source::Ordinary(&top),
    ];
    Image::new(&sources).with_manifest("gzip")
}

/// What is being unpacked, and what is unpacked.
fn left(daemon: &Daemon) -> [Vec<PathBuf>; 2] {
    ["unpacking", "snapshots"].map(|dir| {
        let entries = fs::read_dir(daemon.root(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ordinary_layers_below_converted_ones_are_unpacked_by_the_snapshotter() {
    let (daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    // The one above all converted ones is containerd's.
    assert_eq!(pulled.unpacked, [false, false, false, true]);
    assert_eq!(pulled.names[1], image.layers[1].chain.to_string());
    let info = client.stat(&pulled.names[1]).await.unwrap();
    assert_eq!((info.parent, info.labels, info.kind), (pulled.names[0].clone(), image.layers[1].labels.clone(), 3));
    assert!(client.usage(&pulled.names[0]).await.size > 700_000);
    assert_eq!(left(&daemon)[0], [""; 0].map(PathBuf::from));

    let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    assert_eq!(option(&mounts[0], "lowerdir").split(':').count(), 4);
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    let names = ["big", "capable", "etc", "fifo", "holes", "lazy", "link", "null", "old", "same", "top"];
    assert_eq!(mounted.names(""), names);
    assert_eq!(mounted.names("etc"), ["keep", "of-a-link", "second", "third"]);
    assert_eq!(mounted.names("old"), ["seen"]);
    assert_eq!(fs::read(mounted.path("lazy")).unwrap(), noise(3, 200_000));
    assert_eq!(fs::read(mounted.path("big")).unwrap(), noise(1, 700_000));
    let meta = |name: &str| fs::symlink_metadata(mounted.path(name)).unwrap();
    let etc = meta("etc");
    assert_eq!((etc.mode() & 0o7777, etc.uid(), etc.gid()), (0o711, 7, 8));
    let keep = meta("etc/keep");
    assert_eq!((keep.mode() & 0o7777, keep.uid(), keep.gid()), (0o4750, 5, 6));
    assert_eq!((keep.mtime(), keep.mtime_nsec()), (1_500_000_000, 999_999_999));
    assert_eq!((keep.ino(), keep.nlink()), (meta("same").ino(), 2));
    assert_eq!(
        (meta("link").ino(), meta("link").mtime(), meta("link").uid()),
        (meta("etc/of-a-link").ino(), 1_400_000_000, 9)
    );
    assert!(meta("fifo").file_type().is_fifo() && meta("null").file_type().is_char_device());
    assert_eq!((meta("fifo").mode() & 0o7777, meta("null").rdev()), (0o622, rustix::fs::makedev(1, 3)));
    let holes = meta("holes");
    assert!(holes.len() == 5_000_000 && holes.blocks() * 512 <= 64 << 10, "{holes:?}");
    assert_eq!(fs::read(mounted.path("holes")).unwrap()[1 << 20..][..4096], noise(2, 4096));
    drop(mounted);

    // With nothing of the network left, all but what nobody has read yet is there.
    image.unplug();
    client.mounts("container").await.unwrap();
    client.remove("container").await.unwrap();
    for name in pulled.names.iter().rev() {
        client.remove(name).await.unwrap();
    }
    assert_eq!(left(&daemon).concat(), [""; 0].map(PathBuf::from));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_ordinary_layers_are_left_to_containerd() {
    let (daemon, mut client) = Daemon::start().await;
    let (a, b) = ([Entry::file("a", "a")], [Entry::file("b", "b")]);
    let ordinary = Image::new(&[Source::Ordinary(&a), Source::Ordinary(&b)]).with_manifest("gzip");
    assert_eq!(client.pull(&ordinary, "default").await.unpacked, [true, true]);
    let above = Image::new(&[Source::Indexed(&b), Source::Ordinary(&a)]).with_manifest("gzip");
    assert_eq!(client.pull(&above, "default").await.unpacked, [false, true]);
    let log = daemon.log();
    assert!(!log.contains("left to containerd") && !log.contains("WARN"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_layer_between_converted_ones_is_unpacked_here_too() {
    let (daemon, mut client) = Daemon::start().await;
    let lower = [Entry::dir("usr").owner(3, 4).mode(0o750), Entry::file("usr/a", "a"), Entry::file("usr/gone", "g")];
    let between = [Entry::file("usr/b", "b"), Entry::file("usr/.wh.gone", "")];
    let upper = [Entry::file("usr/c", "c")];
    let sources = [Source::Indexed(&lower), Source::Ordinary(&between), Source::Indexed(&upper)];
    let pulled = client.pull(&Image::new(&sources).with_manifest("gzip"), "default").await;
    assert_eq!(pulled.unpacked, [false, false, false]);
    let mounts = client.view("view", pulled.top()).await.unwrap();
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(mounted.names("usr"), ["a", "b", "c"]);
    let usr = fs::metadata(mounted.path("usr")).unwrap();
    assert_eq!((usr.mode() & 0o7777, usr.uid(), usr.gid()), (0o750, 3, 4));
}

/// Pulls an image whose ordinary layers must be left to containerd; gives the log.
async fn leaves(image: &Image) -> String {
    let (daemon, mut client) = Daemon::start().await;
    let pulled = pull_naively(&mut client, image).await;
    assert_eq!(pulled, [true, true, false, true]);
    let [unpacking, snapshots] = left(&daemon);
    assert_eq!((unpacking.len(), snapshots.len()), (0, 3), "{snapshots:?}");
    daemon.log()
}

/// Of each layer, whether containerd has to unpack it; what is in it is of no matter.
async fn pull_naively(client: &mut Client, image: &Image) -> Vec<bool> {
    let mut parent = String::new();
    let mut unpacked = Vec::new();
    for layer in &image.layers {
        let prepared = client.prepare("extract", &parent, &layer.labels).await;
        unpacked.push(prepared.is_ok());
        parent = layer.chain.to_string();
        if prepared.is_ok() {
            client.commit("extract", &parent, &layer.labels).await.unwrap();
        }
    }
    unpacked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_layer_is_left_to_containerd() {
    let image = image();
    let digest = image.layers[0].digest;
    let path = image.blob(&digest);
    let mut bytes = fs::read(&path).unwrap();
    for at in [bytes.len() / 2, bytes.len() - 9] {
        bytes[at] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        let log = leaves(&image).await;
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&digest.to_string())).collect();
        let [line] = lines[..] else { panic!("{log}") };
        // What the registry did, not what came of it.
        assert!(line.contains("download a layer") && line.contains("digest"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn layers_that_cannot_be_had_or_read_are_left_to_containerd() {
    let missing = image();
    let digest = missing.layers[0].digest;
    fs::remove_file(missing.blob(&digest)).unwrap();
    let log = leaves(&missing).await;
    assert_eq!(log.matches("download a layer").count(), 1, "{log}");
    assert!(log.contains(&digest.to_string()), "{log}");

    let unknown = image();
    let manifest = &unknown.layers[0].labels["containerd.io/snapshot/cri.manifest-digest"];
    fs::remove_file(unknown.blob(&manifest.parse().unwrap())).unwrap();
    let log = leaves(&unknown).await;
    assert_eq!(log.matches("left to containerd").count(), 1, "asked for once: {log}");

    let bottom = bottom();
    let top = [Entry::file("top", "t")];
    let sources = [Source::Ordinary(&bottom), Source::Ordinary(&top), Source::Indexed(&top), Source::Ordinary(&bottom)];
    let log = leaves(&Image::new(&sources).with_manifest("zstd")).await;
    assert!(log.contains("compression"), "{log}");

    let mut other = image();
    let chain = other.layers[3].chain;
    other.layers[0].chain = chain;
    other.layers[0].labels.insert("containerd.io/snapshot.ref".into(), chain.to_string());
    let (daemon, mut client) = Daemon::start().await;
    client.prepare("extract", "", &other.layers[0].labels).await.unwrap();
    assert!(daemon.log().contains(&format!("containerd expects {chain}")), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_layer_that_does_not_fit_the_disk_leaves_nothing_there() {
    let (mut daemon, _) = Daemon::start().await;
    daemon.stop();
    mount("tmpfs", daemon.root(""), "tmpfs", MountFlags::empty(), Some(c"size=12m")).unwrap();
    let mut client = daemon.launch().await;
    let sources = [
        Source::Ordinary(&[Entry::file("small", "s")]),
        Source::Ordinary(&[Entry::file("large", noise(1, 9_000_000))]),
        Source::Indexed(&[Entry::file("converted", "c")]),
    ];
    let image = Image::new(&sources).with_manifest("gzip");
    assert_eq!(pull_naively(&mut client, &image).await, [false, true, false]);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("download a layer")).expect(&log);
    assert!(line.contains(&image.layers[1].digest.to_string()) && line.contains("No space left"), "{line}");
    let [unpacking, snapshots] = left(&daemon);
    assert_eq!((unpacking.len(), snapshots.len()), (0, 2));
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn pulls_at_the_same_time_unpack_a_layer_once() {
    let (daemon, client) = Daemon::start().await;
    let image = std::sync::Arc::new(image());
    let pulls = (0..6).map(|number| {
        let (mut client, image) = (client.clone(), std::sync::Arc::clone(&image));
        tokio::spawn(async move { client.pull(&image, &format!("n{number}")).await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        let pulled = pull.await.unwrap();
        assert_eq!(pulled.unpacked, [false, false, false, true]);
    }
    assert_eq!(daemon.log().matches("unpacked a layer").count(), 2, "{}", daemon.log());
    let [unpacking, snapshots] = left(&daemon);
    assert_eq!((unpacking.len(), snapshots.len()), (0, 2 + 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_registry_that_hangs_up_is_asked_once_by_pulls_at_the_same_time() {
    let (daemon, client) = Daemon::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut labels = image().layers[0].labels.clone();
    let reference = format!("{}/app:1", listener.local_addr().unwrap());
    labels.insert("containerd.io/snapshot/cri.image-ref".into(), reference);
    // Nobody listens there any more.
    drop(listener);
    let prepares = (0..4).map(|number| {
        let (mut client, labels) = (client.clone(), labels.clone());
        tokio::spawn(async move { client.prepare(&format!("n{number}"), "", &labels).await.map(drop) })
    });
    for prepare in prepares.collect::<Vec<_>>() {
        prepare.await.unwrap().unwrap();
    }
    assert_eq!(daemon.log().matches("left to containerd").count(), 1, "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_crash_left_half_unpacked_is_deleted() {
    let (mut daemon, _) = Daemon::start().await;
    daemon.kill();
    fs::create_dir_all(daemon.root("unpacking/0/layer/fs/etc")).unwrap();
    fs::write(daemon.root("unpacking/0/tar"), [1; 100_000]).unwrap();
    let mut client = daemon.launch().await;
    let pulled = client.pull(&image(), "default").await;
    assert_eq!(pulled.unpacked, [false, false, false, true]);
    assert_eq!(left(&daemon)[0], [""; 0].map(PathBuf::from));
}
