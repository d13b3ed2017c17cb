//! Start-ups: recorded, listed, and streamed as a hot blob.

use clipper_tests::clipper::{Snapshotter, clipper_ok, clipper_output, convert_with};
use clipper_tests::scratch::Scratch;
use clipper_tests::small_disk::SmallDisk;
use serde_json::Value;

use crate::run::Node;
use crate::world::world;

/// The digest and size of the hot blob that a conversion reported.
fn hot(report: &Value) -> (String, u64) {
    let hot = &report["images"][0]["hot"];
    (hot["digest"].as_str().unwrap().into(), hot["size"].as_u64().unwrap())
}

/// A node without background fill on which the small image, pulled by `reference`, has said hello.
fn started(reference: &str) -> Node {
    started_on(Node::new(), reference)
}

/// The same on this node.
fn started_on(mut node: Node, reference: &str) -> Node {
    node.snapshotter.configure("background_fill = false\n").unwrap();
    node.containerd.restart().unwrap();
    let image = node.proxy.by_way(reference);
    node.pull(&image);
    let said = node.containerd.run("clipper", &image, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
    node
}

/// A tag of its own for the small image, so that its conversion is, too.
fn small(name: &str) -> String {
    world().registry.push(&format!("docker://{}", world().small.base), &format!("startup/{name}:1")).unwrap()
}

#[test]
fn what_a_start_up_reads_is_recorded_and_streamed() {
    let scratch = Scratch::new("record").unwrap();
    let trace = scratch.join("trace").display().to_string();
    let node = Node::new();
    let socket = node.containerd.socket().display().to_string();
    let image = node.proxy.by_way(&world().small.accelerated);
    let record = ["record", "--json", "--address", &socket, "--namespace", node.containerd.namespace()];
    let said = clipper_ok(&[&record[..], &["--output", &trace, "--timeout", "30", &image]].concat()).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&said["end"], &said["status"]), (&"exited".into(), &0.into()), "{said}");
    assert_eq!(said["drivers"], serde_json::json!(["erofs", "fuse"]), "{said}");
    let text = std::fs::read_to_string(&trace).unwrap();
    assert!(text.contains(" /srv/app/hello.py\n"), "{text}");
    assert!(!text.contains("/srv/app/data/random"), "nobody read that: {text}");
    assert!(node.containerd.snapshots("clipper").unwrap().iter().all(|key| !key.contains("record")));

    // What the same start needs on another node comes by one request.
    let (reference, report) = convert_with(&small("traced"), &["--trace", &trace]).unwrap();
    let (digest, size) = hot(&report);
    let inspected: Value = serde_json::from_str(&clipper_ok(&["inspect", "--json", &reference]).unwrap()).unwrap();
    assert_eq!(inspected[0]["hot"]["size"], size, "{inspected}");
    for driver in ["erofs", "fuse"] {
        let node = started_on(Node::on(Snapshotter::start_over(driver).unwrap(), |_| {}), &reference);
        assert_eq!(node.proxy.bytes_of(&digest), size, "{driver}");
        let layers: u64 = world().small.layers().iter().map(|layer| node.proxy.bytes_of(layer)).sum();
        assert_eq!(layers, 0, "{driver}: bytes besides a hot blob of {size}: {}", node.snapshotter.log());
    }
}

#[test]
fn where_erofs_cannot_work_fuse_is_recorded_and_that_is_told() {
    let disk = SmallDisk::in_memory(1 << 30).unwrap();
    let snapshotter = Snapshotter::start_at_over(disk.path().join("root"), "auto").unwrap();
    let node = Node::on(snapshotter, |_| {});
    let socket = node.containerd.socket().display().to_string();
    let image = node.proxy.by_way(&world().small.accelerated);
    let trace = disk.path().join("trace").display().to_string();
    let record = ["record", "--json", "--address", &socket, "--namespace", node.containerd.namespace()];
    let record = [&record[..], &["--output", &trace, &image]].concat();
    let output = clipper_output(&record).unwrap();
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["drivers"], serde_json::json!(["fuse"]), "{said}");
    assert!(told.contains("only the driver fuse is recorded") && told.contains("EROFS can't be used here"), "{told}");
    assert!(std::fs::read_to_string(&trace).unwrap().contains(" /srv/app/hello.py\n"));

    let output = clipper_output(&[&record[..], &["--driver", "erofs"]].concat()).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("EROFS can't be used here"), "{told}");
}

#[test]
fn lists_name_what_is_streamed_first() {
    let scratch = Scratch::new("list").unwrap();
    let list = scratch.join("list");
    std::fs::write(&list, "# the data\n/srv/app/data/\n/no/such/file\n/srv/app/hello.py\n").unwrap();
    let list = list.display().to_string();
    let image = small("listed");
    let (reference, report) = convert_with(&image, &["--prefetch-list", &list]).unwrap();
    let (_, again) = convert_with(&image, &["--prefetch-list", &list, "--no-reuse"]).unwrap();
    assert_eq!(report["digest"], again["digest"], "conversion is deterministic");
    // The lazy image is the same as ever.
    clipper_ok(&["check", &reference]).unwrap();

    let node = Node::new();
    let image = node.proxy.by_way(&reference);
    node.pull(&image);
    let said = node.containerd.run("clipper", &image, "sum", &["sha256sum", "/srv/app/data/random"]).unwrap();
    let (digest, size) = hot(&report);
    assert_eq!(node.proxy.bytes_of(&digest), size);
    let whole = Node::new();
    let ordinary = whole.proxy.by_way(&world().small.base);
    whole.containerd.pull("overlayfs", &ordinary).unwrap();
    let expected = whole.containerd.run("overlayfs", &ordinary, "sum", &["sha256sum", "/srv/app/data/random"]).unwrap();
    assert_eq!(said, expected);

    let failed = clipper_output(&["convert", "--strict", "--prefetch-list", &list, &world().small.base]).unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains("line 3: /no/such/file"), "{said}");
    std::fs::write(scratch.join("list"), "/fine\nrelative\n").unwrap();
    let failed = clipper_output(&["convert", "--prefetch-list", &list, &world().small.base]).unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains("line 2: not an absolute path: relative"), "{said}");
}

#[test]
fn a_damaged_hot_blob_costs_speed_and_nothing_else() {
    let scratch = Scratch::new("damaged").unwrap();
    let list = scratch.join("list").display().to_string();
    std::fs::write(&list, "/srv/app/data/\n/usr/bin/\n").unwrap();
    let registry = clipper_tests::registry::Registry::start().unwrap();
    let image = registry.push_cached("small").unwrap();
    let (reference, report) = convert_with(&image, &["--prefetch-list", &list]).unwrap();
    let file = registry.blob_file(&hot(&report).0);
    let mut bytes = std::fs::read(&file).unwrap();
    for at in (100..bytes.len()).step_by(50_000) {
        bytes[at] ^= 0x40;
    }
    std::fs::write(&file, &bytes).unwrap();
    clipper_ok(&["check", &reference]).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    clipper_ok(&["check", &reference]).unwrap();
    std::fs::remove_file(&file).unwrap();
    clipper_ok(&["check", &reference]).unwrap();
}

#[test]
fn without_a_list_the_start_up_is_worked_out() {
    let inspected = clipper_ok(&["inspect", "--json", &world().small.accelerated]).unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let paths: Vec<&str> = inspected[0]["prefetch"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(paths[0], "/etc/passwd", "{paths:?}");
    assert!(paths[..10].contains(&"/usr/bin/python3.11"), "{paths:?}");
    assert!(paths.contains(&"/srv/app/hello.py"), "{paths:?}");
    assert!(paths.iter().any(|path| path.ends_with("/libc.so.6")) && paths.iter().any(|path| path.contains("/ld-")));
    assert!(paths.iter().any(|path| path.ends_with(".pyc") || path.ends_with("/encodings/__init__.py")), "{paths:?}");
    assert!(inspected[0]["hot"]["size"].as_u64() > Some(1 << 20), "{inspected}");
    let (reference, report) = convert_with(&small("unknown"), &["--no-guess"]).unwrap();
    assert!(report["images"][0]["hot"].is_null(), "{reference}");
}

#[test]
fn what_is_worked_out_in_full_mode_arrives_under_both_tags() {
    let (reference, report) = convert_with(&small("worked-out"), &["--mode", "full"]).unwrap();
    let (digest, size) = hot(&report);
    let second = report["base_layers"]["target"].as_str().unwrap().to_owned();
    for reference in [reference, second] {
        let node = started(&reference);
        assert_eq!(node.proxy.bytes_of(&digest), size, "{reference}");
        let log = node.snapshotter.log();
        assert!(!log.contains("corrupt") && !log.contains("doesn't arrive"), "{reference}: {log}");
    }
}
