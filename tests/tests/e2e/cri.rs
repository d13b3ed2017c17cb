//! What a kubelet does, with Clipper as the CRI's snapshotter.

use clipper_tests::cri::Cri;
use clipper_tests::scratch::Scratch;

use crate::run::{Node, converted_above_ordinary};
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
fn a_pod_from_an_image_with_converted_layers_above_ordinary_ones() {
    let (image, layers) = converted_above_ordinary("above/cri");
    let node = Node::new();
    let image = node.proxy.by_way(&image);
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    cri.pull(&image).unwrap();
    let (ordinary, converted) = layers.split_at(3);
    for layer in converted {
        assert_eq!(node.proxy.bytes_of(layer), 0, "the CRI's pull fetched of {layer}: {}", node.snapshotter.log());
    }
    for layer in ordinary {
        let size = std::fs::metadata(world().registry.blob_file(layer)).unwrap().len();
        assert_eq!(node.proxy.bytes_of(layer), size, "{layer} once: {}", node.snapshotter.log());
    }
    let pod = cri.run_sandbox("pod").unwrap();
    let container = cri.start_container(&pod, "app", &image, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&container, &["python3", "/srv/app/hello.py"]).unwrap();
    assert_eq!((said.exit_code, said.stdout.as_slice()), (0, &b"hello from the small image\n"[..]));
    cri.remove_container(&container).unwrap();
    cri.remove_sandbox(pod).unwrap();
}

#[test]
fn an_ordinary_image_costs_its_registry_nothing_more() {
    let mut node = Node::new();
    node.snapshotter.configure(&format!("containerd_address = {:?}\n", node.containerd.socket())).unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&world().small.base);
    Cri::connect(node.containerd.socket()).unwrap().pull(&image).unwrap();
    let read = |access: &clipper_tests::proxy::Access| access.method == "GET" && access.path.contains("/manifests/");
    let manifests = node.proxy.log().into_iter().filter(read).count();
    assert_eq!(manifests, 1, "containerd's own: {:?}", node.proxy.log());
}

/// A node whose CRI doesn't tell which image a layer is of, and a snapshotter that asks containerd, configured with
/// `more`.
fn silent_node(more: &str) -> Node {
    let mut node = Node::with(|settings| settings.cri_annotations = false);
    let config = format!("containerd_address = {:?}\n{more}", node.containerd.socket());
    node.snapshotter.configure(&config).unwrap();
    // Which waits a while before it calls a socket again that nobody answered at.
    node.containerd.restart().unwrap();
    node
}

/// Pulls the small image, which must need none of its layers, and starts it.
fn pulls_lazily(node: &Node, cri: &Cri) {
    let image = node.proxy.by_way(&world().small.accelerated);
    cri.pull(&image).unwrap();
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the CRI's pull fetched of {layer}: {}", node.snapshotter.log());
    }
    let pod = cri.run_sandbox("pod").unwrap();
    let container = cri.start_container(&pod, "app", &image, &["sleep", "1000"]).unwrap();
    let said = cri.exec(&container, &["cat", "/srv/app/turns"]).unwrap();
    assert_eq!(said.stdout, b"now a file\n");
    cri.remove_container(&container).unwrap();
    cri.remove_sandbox(pod).unwrap();
}

#[test]
fn without_annotations_the_port_is_that_of_a_configured_host() {
    let hosts = Scratch::new("hosts").unwrap();
    let node = silent_node(&format!("[registry]\nhosts_dir = {:?}\n", hosts.path()));
    hosts.subdir(node.proxy.host()).unwrap();
    pulls_lazily(&node, &Cri::connect(node.containerd.socket()).unwrap());
}

#[test]
fn without_annotations_the_port_is_that_of_an_image_at_the_same_host() {
    let node = silent_node("");
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    cri.pull(&node.proxy.by_way(&world().busybox.base)).unwrap();
    pulls_lazily(&node, &cri);
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
