//! What others can reach of the snapshotter, and what images can reach of the node.
use crate::{
    daemon::{Daemon, Labels, Mounted},
    image::{Image, Source},
};
use clipper_tests::tarball::{Entry, Kind};
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sockets_and_folders_are_for_root_alone() {
    let (daemon, mut client) = Daemon::start().await;
    let layer = [Entry::file("file", "f")];
    let image = Image::new(&[Source::Indexed(&layer)]);
    let pulled = client.pull(&image, "default").await;
    client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
    assert!(fs::symlink_metadata(daemon.socket()).unwrap().file_type().is_socket());
    assert_eq!(mode(&daemon.socket()), 0o600);
    assert_eq!(mode(daemon.socket().parent().unwrap()), 0o700);
    assert_eq!(mode(&daemon.root("")), 0o700);
    let mut folders = 0;
    for entry in fs::read_dir(daemon.root("")).unwrap().map(|entry| entry.unwrap()) {
        let secret = entry.file_name().to_string_lossy().starts_with("credentials");
        if entry.file_type().unwrap().is_dir() {
            folders += 1;
            assert_eq!(mode(&entry.path()) & 0o022, 0, "{entry:?}");
        } else if secret {
            assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        }
    }
    assert!(folders >= 6, "{folders}");
    for name in ["snapshots", "mounts", "mapped", "unpacking"] {
        assert_eq!(mode(&daemon.root(name)), 0o700, "{name}");
    }
}

/// Names that try to leave, and links that lead out of the image to `out`.
fn leaving(out: &Path) -> Vec<Entry> {
    let out = out.to_str().unwrap();
    vec![
        Entry::symlink("absolute", out),
        Entry::file("absolute/by-absolute", "1"),
        Entry::symlink("up", format!("../../../../../../../../../..{out}")),
        Entry::file("up/by-relative", "2"),
        Entry::file(format!("../../../../../../../../../..{out}/by-dots"), "3"),
        Entry::file(format!("{out}/by-root"), "4"),
        Entry::symlink("chain", "absolute"),
        Entry::dir("chain/made"),
        Entry::symlink("file-link", format!("{out}/secret")),
        Entry::file("file-link", "5").mode(0o4777),
        Entry::new("device", Kind::CharDevice(1, 3)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_path_of_an_image_leaves_its_mount() {
    for converted in [false, true] {
        let (daemon, mut client) = Daemon::start().await;
        let out = daemon.scratch.join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("secret"), "of the node").unwrap();
        let (entries, top) = (leaving(&out), [Entry::file("top", "t")]);
        // Unpacked by the snapshotter below a converted layer, or converted itself.
        let lower = if converted { Source::Indexed(&entries) } else { Source::Ordinary(&entries) };
        let image = Image::new(&[lower, Source::Indexed(&top)]).with_manifest("gzip");
        let pulled = client.pull(&image, "default").await;
        assert_eq!(pulled.unpacked, [false, false], "{}", daemon.log());
        let mounts = client.prepare("container", pulled.top(), &Labels::new()).await.unwrap();
        let mounted = Mounted::new(&mounts, daemon.scratch.join("mnt"));
        let inside = out.strip_prefix("/").unwrap().to_str().unwrap();
        assert_eq!(mounted.names(inside), ["by-absolute", "by-dots", "by-relative", "by-root", "made"]);
        assert_eq!(fs::read(mounted.path("file-link")).unwrap(), b"5");
        assert!(fs::symlink_metadata(mounted.path("device")).unwrap().file_type().is_char_device());
        // Nothing came out.
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
        let secret = fs::symlink_metadata(out.join("secret")).unwrap();
        assert_eq!((fs::read(out.join("secret")).unwrap(), secret.nlink()), (b"of the node".to_vec(), 1));
        assert_eq!(secret.mode() & 0o7777, 0o644);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn hard_links_to_files_of_the_node_are_none() {
    let (daemon, mut client) = Daemon::start().await;
    let out = daemon.scratch.join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("secret"), "of the node").unwrap();
    let secret = out.join("secret").to_str().unwrap().to_owned();
    let top = [Entry::file("top", "t")];
    for target in [secret.clone(), format!("../../../../../../../..{secret}"), "absolute/secret".into()] {
        let entries = [Entry::symlink("absolute", out.to_str().unwrap()), Entry::hardlink("link", target.clone())];
        let image = Image::new(&[Source::Ordinary(&entries), Source::Indexed(&top)]).with_manifest("gzip");
        let layer = &image.layers[0];
        // It's containerd's, which refuses it in its turn.
        client.prepare(&target, "", &layer.labels).await.unwrap();
        assert!(daemon.log().contains(&layer.digest.to_string()), "{}", daemon.log());
        assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1, "{target}");
        assert_eq!(fs::read_dir(daemon.root("unpacking")).unwrap().count(), 0);
    }
}
