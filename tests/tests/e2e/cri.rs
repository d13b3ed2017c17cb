//! What a kubelet does, with Clipper as the CRI's snapshotter.

use clipper_tests::cri::Cri;

use crate::run::Node;
use crate::world::world;

#[test]
fn a_pod_from_an_accelerated_image() {
    let node = Node::new();
    let image = node.proxy.by_way(&world().small.accelerated);
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    cri.pull(&image).unwrap();
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the CRI's pull fetched of {layer}");
    }
    let pod = cri.run_sandbox("pod").unwrap();
    let container = cri.start_container(&pod, "app", &image, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&container, &["python3", "/srv/app/hello.py"]).unwrap();
    assert_eq!((said.exit_code, said.stdout.as_slice()), (0, &b"hello from the small image\n"[..]));
    let said = cri.exec(&container, &["cat", "/no/such/file"]).unwrap();
    assert_eq!(said.exit_code, 1);
    cri.remove_container(&container).unwrap();
    cri.remove_sandbox(pod).unwrap();
    cri.remove_image(&image).unwrap();
}

#[test]
fn pods_of_ordinary_and_accelerated_containers() {
    let node = Node::new();
    let (lazy, ordinary) = (node.proxy.by_way(&world().small.accelerated), node.proxy.by_way(&world().busybox.base));
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    cri.pull(&lazy).unwrap();
    cri.pull(&ordinary).unwrap();
    let pod = cri.run_sandbox("pod").unwrap();
    let first = cri.start_container(&pod, "first", &lazy, &["sleep", "1000"]).unwrap();
    let second = cri.start_container(&pod, "second", &ordinary, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&first, &["cat", "/srv/app/turns"]).unwrap();
    assert_eq!(said.stdout, b"now a file\n");
    let said = cri.exec(&second, &["cat", "/etc/group"]).unwrap();
    assert_eq!(said.stdout, b"root:x:0:\n");
    cri.remove_container(&first).unwrap();
    cri.remove_container(&second).unwrap();
    cri.remove_sandbox(pod).unwrap();
}
