//! What only containerd 2.x does: `ctr images pull` that downloads nothing, and pods with users of their own.

use clipper_tests::clipper::disk_usage;
use clipper_tests::containerd::other_release;
use clipper_tests::cri::Cri;

use crate::run::{Node, converted_above_ordinary};
use crate::userns::open_the_way;
use crate::world::world;

fn node() -> Node {
    let node = Node::with(|settings| {
        settings.programs = Some(other_release("forky").unwrap());
        settings.pod_network = true;
    });
    let version = node.containerd.ctr(&["version"]).unwrap();
    assert!(version.contains("Version:  2."), "{version}");
    node
}

#[test]
fn ctr_pulls_nothing_of_an_accelerated_image() {
    let node = node();
    let image = node.proxy.by_way(&world().small.accelerated);
    node.containerd.pull("clipper", &image).unwrap();
    for layer in world().small.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "of {layer}: {}", node.snapshotter.log());
    }
    let said = node.containerd.run("clipper", &image, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
    node.containerd.remove_image(&image).unwrap();
    assert_eq!(node.containerd.snapshots("clipper").unwrap(), [""; 0]);
}

#[test]
fn pods_with_users_of_their_own_own_their_image() {
    let node = node();
    open_the_way(&node);
    let cri = Cri::connect(node.containerd.socket()).unwrap();
    // What every pod needs is there already.
    cri.pull(&node.proxy.by_way(&world().busybox.base)).unwrap();
    let (mixed, _) = converted_above_ordinary("containerd2/mixed");
    for (name, image) in [("lazy", &world().small.accelerated), ("ordinary", &world().small.base), ("mixed", &mixed)] {
        let image = node.proxy.by_way(image);
        cri.pull(&image).unwrap();
        let before = disk_usage(&node.snapshotter.root().join("snapshots"));
        let pod = cri.run_sandbox_with_users(name, 100_000, 200_000).unwrap();
        let container = cri.start_container(&pod, "app", &image, &["sleep", "1000"]).unwrap();
        let look =
            "cat /proc/self/uid_map; stat -c %u:%g / /etc/passwd; echo x >>/etc/passwd; touch /new; stat -c %u:%g /new";
        let said = cri.exec(&container, &["sh", "-c", look]).unwrap();
        let words = String::from_utf8_lossy(&said.stdout).into_owned();
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "65536", "0:0", "0:0", "0:0"], "{name}: {said:?}");
        let grown = disk_usage(&node.snapshotter.root().join("snapshots")).saturating_sub(before);
        assert!(grown < 1 << 20, "{name}: nothing is copied: {grown}");
        cri.remove_container(&container).unwrap();
        cri.remove_sandbox(pod).unwrap();
        node.wait_until_nothing_is_mapped();
    }
}
