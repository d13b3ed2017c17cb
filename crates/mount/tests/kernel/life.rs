//! How mounts begin and end, and how a store gets rid of what nobody uses.
use crate::{
    fixture::{Image, Node, Packing, resolve},
    tarball::Entry,
    walk::noise,
};
use clipper_mount::{AcceleratedError, MountError, MountOptions, detach_stale};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    fs::{self, File},
    io::Read as _,
    path::Path,
    time::Duration,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn image() -> Image {
    Image::gzip(&[Entry::dir("."), Entry::file("file", noise(1, 300_000))])
}

fn is_mounted(dir: &Path) -> bool {
    let dir = fs::canonicalize(dir).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmount_from_outside_ends_the_session() {
    let (image, node) = (image(), Node::new());
    let mounted = node.mount(&image).await;
    assert!(mounted.is_live());
    unmount(mounted.dir(), UnmountFlags::empty()).unwrap();
    timeout(PATIENCE, mounted.ended()).await.unwrap();
    assert!(!mounted.is_live());
    // Its end doesn't touch what comes after it on the same directory.
    let again = node.mount(&image).await;
    drop(mounted);
    assert!(is_mounted(again.dir()));
    assert_eq!(fs::read(again.dir().join("file")).unwrap().len(), 300_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drop_unmounts_and_open_files_stay_readable() {
    let (image, node) = (image(), Node::new());
    let mounted = node.mount(&image).await;
    let dir = mounted.dir().to_owned();
    let mut open = File::open(dir.join("file")).unwrap();
    let life = mounted.image().clone();
    drop(mounted);
    assert!(!is_mounted(&dir));
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    assert!(content == noise(1, 300_000));
    drop((open, life));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmounting_twice_is_once_and_ends_when_the_last_file_is_closed() {
    let (image, node) = (image(), Node::new());
    let mounted = node.mount(&image).await;
    let open = File::open(mounted.dir().join("file")).unwrap();
    mounted.unmount().unwrap();
    mounted.unmount().unwrap();
    assert!(!is_mounted(&node.dir("mnt")));
    assert!(mounted.is_live());
    drop(open);
    timeout(PATIENCE, mounted.ended()).await.unwrap();
    mounted.unmount().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_covers_the_image_is_left_alone() {
    let (image, node) = (image(), Node::new());
    let mounted = node.mount(&image).await;
    mount("tmpfs", mounted.dir(), "tmpfs", MountFlags::empty(), None).unwrap();
    let error = mounted.unmount().unwrap_err();
    assert!(matches!(error, MountError::Covered { .. }), "{error}");
    unmount(mounted.dir(), UnmountFlags::empty()).unwrap();
    mounted.unmount().unwrap();
    timeout(PATIENCE, mounted.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_connection_ends_the_session_and_is_unmounted() {
    use std::os::unix::fs::MetadataExt as _;
    let (image, node) = (image(), Node::new());
    let mounted = node.mount(&image).await;
    let device = rustix::fs::minor(fs::metadata(mounted.dir()).unwrap().dev());
    let control = node.dir("control");
    mount("none", &control, "fusectl", MountFlags::empty(), None).unwrap();
    let aborted = fs::write(control.join(format!("{device}/abort")), "1");
    unmount(&control, UnmountFlags::empty()).unwrap();
    aborted.unwrap();
    timeout(PATIENCE, mounted.ended()).await.unwrap();
    assert!(fs::read(mounted.dir().join("file")).is_err());
    let dir = mounted.dir().to_owned();
    drop(mounted);
    assert!(!is_mounted(&dir));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_process_left_mounted_is_detached_layer_by_layer() {
    let (image, node) = (image(), Node::new());
    let dir = node.dir("mnt");
    assert!(!detach_stale(&dir).unwrap());
    assert!(!detach_stale(&dir.join("missing")).unwrap());
    let first = node.mount(&image).await;
    let second = node.mount(&image).await;
    assert!(detach_stale(&dir).unwrap());
    assert!(!is_mounted(&dir));
    for mounted in [first, second] {
        timeout(PATIENCE, mounted.ended()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_cannot_be_mounted_on_is_named() {
    let (image, node) = (image(), Node::new());
    let options = MountOptions::default();
    let file = node.root.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [file, node.root.path().join("missing")] {
        let error = node.store.mount(&image.layers, false, &place, &options).await.err().unwrap();
        assert!(matches!(&error, MountError::Kernel { dir, .. } if *dir == place), "{error}");
        assert!(error.to_string().contains(place.to_str().unwrap()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_share_a_layer_share_its_device_and_the_last_to_go_frees_it() {
    let base = [Entry::dir("."), Entry::file("base", noise(1, 400_000))];
    let (one, two) = ([Entry::file("one", noise(2, 200_000))], [Entry::file("two", noise(3, 200_000))]);
    let first = Image::new(&[(&base, Packing::Gzip), (&one, Packing::Gzip)]);
    let second = Image::new(&[(&base, Packing::Gzip), (&two, Packing::Gzip)]);
    let node = Node::new();
    assert_eq!(node.store.usage(&first.layers[0]).await.unwrap(), 0);
    let options = MountOptions::default();
    let a = node.store.mount(&first.layers, false, &node.dir("a"), &options).await.unwrap();
    let b = node.store.mount(&second.layers, false, &node.dir("b"), &options).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&a.image().devices()[0].device, &b.image().devices()[0].device));
    assert!(fs::read(a.dir().join("base")).unwrap() == noise(1, 400_000));
    let cached = node.store.usage(&second.layers[0]).await.unwrap();
    assert!(cached >= 400_000, "{cached}");
    assert_eq!(node.store.usage(&second.layers[1]).await.unwrap(), 0);
    assert!(fs::read(b.dir().join("two")).unwrap() == noise(3, 200_000));

    // Mounted images keep what they need, whatever the caller says is in use.
    assert_eq!(node.store.retain(&[]).await.unwrap(), 0);
    a.unmount().unwrap();
    timeout(PATIENCE, a.ended()).await.unwrap();
    drop(a);
    b.unmount().unwrap();
    timeout(PATIENCE, b.ended()).await.unwrap();
    drop(b);
    let freed = node.store.retain(&second.layers).await.unwrap();
    assert!(freed > 0);
    assert!(node.store.usage(&second.layers[0]).await.unwrap() >= cached);
    let freed = node.store.retain(&[]).await.unwrap();
    assert!(freed >= cached, "{freed}");
    assert_eq!(node.store.usage(&second.layers[0]).await.unwrap(), 0);
    for dir in ["indexes", "trees"] {
        assert_eq!(fs::read_dir(node.root.path().join("store").join(dir)).unwrap().count(), 0, "{dir}");
    }
    // And it all works again from nothing.
    let b = node.mount(&second).await;
    assert!(fs::read(b.dir().join("two")).unwrap() == noise(3, 200_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_leads_to_the_layers_and_an_ordinary_image_says_what_to_do() {
    let image = image();
    let found = resolve(&image.reference("latest_accelerated")).await.unwrap();
    assert_eq!(found.platform.to_string(), "linux/amd64");
    assert_eq!(found.layers.len(), 1);
    assert_eq!(found.layers[0].digest, image.layers[0].layer);
    assert_eq!(found.index.digest, image.layers[0].index);
    assert!(found.checkpoints.is_some());
    let node = Node::new();
    let layers: Vec<_> = found.layers.into_iter().map(|layer| layer.reference).collect();
    let mounted = node.store.mount(&layers, false, &node.dir("mnt"), &MountOptions::default()).await.unwrap();
    assert!(fs::read(mounted.dir().join("file")).unwrap() == noise(1, 300_000));

    let error = resolve(&image.reference("plain")).await.unwrap_err();
    assert!(matches!(error, AcceleratedError::NotAccelerated { .. }), "{error}");
    assert!(error.to_string().contains("clipper convert oci:"), "{error}");
}
