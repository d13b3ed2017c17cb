//! The network fails under a mounted image: readers wait and then get the right bytes, or an error when their time is over.

use std::thread;
use std::time::Duration;

use clipper_tests::clipper::{LazyMount, Snapshotter, driver};
use clipper_tests::proxy::{Fault, Proxy};
use clipper_tests::scratch::Scratch;

use crate::integrity::Victim;

fn proxy(victim: &Victim) -> Proxy {
    Proxy::start(victim.registry.address(), Duration::ZERO).unwrap()
}

/// Reads everything by way of `proxy`, on which `outage` happens once the image is mounted.
fn survives(victim: &Victim, proxy: &Proxy, outage: impl FnOnce() + Send) {
    let mount = LazyMount::start(&proxy.by_way(&victim.accelerated)).unwrap();
    let failed = thread::scope(|scope| {
        let outage = scope.spawn(outage);
        let failed = victim.failed(&mount);
        outage.join().unwrap();
        failed
    });
    assert_eq!(failed, 0, "{}", mount.log());
}

#[test]
fn readers_wait_for_a_registry_that_is_gone_for_up_to_a_minute() {
    let victim = Victim::new();
    thread::scope(|scope| {
        for seconds in [2, 6, 12, 60] {
            let victim = &victim;
            scope.spawn(move || {
                let proxy = proxy(victim);
                let mount = LazyMount::start(&proxy.by_way(&victim.accelerated)).unwrap();
                proxy.down(true);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        thread::sleep(Duration::from_secs(seconds));
                        proxy.down(false);
                    });
                    assert_eq!(victim.failed(&mount), 0, "{seconds} s: {}", mount.log());
                });
                // What is shorter, the requests themselves outlast.
                assert!(seconds < 60 || mount.log().contains("a reader waits"), "{seconds} s: {}", mount.log());
            });
        }
    });
}

#[test]
fn readers_survive_whatever_a_registry_answers_for_a_while() {
    let victim = Victim::new();
    let layer = victim.digest("layer");
    // More often than a single request is tried again.
    for fault in [Fault::Status(500), Fault::Status(429), Fault::Status(403), Fault::Cut(0), Fault::Cut(70_000)] {
        let proxy = proxy(&victim);
        proxy.rule(&layer, fault.clone(), Some(15));
        survives(&victim, &proxy, || {});
        assert_eq!(proxy.pending(), 0, "{fault:?}");
    }
}

#[test]
fn a_mirror_that_fails_in_any_way_costs_no_reader_an_error() {
    let victim = Victim::new();
    let layer = victim.digest("layer");
    let (mirror, registry) = (proxy(&victim), proxy(&victim));
    let scratch = Scratch::new("hosts").unwrap();
    let dir = scratch.subdir(registry.host()).unwrap();
    std::fs::write(dir.join("hosts.toml"), format!("[host.\"http://{}\"]\n", mirror.host())).unwrap();
    let hosts = scratch.path().display().to_string();
    let reference = registry.by_way(&victim.accelerated);
    let faults =
        [Fault::Flip(400_000), Fault::Stall(10_000), Fault::Cut(70_000), Fault::Status(503), Fault::Status(403)];
    for fault in faults {
        mirror.behave();
        mirror.rule(&layer, fault.clone(), None);
        registry.take_log();
        let mount = LazyMount::start_with(&["--driver", &driver(), "--hosts-dir", &hosts], &reference).unwrap();
        assert!(registry.log().is_empty(), "the mirror does, as long as it does: {:?}", registry.log());
        assert_eq!(victim.failed(&mount), 0, "{fault:?}: {}", mount.log());
        assert!(registry.bytes_of(&layer) > 0, "{fault:?}");
    }
}

#[test]
fn a_registry_that_comes_back_needs_no_restart_after_readers_had_errors() {
    let victim = Victim::new();
    let proxy = proxy(&victim);
    let mut snapshotter = Snapshotter::start().unwrap();
    snapshotter.configure("[fetch]\nwait_seconds = 1\n").unwrap();
    let settings = clipper_tests::containerd::Settings::clipper(snapshotter.socket()).unwrap();
    let containerd = clipper_tests::containerd::Containerd::start(settings).unwrap();
    let (socket, image) = (containerd.socket().display().to_string(), proxy.by_way(&victim.accelerated));
    let namespace = containerd.namespace().to_owned();
    proxy.rule(&victim.digest("layer"), Fault::Status(503), None);
    clipper_tests::clipper::clipper_ok(&["pull", "--address", &socket, "--namespace", &namespace, &image]).unwrap();
    let view = containerd.view("clipper", &image).unwrap();
    for _ in 0..2 {
        let error = std::fs::read(view.path().join("text")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    proxy.behave();
    assert_eq!(std::fs::read(view.path().join("small")).unwrap(), b"small");
    drop(view);
}
