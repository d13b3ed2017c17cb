//! The ground the other tests stand on: images of ours in a real registry run under containerd's own overlayfs.

use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::registry::Registry;
use clipper_tests::walk;

#[test]
fn containerd_runs_our_images_with_overlayfs() {
    let registry = Registry::start().unwrap();
    let small = registry.push_cached("small").unwrap();
    let containerd = Containerd::start(Settings::overlayfs()).unwrap();
    containerd.pull("overlayfs", &small).unwrap();
    let said = containerd.run("overlayfs", &small, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
    let view = containerd.view("overlayfs", &small).unwrap();
    let tree = walk::read(view.path()).unwrap();
    assert!(tree.len() > 10_000, "{}", tree.len());
    assert!(!tree.contains_key(std::path::Path::new("srv/app/data/numbers")), "whiteouts work");
    assert!(tree[std::path::Path::new("srv/app/bin/capable")].xattrs.contains_key(&b"security.capability"[..]));
    walk::assert_same(&tree, &tree.clone());
}
