//! The snapshotter in a pod, as deploy/kubernetes/daemonset.yaml has it run: another containerd uses what it mounts, and its
//! service account opens the secrets that open images.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clipper_tests::clipper::driver;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::cri::{Cri, bind};
use clipper_tests::daemon::{program, run};
use clipper_tests::kubernetes::ApiServer;
use clipper_tests::proxy::Proxy;
use clipper_tests::scratch::{Scratch, mounts_below};

use crate::credentials::{PASSWORD, USER};
use crate::world::world;

#[test]
fn a_pod_serves_its_node() {
    let api = ApiServer::start_tls().unwrap();
    let proxy = Proxy::start(world().registry.address(), Duration::ZERO).unwrap();
    proxy.require_login(USER, PASSWORD);
    api.put_login("team", "pull", &proxy.host(), USER, PASSWORD);

    let scratch = Scratch::new("pod").unwrap();
    let (root, socket_dir) = (scratch.subdir("root").unwrap(), scratch.subdir("run").unwrap());
    // What systemd makes of all of a node's mounts.
    run(Command::new("mount").arg("--bind").arg(&root).arg(&root)).unwrap();
    run(Command::new("mount").arg("--make-shared").arg(&root)).unwrap();
    let config = scratch.subdir("config").unwrap();
    let said = format!("root = {root:?}\ndriver = {:?}\n[credentials.kubernetes]\n", driver());
    fs::write(config.join("config.toml"), said).unwrap();

    // The containerd of the pod and the one whose containers it serves are one in a cluster. Here, two show that nothing
    // goes by way of the former.
    let sandbox_image = world().busybox.base.clone();
    let of_pod = Containerd::start(Settings { sandbox_image: sandbox_image.clone(), ..Settings::overlayfs() }).unwrap();
    let cri = Cri::connect(of_pod.socket()).unwrap();
    cri.pull(&world().small.base).unwrap();
    let pod = cri.run_privileged_sandbox("clipper-snapshotter").unwrap();
    let program = program("clipper-snapshotter").unwrap();
    let (account, [host, port]) = api.service_account().unwrap();
    let mounts = vec![
        bind(&program, Path::new("/usr/local/bin/clipper-snapshotter"), false),
        bind(&config, Path::new("/etc/clipper-snapshotter"), false),
        bind(&root, &root, true),
        bind(&socket_dir, Path::new("/run/clipper-snapshotter"), false),
        bind(&account, Path::new("/var/run/secrets/kubernetes.io/serviceaccount"), false),
    ];
    let command = ["/usr/local/bin/clipper-snapshotter", "--config", "/etc/clipper-snapshotter/config.toml"];
    let variables = [(host.0, host.1.as_str()), (port.0, port.1.as_str())];
    let served =
        cri.start_container_with(&pod, "snapshotter", &world().small.base, &command, &variables, mounts).unwrap();
    let socket = socket_dir.join("clipper-snapshotter.sock");
    let begun = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the pod doesn't listen");
        std::thread::sleep(Duration::from_millis(50));
    }

    let node = Containerd::start(Settings { sandbox_image, ..Settings::clipper(&socket).unwrap() }).unwrap();
    let kubelet = Cri::connect(node.socket()).unwrap();
    let image = proxy.by_way(&world().small.accelerated);
    // Kubelet, and so containerd, has the pod's pull secret; the snapshotter is told nothing.
    kubelet.pull_as(&image, USER, PASSWORD).unwrap();
    for layer in world().small.layers() {
        assert_eq!(proxy.bytes_of(&layer), 0, "the pull fetched of {layer}");
    }
    let sandbox = kubelet.run_sandbox("app").unwrap();
    let container = kubelet.start_container(&sandbox, "app", &image, &["sleep", "1000"]).unwrap();
    let read = |program: &str| {
        let said = kubelet.exec(&container, &[program, "-c", "7", "/srv/app/data/countdown"]).unwrap();
        assert_eq!(said.exit_code, 0, "{}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap()
    };
    assert_eq!(read("head"), "400000\n");
    // Its daemon dies, and the next one takes over within the pod.
    let killed = cri.exec(&served, &["sh", "-c", "kill -9 $(cat /proc/1/task/*/children)"]).unwrap();
    assert_eq!(killed.exit_code, 0, "{}", String::from_utf8_lossy(&killed.stderr));
    assert_eq!(read("tail"), "\n3\n2\n1\n");

    kubelet.remove_container(&container).unwrap();
    kubelet.remove_sandbox(sandbox).unwrap();
    kubelet.remove_image(&image).unwrap();
    let begun = Instant::now();
    while !mounts_below(&root).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "left over on the node: {:?}", mounts_below(&root));
        std::thread::sleep(Duration::from_millis(100));
    }
    cri.remove_container(&served).unwrap();
    cri.remove_sandbox(pod).unwrap();
}
