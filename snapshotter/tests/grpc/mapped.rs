//! Snapshots for containers in user namespaces.
use crate::{
    daemon::{Client, Daemon, Labels, Mounted, code, option},
    image::{Image, Source, noise},
};
use clipper_tests::{scratch::mounts_below, tarball::Entry};
use rustix::mount::{UnmountFlags, unmount};
use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};
use tonic::Code;

fn mapping(users: &str, groups: &str) -> Labels {
    let labels = [("containerd.io/snapshot/uidmapping", users), ("containerd.io/snapshot/gidmapping", groups)];
    labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn labels() -> Labels {
    mapping("0:100000:65536", "0:200000:65536")
}

fn owner(path: &Path) -> (u32, u32) {
    let status = fs::symlink_metadata(path).unwrap();
    (status.uid(), status.gid())
}

/// Ordinary layers below and above a converted one.
fn image() -> Image {
    let bottom = [Entry::dir("etc").owner(3, 4), Entry::file("etc/bottom", "b").owner(1, 2)];
    let converted = [Entry::file("lazy", noise(1, 300_000)).owner(5, 6), Entry::file("etc/.wh.bottom", "")];
    let top = [Entry::file("top", "t").owner(7, 8).mode(0o4755)];
    let sources = [Source::Ordinary(&bottom), Source::Indexed(&converted), Source::Ordinary(&top)];
    Image::new(&sources).with_manifest("gzip")
}

/// Looks at all that is in the mounted image, and at what a container writes.
fn check(mounted: &Mounted, upper: &Path) {
    assert_eq!(mounted.names("etc"), [""; 0]);
    let expected = [
        ("etc", (100_003, 200_004)),
        ("lazy", (100_005, 200_006)),
        ("top", (100_007, 200_008)),
        ("", (100_000, 200_000)),
    ];
    for (name, ids) in expected {
        assert_eq!(owner(&mounted.path(name)), ids, "{name}");
    }
    assert_eq!(fs::metadata(mounted.path("top")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(fs::read(mounted.path("lazy")).unwrap(), noise(1, 300_000));
    // The container's root writes, and changes what is there.
    fs::write(mounted.path("new"), "by the container").unwrap();
    chown(mounted.path("new"), Some(100_000), Some(200_000)).unwrap();
    assert_eq!(owner(&upper.join("new")), (100_000, 200_000));
    fs::OpenOptions::new().append(true).open(mounted.path("lazy")).unwrap();
    assert_eq!(owner(&upper.join("lazy")), (100_005, 200_006));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn images_look_owned_as_their_container_maps_them() {
    let (daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    let mounts = client.prepare("mapped", pulled.top(), &labels()).await.unwrap();
    let upper = option(&mounts[0], "upperdir").to_owned();
    assert_eq!(owner(Path::new(&upper)), (100_000, 200_000));
    check(&Mounted::new(&mounts, daemon.scratch.join("mnt")), Path::new(&upper));
    assert_eq!(client.mounts("mapped").await.unwrap(), mounts);
    // Another one beside it isn't concerned, and one with the same mapping shares what is mounted.
    let plain = client.prepare("plain", pulled.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&plain, daemon.scratch.join("plain"));
    assert_eq!(owner(&mounted.path("lazy")), (5, 6));
    drop(mounted);
    let again = client.prepare("again", pulled.top(), &labels()).await.unwrap();
    assert_eq!(option(&again[0], "lowerdir"), option(&mounts[0], "lowerdir"));
    let other = mapping("0:300000:65536", "0:200000:65536");
    let other = client.prepare("other", pulled.top(), &other).await.unwrap();
    let mounted = Mounted::new(&other, daemon.scratch.join("other"));
    assert_eq!(owner(&mounted.path("lazy")), (300_005, 200_006));
    drop(mounted);
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 6);

    // What nobody needs goes, with the snapshot that needed it.
    client.remove("mapped").await.unwrap();
    client.remove("other").await.unwrap();
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 3);
    client.remove("again").await.unwrap();
    assert_eq!(mounts_below(&daemon.root("mapped")), [""; 0].map(Into::<std::path::PathBuf>::into));
    assert_eq!(fs::read_dir(daemon.root("mapped")).unwrap().count(), 0);
    client.remove("plain").await.unwrap();
    for name in pulled.names.iter().rev() {
        client.remove(name).await.unwrap();
    }
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 0);
    // Others may mount EROFS beside this test.
    let log = daemon.log();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN") && !line.contains("read-ahead")).collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn views_and_images_of_one_layer_are_mapped_too() {
    let (daemon, mut client) = Daemon::start().await;
    let [converted, ordinary] = ["c", "o"].map(|content| [Entry::file("file", content).owner(5, 6)]);
    for (name, source) in [("converted", Source::Indexed(&converted)), ("ordinary", Source::Ordinary(&ordinary))] {
        let image = Image::new(&[source]);
        let pulled = client.pull(&image, name).await;
        let mounts = client.labelled_view(&format!("view-{name}"), pulled.top(), &labels()).await.unwrap();
        assert_eq!(mounts[0].r#type, "bind");
        let mounted = Mounted::new(&mounts, daemon.scratch.join(name));
        assert_eq!(owner(&mounted.path("file")), (100_005, 200_006), "{name}");
    }
    // With nothing below it, there is but the root, which is the container's.
    let mounts = client.prepare("empty", "", &labels()).await.unwrap();
    assert_eq!(owner(Path::new(&mounts[0].source)), (100_000, 200_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mapped_snapshots_outlive_the_daemon() {
    let (mut daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    let before = client.prepare("mapped", pulled.top(), &labels()).await.unwrap();
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 3);
    let upper = option(&before[0], "upperdir").to_owned();
    check(&Mounted::new(&before, daemon.scratch.join("mnt")), Path::new(&upper));
    daemon.stop();
    // Trees are gone with it; what shows ordinary directories needs no daemon.
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 2);
    let again = |mut client: Client| async move { client.mounts("mapped").await.unwrap() };
    for _ in 0..2 {
        let client = daemon.launch().await;
        assert_eq!(again(client).await, before);
        assert_eq!(mounts_below(&daemon.root("mapped")).len(), 3);
        let mounted = Mounted::new(&before, daemon.scratch.join("mnt"));
        assert_eq!(owner(&mounted.path("etc")), (100_003, 200_004));
        assert_eq!(fs::read(mounted.path("lazy")).unwrap(), noise(1, 300_000));
        drop(mounted);
        daemon.kill();
    }
    let mut client = daemon.launch().await;
    client.names(&[]).await;
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 2, "the dead one is gone");
    // A mount that somebody took away comes back.
    client.mounts("mapped").await.unwrap();
    let lowers = option(&before[0], "lowerdir").split(':').map(ToOwned::to_owned).collect::<Vec<_>>();
    unmount(&lowers[0], UnmountFlags::DETACH).unwrap();
    client.mounts("mapped").await.unwrap();
    assert_eq!(owner(&Path::new(&lowers[0]).join("top")), (100_007, 200_008));
    client.remove("mapped").await.unwrap();
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mappings_that_make_no_sense_are_refused_and_leave_nothing() {
    let (daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    let snapshots = client.names(&[]).await;
    let one = [("containerd.io/snapshot/uidmapping".to_owned(), "0:1:2".to_owned())].into();
    for labels in [one, mapping("0:1:2", ""), mapping("root", "0:1:2"), mapping("1:1:1", "0:1:2")] {
        let refused = client.prepare("bad", pulled.top(), &labels).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert_eq!(code(client.labelled_view("bad", pulled.top(), &labels).await), Code::InvalidArgument);
    }
    assert_eq!(client.names(&[]).await, snapshots);
    assert_eq!(mounts_below(&daemon.root("mapped")).len(), 0);
}
