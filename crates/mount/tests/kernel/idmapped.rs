//! Images and ordinary directories shown with the owners that a user namespace has.
use crate::{
    fixture::{Image, Node},
    overlay::Overlay,
    tarball::{Entry, Kind},
    walk::{noise, view},
};
use clipper_mount::{Driver, IdMap, NoIdMap, detach_stale, mount_idmapped, shows};
use rustix::mount::{UnmountFlags, unmount};
use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    time::Duration,
};
use tokio::time::timeout;

/// Whoever isn't mapped (`kernel.overflowuid`).
const NOBODY: u32 = 65534;

fn map() -> IdMap {
    IdMap::parse("0:100000:1000,1000:7:1", "0:200000:65536").unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let status = fs::symlink_metadata(path).unwrap();
    (status.uid(), status.gid())
}

async fn an_image_is_shown_with_mapped_owners_and_an_overlay_lies_on_it(driver: Driver) {
    let content = noise(1, 500_000);
    let entries = [
        Entry::dir("."),
        Entry::file("root", content.clone()).mode(0o4755),
        Entry::file("user", "u").owner(999, 5).xattr("user.x", b"kept"),
        Entry::file("second-range", "s").owner(1000, 65535),
        Entry::file("unmapped", "x").owner(70_000, 65_536),
        Entry::symlink("link", "root").owner(5, 6),
        Entry::new(b"null", Kind::CharDevice(1, 3)).owner(0, 1),
    ];
    let (image, node) = (Image::gzip(&entries), Node::new(driver));
    let mounted = node.mount(&image).await;
    let mapped = node.dir("mapped/image");
    assert!(!shows(&mapped, mounted.dir()));
    mount_idmapped(mounted.dir(), &mapped, &map()).unwrap();
    assert!(shows(&mapped, mounted.dir()));
    let expected = [
        ("", (100_000, 200_000)),
        ("root", (100_000, 200_000)),
        ("user", (100_999, 200_005)),
        ("second-range", (7, 265_535)),
        ("unmapped", (NOBODY, NOBODY)),
        ("link", (100_005, 200_006)),
        ("null", (100_000, 200_001)),
    ];
    for (name, ids) in expected {
        assert_eq!(owner(&mapped.join(name)), ids, "{name}");
    }
    assert_eq!(owner(&mounted.dir().join("user")), (999, 5), "the image itself stays as it is");
    // All else is the image's.
    assert!(view(&mapped)[&b"root"[..]].kind == Kind::File(content.clone()));
    assert_eq!(xattr::get(mapped.join("user"), "user.x").unwrap().unwrap(), b"kept");
    assert_eq!(File::create(mapped.join("new")).unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let overlay = Overlay::new(&node, &[&mapped]);
    fs::OpenOptions::new().append(true).open(overlay.path("user")).unwrap();
    assert_eq!(owner(&node.dir("upper").join("user")), (100_999, 200_005), "what is copied up");
    assert_eq!(owner(&overlay.path("root")), (100_000, 200_000));
    drop(overlay);

    // The image lives for as long as it is shown anywhere.
    mounted.unmount().unwrap();
    assert!(!shows(&mapped, mounted.dir()) && mounted.is_live());
    assert!(fs::read(mapped.join("root")).unwrap() == content);
    assert!(detach_stale(&mapped).unwrap());
    timeout(Duration::from_secs(20), mounted.ended()).await.unwrap();
}

over_both_drivers! {
    an_image_is_shown_with_mapped_owners_and_an_overlay_lies_on_it,
}

#[tokio::test]
async fn directories_can_be_mapped_and_what_cannot_is_told_with_its_kernel() {
    let node = Node::new(Driver::Fuse);
    let (ordinary, mapped) = (node.dir("ordinary"), node.dir("mapped/ordinary"));
    fs::write(ordinary.join("file"), "f").unwrap();
    chown(ordinary.join("file"), Some(3), Some(4)).unwrap();
    mount_idmapped(&ordinary, &mapped, &map()).unwrap();
    assert!(shows(&mapped, &ordinary));
    assert_eq!(owner(&mapped.join("file")), (100_003, 200_004));
    assert!(!shows(&mapped, &node.dir("other")) && !shows(&node.root().join("missing"), &ordinary));
    unmount(&mapped, UnmountFlags::empty()).unwrap();
    assert!(!shows(&mapped, &ordinary));

    // Overlayfs itself has no mapped mounts.
    let overlay = Overlay::new(&node, &[&ordinary]);
    let error = mount_idmapped(&overlay.path(""), &mapped, &map()).unwrap_err();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let told = error.to_string();
    assert!(matches!(error, NoIdMap::Refused { .. }) && told.contains("overlayfs"), "{told}");
    assert!(told.contains(kernel.trim()) && told.contains("mapping IDs"), "{told}");
    assert!(!shows(&mapped, &overlay.path("")));
}

#[tokio::test]
async fn no_process_is_left_over() {
    let node = Node::new(Driver::Fuse);
    let (ordinary, mapped) = (node.dir("ordinary"), node.dir("mapped/ordinary"));
    for _ in 0..20 {
        mount_idmapped(&ordinary, &mapped, &map()).unwrap();
        detach_stale(&mapped).unwrap();
    }
    let thread = rustix::thread::gettid().as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/self/task/{thread}/children")).unwrap();
    assert_eq!(children, "");
}
