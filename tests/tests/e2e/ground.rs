//! The ground the other tests stand on: images of ours in a real registry run under containerd's own overlayfs.

use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::cri::Cri;
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

#[test]
fn the_cri_runs_pods_with_overlayfs() {
    let registry = Registry::start().unwrap();
    let (small, pause) = (registry.push_cached("small").unwrap(), registry.push_cached("busybox").unwrap());
    let containerd = Containerd::start(Settings { sandbox_image: pause, ..Settings::overlayfs() }).unwrap();
    let cri = Cri::connect(containerd.socket()).unwrap();
    cri.pull(&small).unwrap();
    let pod = cri.run_sandbox("pod").unwrap();
    let container = cri.start_container(&pod, "app", &small, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&container, &["cat", "/srv/app/old/other"]).unwrap();
    assert_eq!((said.exit_code, said.stdout.as_slice()), (0, &b"new\n"[..]));
    cri.remove_container(&container).unwrap();
    cri.remove_sandbox(pod).unwrap();
    cri.remove_image(&small).unwrap();
}
