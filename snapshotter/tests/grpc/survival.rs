//! What remote layers are after the daemon, its mounts or the network went away.
use crate::{
    daemon::{Daemon, Labels, Mounted},
    image::{Image, Source, noise},
};
use clipper_tests::{scratch::mounts_below, tarball::Entry};
use rustix::mount::{UnmountFlags, unmount};
use std::fs;

fn image() -> Image {
    let lower = [Entry::file("lower", noise(1, 300_000))];
    let upper = [Entry::file("upper", noise(2, 300_000))];
    Image::new(&[Source::Indexed(&lower), Source::Indexed(&upper)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mounts_come_back_after_a_crash_and_without_the_network() {
    let (mut daemon, mut client) = Daemon::start().await;
    let image = image();
    let pulled = client.pull(&image, "default").await;
    let before = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    let mounted = Mounted::new(&before, daemon.scratch.join("mnt"));
    assert_eq!(fs::read(mounted.path("lower")).unwrap(), noise(1, 300_000));
    fs::write(mounted.path("written"), "by the container").unwrap();
    drop(mounted);
    // Once so that what was read is recorded for good, and once with no time for anything.
    daemon.stop();
    let mut client = daemon.launch().await;
    assert_eq!(client.mounts("container").await.unwrap(), before);
    daemon.kill();
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 1, "the dead mount");
    image.unplug();

    let mut client = daemon.launch().await;
    // Once it answers, it has tidied up: it listens from the first moment.
    assert_eq!(client.names(&[]).await.len(), 3);
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 0, "mounts are made when they are needed");
    let after = client.mounts("container").await.unwrap();
    assert_eq!(after, before);
    let mounted = Mounted::new(&after, daemon.scratch.join("mnt"));
    assert_eq!(mounted.names(""), ["lower", "upper", "written"]);
    assert_eq!(fs::read(mounted.path("lower")).unwrap(), noise(1, 300_000));
    // What nobody ever read can't be had now: an error, not zeros.
    assert!(fs::read(mounted.path("upper")).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_mount_that_somebody_took_away_is_made_again() {
    let (daemon, mut client) = Daemon::start().await;
    let pulled = client.pull(&image(), "default").await;
    let mounts = client.view("view", pulled.top()).await.unwrap();
    unmount(&mounts[0].source, UnmountFlags::DETACH).unwrap();
    assert_eq!(fs::read_dir(&mounts[0].source).unwrap().count(), 0);
    assert_eq!(client.mounts("view").await.unwrap(), mounts);
    let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
    assert_eq!(mounted.names(""), ["lower", "upper"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stopped_daemon_leaves_no_mounts() {
    let (mut daemon, mut client) = Daemon::start().await;
    let pulled = client.pull(&image(), "default").await;
    client.view("view", pulled.top()).await.unwrap();
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 1);
    daemon.stop();
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn containers_started_at_the_same_time_share_one_mount() {
    let (daemon, mut client) = Daemon::start().await;
    let pulled = client.pull(&image(), "default").await;
    let starts = (0..8).map(|number| {
        let (mut client, top) = (client.clone(), pulled.top().to_owned());
        tokio::spawn(async move { client.prepare(&format!("c{number}"), &top, &Labels::new()).await.unwrap() })
    });
    let mut lowers = std::collections::BTreeSet::new();
    for start in starts.collect::<Vec<_>>() {
        lowers.insert(crate::daemon::option(&start.await.unwrap()[0], "lowerdir").to_owned());
    }
    assert_eq!(lowers.len(), 1);
    assert_eq!(mounts_below(&daemon.root("mounts")).len(), 1);
}
