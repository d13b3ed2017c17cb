//! The network down: what is cached is served, what is not is an error in time, and nothing waits for it to start.

use std::time::Duration;

use clipper_tests::clipper::Snapshotter;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::proxy::{Fault, Proxy};

use crate::run::Node;
use crate::world::world;

#[test]
fn restarts_without_the_network() {
    let mut node = Node::new();
    node.snapshotter.configure("[fetch]\nwait_seconds = 3\n").unwrap();
    // Which waits a while before it calls a socket again that nobody answered at.
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(&world().small.accelerated);
    // Or else the background fill would fetch what nobody has read.
    let last = world().small.layers().pop().unwrap();
    node.proxy.rule(&last, Fault::Stall(0), None);
    node.pull(&image);
    assert_eq!(node.containerd.run("clipper", &image, "before", &[]).unwrap(), "hello from the small image\n");
    node.proxy.down(true);
    node.snapshotter.stop().unwrap();
    node.snapshotter.launch().unwrap();
    node.containerd.restart().unwrap();
    assert!(!node.containerd.snapshots("clipper").unwrap().is_empty(), "the snapshots are listed");
    assert_eq!(node.containerd.run("clipper", &image, "cached", &[]).unwrap(), "hello from the small image\n");
    let run = node.containerd.run("clipper", &image, "missing", &["cat", "/srv/app/data/countdown"]);
    assert!(run.is_err(), "what nobody has read yet is an error, not zeros: {run:?}");
    node.proxy.behave();
    node.proxy.down(false);
    let said = node.containerd.run("clipper", &image, "back", &["head", "-c", "7", "/srv/app/data/countdown"]).unwrap();
    assert_eq!(said, "400000\n");
}

#[test]
fn starts_with_nothing_there() {
    // A registry that is not there must not keep a node from working with what needs no registry.
    let proxy = Proxy::start(world().registry.address(), Duration::ZERO).unwrap();
    proxy.down(true);
    let snapshotter = Snapshotter::start().unwrap();
    let containerd = Containerd::start(Settings::clipper(snapshotter.socket()).unwrap()).unwrap();
    assert!(containerd.snapshots("clipper").unwrap().is_empty());
}
