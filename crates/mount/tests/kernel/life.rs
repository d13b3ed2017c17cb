//! How mounts begin and end, and how a store gets rid of what nobody uses.
use crate::{
    fixture::{Image, Node, Packing, options, resolve},
    tarball::Entry,
    walk::noise,
};
use clipper_device::{DeviceOptions, Priority};
use clipper_mount::{AcceleratedError, Driver, Drivers, MountError, detach_stale};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(20);

fn image() -> Image {
    Image::gzip(&[Entry::dir("."), Entry::file("file", noise(1, 300_000))])
}

fn is_mounted(dir: &Path) -> bool {
    let dir = fs::canonicalize(dir).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == dir.to_str())
}

async fn an_unmount_from_outside_ends_the_session(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
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

async fn a_drop_unmounts_and_open_files_stay_readable(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
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

async fn unmounting_twice_is_once_and_ends_when_the_last_file_is_closed(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
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

async fn what_covers_the_image_is_left_alone(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
    let mounted = node.mount(&image).await;
    mount("tmpfs", mounted.dir(), "tmpfs", MountFlags::empty(), None).unwrap();
    let error = mounted.unmount().unwrap_err();
    assert!(matches!(error, MountError::Covered { .. }), "{error}");
    unmount(mounted.dir(), UnmountFlags::empty()).unwrap();
    mounted.unmount().unwrap();
    timeout(PATIENCE, mounted.ended()).await.unwrap();
}

async fn every_read_is_noted_for_its_mount_alone(driver: Driver) {
    let content = noise(1, 300_000);
    let (image, node) = (image(), Node::new(driver));
    let first = node.mount(&image).await;
    assert!(fs::read(first.dir().join("file")).unwrap() == content);
    let second = node.store.mount(&image.layers, false, &node.dir("second"), &node.options).await.unwrap();
    assert_eq!(second.image().watch().touches().unwrap().ranges, []);
    // The page cache isn't shared either.
    assert!(fs::read(second.dir().join("file")).unwrap() == content);
    for mounted in [&first, &second] {
        let touches = mounted.image().watch().touches().unwrap();
        let read: u64 = touches.ranges.iter().map(|touch| touch.range.end - touch.range.start).sum();
        assert!(touches.ranges.iter().all(|touch| touch.path == b"/file") && !touches.cut_off, "{touches:?}");
        assert_eq!(read, 300_000, "{touches:?}");
    }
}

async fn first_reads_of_what_is_here_put_background_fill_off(driver: Driver) {
    const MIB: u64 = 1 << 20;
    let image = Image::gzip(&[Entry::dir("."), Entry::file("file", noise(1, 6 << 20))]);
    let node = Node::new(driver);
    let mounted = node.mount(&image).await;
    let device = &mounted.image().devices()[0].device;
    device.ensure(0..2 * MIB, Priority::Prefetch).await.unwrap();
    // Nobody has read yet, so it needn't wait.
    timeout(PATIENCE, device.ensure(3 * MIB..4 * MIB, Priority::Background)).await.unwrap().unwrap();
    let began = Instant::now();
    let mut start = [0; 4096];
    File::open(mounted.dir().join("file")).unwrap().read_exact(&mut start).unwrap();
    let filled = timeout(Duration::from_secs(1), device.ensure(5 * MIB..6 * MIB, Priority::Background)).await.is_ok();
    assert!(!filled || began.elapsed() > DeviceOptions::default().background_grace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auto_is_erofs_on_this_kernel_and_what_shows_the_image_is_what_was_asked_for() {
    for (driver, kind) in [(Driver::Auto, "erofs"), (Driver::Erofs, "erofs"), (Driver::Fuse, "fuse.clipper")] {
        let (image, node) = (image(), Node::new(driver));
        let mounted = node.mount(&image).await;
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found: Vec<_> =
            fields.filter(|fields| Path::new(fields[1]) == mounted.dir()).map(|f| f[2].to_owned()).collect();
        assert_eq!(found, [kind]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_erofs_cannot_work_auto_is_fuse_and_erofs_says_why() {
    // No file on a tmpfs can be mounted.
    let node = Node::new(Driver::Auto);
    let tmpfs = node.dir("tmpfs");
    mount("tmpfs", &tmpfs, "tmpfs", MountFlags::empty(), None).unwrap();
    let drivers = Drivers::new(tmpfs.clone(), Handle::current());
    let chosen = (drivers.choose(Driver::Auto).await, drivers.choose(Driver::Fuse).await);
    let refused = drivers.choose(Driver::Erofs).await;
    unmount(&tmpfs, UnmountFlags::DETACH).unwrap();
    assert!(matches!(chosen, (Ok(Driver::Fuse), Ok(Driver::Fuse))), "{chosen:?}");
    let Err(MountError::NoErofs(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.to_string(), "EROFS can't be used here: opening the tree with EROFS");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_connection_ends_the_session_and_is_unmounted() {
    use std::os::unix::fs::MetadataExt as _;
    let (image, node) = (image(), Node::new(Driver::Fuse));
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

async fn what_a_dead_process_left_mounted_is_detached_layer_by_layer(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
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

/// Where the process of [`a_process_to_be_killed`] mounts what, with which driver.
const CHILD: [&str; 3] = ["CLIPPER_TEST_ROOT", "CLIPPER_TEST_IMAGE", "CLIPPER_TEST_DRIVER"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started and killed by another test"]
async fn a_process_to_be_killed() {
    let [root, image, driver] = CHILD.map(|name| std::env::var(name).unwrap());
    let node = Node::at(root.into(), driver.parse().unwrap());
    let found = resolve(&image.parse().unwrap()).await.unwrap();
    let layers: Vec<_> = found.layers.into_iter().map(|layer| layer.reference).collect();
    let _mounted = node.store.mount(&layers, false, &node.dir("mnt"), &node.options).await.unwrap();
    std::future::pending::<()>().await;
}

/// A process that is killed at the end, however the test ends: whoever deletes what it has mounted would wait for it.
struct Doomed(Child);

impl Doomed {
    /// Whether none of its threads answers any more: they stop some time after the signal.
    fn is_stopped(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        threads
            .flatten()
            .all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| stat.contains(") T ")))
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn a_killed_process_leaves_errors_to_readers_and_never_zeros(driver: Driver) {
    let (warm, cold) = (noise(1, 300_000), noise(2, 2_000_000));
    let image = Image::gzip(&[Entry::dir("."), Entry::file("warm", warm.clone()), Entry::file("cold", cold)]);
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let values =
        [root.path().display().to_string(), image.reference("latest_accelerated").to_string(), driver.to_string()];
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "life::a_process_to_be_killed"])
        .envs(CHILD.into_iter().zip(values))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Doomed(child);
    let deadline = Instant::now() + PATIENCE;
    while !is_mounted(&dir) {
        assert!(Instant::now() < deadline && child.0.try_wait().unwrap().is_none(), "nothing is mounted");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(fs::read(dir.join("warm")).unwrap() == warm);
    let file = File::open(dir.join("cold")).unwrap();
    // One reader is waiting when the process dies.
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    while !child.is_stopped() {
        assert!(Instant::now() < deadline, "it doesn't stop");
        sleep(Duration::from_millis(5)).await;
    }
    let waiting = file.try_clone().unwrap();
    let waiting = thread::spawn(move || waiting.read_exact_at(&mut [0; 4096], 1_000_000));
    sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    drop(child);
    assert!(waiting.join().unwrap().is_err());
    for at in (0..2_000_000).step_by(4096) {
        assert!(file.read_exact_at(&mut [0; 1], at).is_err(), "byte {at}");
    }
    // What the kernel had already it may keep.
    assert!(fs::read(dir.join("warm")).is_ok_and(|bytes| bytes == warm) || driver == Driver::Fuse);

    assert!(detach_stale(&dir).unwrap());
    assert!(!is_mounted(&dir));
    let node = Node::at(root.path().to_owned(), driver);
    let mounted = node.mount(&image).await;
    assert!(fs::read(mounted.dir().join("cold")).unwrap() == noise(2, 2_000_000));
}

async fn a_mount_that_fails_leaves_nothing_behind(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
    let file = node.root().join("file");
    fs::write(&file, "").unwrap();
    node.store.mount(&image.layers, false, &file, &node.options).await.err().unwrap();
    // Neither a mount nor a use of the image.
    assert!(!is_mounted(&file));
    let deadline = Instant::now() + PATIENCE;
    while node.store.retain(&[]).await.unwrap() == 0 {
        assert!(Instant::now() < deadline, "something still uses the image");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn a_place_that_cannot_be_mounted_on_is_named(driver: Driver) {
    let (image, node) = (image(), Node::new(driver));
    let options = options(driver);
    let file = node.root().join("file");
    fs::write(&file, "").unwrap();
    for place in [file, node.root().join("missing")] {
        let error = node.store.mount(&image.layers, false, &place, &options).await.err().unwrap();
        assert!(matches!(&error, MountError::Kernel { dir, .. } if *dir == place), "{error}");
        assert!(error.to_string().contains(place.to_str().unwrap()), "{error}");
    }
}

async fn images_that_share_a_layer_share_its_device_and_the_last_to_go_frees_it(driver: Driver) {
    let base = [Entry::dir("."), Entry::file("base", noise(1, 400_000))];
    let (one, two) = ([Entry::file("one", noise(2, 200_000))], [Entry::file("two", noise(3, 200_000))]);
    let first = Image::new(&[(&base, Packing::Gzip), (&one, Packing::Gzip)]);
    let second = Image::new(&[(&base, Packing::Gzip), (&two, Packing::Gzip)]);
    let node = Node::new(driver);
    assert_eq!(node.store.usage(&first.layers[0]).await.unwrap(), 0);
    let options = options(driver);
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
        assert_eq!(fs::read_dir(node.root().join("store").join(dir)).unwrap().count(), 0, "{dir}");
    }
    // And it all works again from nothing.
    let b = node.mount(&second).await;
    assert!(fs::read(b.dir().join("two")).unwrap() == noise(3, 200_000));
}

async fn a_reference_leads_to_the_layers_and_an_ordinary_image_says_what_to_do(driver: Driver) {
    let image = image();
    let found = resolve(&image.reference("latest_accelerated")).await.unwrap();
    assert_eq!(found.platform.to_string(), "linux/amd64");
    assert_eq!(found.layers.len(), 1);
    assert_eq!(found.layers[0].digest, image.layers[0].layer);
    assert_eq!(found.index.digest, image.layers[0].index);
    assert!(found.checkpoints.is_some());
    let node = Node::new(driver);
    let layers: Vec<_> = found.layers.into_iter().map(|layer| layer.reference).collect();
    let mounted = node.store.mount(&layers, false, &node.dir("mnt"), &options(driver)).await.unwrap();
    assert!(fs::read(mounted.dir().join("file")).unwrap() == noise(1, 300_000));

    let error = resolve(&image.reference("plain")).await.unwrap_err();
    assert!(matches!(error, AcceleratedError::NotAccelerated { .. }), "{error}");
    assert!(error.to_string().contains("clipper convert oci:"), "{error}");
}

over_both_drivers! {
    an_unmount_from_outside_ends_the_session,
    a_drop_unmounts_and_open_files_stay_readable,
    unmounting_twice_is_once_and_ends_when_the_last_file_is_closed,
    what_covers_the_image_is_left_alone,
    what_a_dead_process_left_mounted_is_detached_layer_by_layer,
    a_killed_process_leaves_errors_to_readers_and_never_zeros,
    a_mount_that_fails_leaves_nothing_behind,
    a_place_that_cannot_be_mounted_on_is_named,
    every_read_is_noted_for_its_mount_alone,
    first_reads_of_what_is_here_put_background_fill_off,
    images_that_share_a_layer_share_its_device_and_the_last_to_go_frees_it,
    a_reference_leads_to_the_layers_and_an_ordinary_image_says_what_to_do,
}
