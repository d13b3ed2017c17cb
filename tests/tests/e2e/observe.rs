//! What a node shows of itself: metrics against what the proxy counted, `clipper node`, and the log.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use clipper_tests::clipper::{Snapshotter, clipper_ok, clipper_output, convert_with};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::daemon::workspace;
use clipper_tests::metrics::{Scrape, request};
use clipper_tests::proxy::{Fault, Proxy};
use clipper_tests::scratch::Scratch;
use serde_json::Value;

use crate::integrity::Victim;
use crate::run::Node;
use crate::world::world;

/// Has the snapshotter show its metrics, and whatever else `config` says; gives the socket.
fn observed(snapshotter: &mut Snapshotter, config: &str, section: &str) -> PathBuf {
    let socket = snapshotter.socket().with_file_name("metrics.sock");
    let text = format!("{config}\n[metrics]\naddress = \"unix:{}\"\n{section}", socket.display());
    snapshotter.configure(&text).unwrap();
    let begun = Instant::now();
    // The supervisor listens for containerd before the daemon does for anybody.
    while request(&socket, "GET", "/readyz").map(|(status, ..)| status).ok() != Some(200) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", snapshotter.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    socket
}

/// `clipper node ARGS`, whatever comes of it.
fn node(snapshotter: &Snapshotter, args: &[&str]) -> Output {
    let control = snapshotter.socket().with_file_name("control.sock").display().to_string();
    clipper_output(&[&["node", "--address", &control], args].concat()).unwrap()
}

/// `clipper node ARGS`, which must succeed.
fn node_ok(snapshotter: &Snapshotter, args: &[&str]) -> String {
    let output = node(snapshotter, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}\n{}", snapshotter.log());
    String::from_utf8(output.stdout).unwrap()
}

fn node_json(snapshotter: &Snapshotter, args: &[&str]) -> Value {
    let text = node_ok(snapshotter, &[args, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
}

/// Scrapes until `done`, which must come about.
fn scrape_until(socket: &std::path::Path, what: &str, done: impl Fn(&Scrape) -> bool) -> Scrape {
    let begun = Instant::now();
    loop {
        let scrape = Scrape::of(socket).unwrap();
        if done(&scrape) {
            return scrape;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}: {scrape:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn figures_agree_with_what_the_registry_sent_and_add_up() {
    let mut all = Node::new();
    let metrics = observed(&mut all.snapshotter, "", "");
    all.containerd.restart().unwrap();
    let image = all.proxy.by_way(&world().small.accelerated);
    all.proxy.take_log();
    all.pull(&image);
    all.containerd.start_container("clipper", &image, "reads", &["sleep", "1000"]).unwrap();
    all.containerd.exec("reads", "x", &["sha256sum", "/srv/app/data/random"]).unwrap();
    let image_label = [("image", image.as_str())];
    let loaded = |scrape: &Scrape| {
        let size = scrape.sum("clipper_image_bytes", &image_label);
        size > 0.0 && size == scrape.sum("clipper_image_cached_bytes", &image_label)
    };
    let scrape = scrape_until(&metrics, "the image is loaded whole", loaded);

    let host = all.proxy.host();
    let of = |source: &str| scrape.sum("clipper_fetched_bytes_total", &[("source", source), ("host", &host)]);
    let sum: f64 = ["hot", "demand", "prefetch", "background"].map(of).iter().sum();
    assert_eq!(sum, scrape.sum("clipper_fetched_bytes_total", &[]), "one host, and all sources have a name");
    assert!(of("background") > 0.0, "{scrape:#?}");
    // What a request was broken off in was sent and hasn't arrived; manifests and the index aren't data of layers.
    let received = scrape.sum("clipper_registry_received_bytes_total", &[("host", &host)]);
    let sent: u64 = all.proxy.log().iter().map(|access| access.bytes).sum();
    assert!(sum <= received && received <= sent as f64, "{sum} {received} {sent}");
    assert!(received * 1.1 + 2e6 > sent as f64, "{received} of {sent}");
    let blobs: u64 = world().small.layers().iter().map(|layer| all.proxy.bytes_of(layer)).sum();
    assert!(sum * 1.1 + 1e6 > blobs as f64, "{sum} of {blobs}");
    let requests = scrape.sum("clipper_registry_requests_total", &[("host", &host)]);
    assert!(requests > 0.0 && requests <= all.proxy.log().len() as f64, "{requests}");
    assert_eq!(scrape.sum("clipper_mounts", &[]), 1.0);
    assert!(scrape.sum("clipper_span_fetch_seconds_count", &[]) > 0.0);
    assert!(scrape.sum("clipper_read_wait_seconds_count", &[]) > 0.0);
    assert_eq!(scrape.sum("clipper_waiting_readers", &[]), 0.0);
    assert_eq!(scrape.sum("clipper_snapshots", &[("kind", "committed")]), world().small.layers().len() as f64);

    // What people see is the same.
    let status = node_json(&all.snapshotter, &["status"]);
    assert_eq!((&status["mounts"], &status["not_ready"], &status["images"]), (&1.into(), &"".into(), &1.into()));
    let traffic = status["traffic"].as_array().unwrap().iter().map(|one| one["bytes"].as_f64().unwrap()).sum::<f64>();
    assert_eq!(traffic, sum);
    let text = node_ok(&all.snapshotter, &["status"]);
    assert!(text.contains("ready, for") && text.contains(&host) && text.contains("1 mounted"), "{text}");
    let images = node_json(&all.snapshotter, &["images"]);
    let only = &images["images"][0];
    assert_eq!((only["name"].as_str(), only["containers"].as_u64()), (Some(image.as_str()), Some(1)));
    assert_eq!((only["cached"].as_f64(), only["mounted"].as_bool()), (only["size"].as_f64(), Some(true)));
    assert_eq!(only["size"].as_f64().unwrap(), scrape.sum("clipper_image_bytes", &[]));
    let text = node_ok(&all.snapshotter, &["images"]);
    assert!(text.contains(&image) && text.contains("mounted, complete"), "{text}");
    all.containerd.remove_container("reads").unwrap();
}

#[test]
fn what_waits_fails_over_and_comes_out_wrong_shows() {
    let victim = Victim::new();
    let layer = victim.digest("layer");
    let [mirror, registry] = [(); 2].map(|()| Proxy::start(victim.registry.address(), Duration::ZERO).unwrap());
    let scratch = Scratch::new("hosts").unwrap();
    let dir = scratch.subdir(registry.host()).unwrap();
    fs::write(dir.join("hosts.toml"), format!("[host.\"http://{}\"]\n", mirror.host())).unwrap();
    let mut snapshotter = Snapshotter::start().unwrap();
    let before = snapshotter.log().len();
    let hosts = format!("[registry]\nhosts_dir = \"{}\"\n", scratch.path().display());
    let config = "log_format = \"json\"\nslow_read_ms = 300\nbackground_fill = false";
    let metrics = observed(&mut snapshotter, config, &hosts);
    let containerd = Containerd::start(Settings::clipper(snapshotter.socket()).unwrap()).unwrap();
    let (socket, image) = (containerd.socket().display().to_string(), registry.by_way(&victim.accelerated));
    let namespace = containerd.namespace().to_owned();
    clipper_ok(&["pull", "--address", &socket, "--namespace", &namespace, &image]).unwrap();
    let view = containerd.view("clipper", &image).unwrap();
    let read = |name: &str| fs::read(view.path().join(name));
    let drop_caches = || {
        node_ok(&snapshotter, &["evict", "--force", &image]);
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    };

    // A mirror that is gone.
    mirror.down(true);
    read("noise").unwrap();
    let host = mirror.host();
    let scrape = Scrape::of(&metrics).unwrap();
    assert!(scrape.sum("clipper_registry_failovers_total", &[("host", &host)]) > 0.0, "{scrape:#?}");
    assert_eq!(scrape.sum("clipper_registry_sick", &[("host", &host)]), 1.0, "{scrape:#?}");
    assert_eq!(scrape.sum("clipper_verification_failures_total", &[]), 0.0);

    // A registry that sends wrong bytes.
    drop_caches();
    registry.rule(&layer, Fault::Flip(400_000), None);
    assert_eq!(read("text").unwrap_err().raw_os_error(), Some(5));
    registry.behave();
    let scrape = Scrape::of(&metrics).unwrap();
    let host = registry.host();
    assert!(scrape.sum("clipper_verification_failures_total", &[]) > 0.0, "{}", snapshotter.log());
    assert!(scrape.sum("clipper_registry_verification_failures_total", &[("host", &host)]) > 0.0);
    assert!(scrape.sum("clipper_span_retries_total", &[]) > 0.0);
    assert!(scrape.sum("clipper_failed_reads_total", &[]) > 0.0);

    // Nobody answers: readers wait, and are slow.
    drop_caches();
    registry.down(true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read("text"));
        scrape_until(&metrics, "a reader waits", |scrape| scrape.sum("clipper_waiting_readers", &[]) > 0.0);
        let status = node_json(&snapshotter, &["status"]);
        assert!(status["waiting_readers"].as_u64().unwrap() > 0, "{status}");
        std::thread::sleep(Duration::from_millis(500));
        registry.down(false);
        reader.join().unwrap().unwrap();
    });
    let slow = |scrape: &Scrape| scrape.sum("clipper_slow_reads_total", &[]) > 0.0;
    let scrape = scrape_until(&metrics, "a slow read", slow);
    assert!(scrape.sum("clipper_registry_retries_total", &[]) > 0.0);
    assert!(scrape.sum("clipper_evictions_total", &[]) >= 2.0 && scrape.sum("clipper_evicted_bytes_total", &[]) > 1e6);

    // Every line of the log is an object; those about a layer say which, and of which image.
    let log = snapshotter.log()[before..].to_owned();
    let parse = |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let lines: Vec<Value> = log.lines().filter(|line| line.starts_with('{')).map(parse).collect();
    assert!(log.lines().count() - lines.len() <= 1, "only the end of the first daemon: {log}");
    let about = |message: &str| lines.iter().filter(move |line| line["message"] == message).collect::<Vec<_>>();
    for message in ["a read was slow", "trying again"] {
        let found = about(message);
        assert!(!found.is_empty(), "{message}: {log}");
        for line in found {
            assert_eq!((line["image"].as_str(), line["layer"].as_str()), (Some(&*image), Some(&*layer)), "{line}");
        }
    }
    let slow = about("a read was slow");
    assert!(slow.iter().any(|line| line["file"] == "/text"), "{slow:#?}");
    assert!(slow.iter().all(|line| line["ms"].as_u64().unwrap() >= 300 && line["host"].is_string()), "{slow:#?}");
    drop(view);
}

#[test]
fn a_node_is_steered_by_the_control_socket() {
    let mut all = Node::new();
    let metrics = observed(&mut all.snapshotter, "background_fill = false", "");
    all.containerd.restart().unwrap();
    let image = all.proxy.by_way(&world().small.accelerated);
    all.pull(&image);
    let refused = node(&all.snapshotter, &["trace", &image]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && error.contains("isn't mounted"), "{error}");
    all.containerd.start_container("clipper", &image, "reads", &["sleep", "1000"]).unwrap();
    all.containerd.exec("reads", "x", &["head", "-c", "5000", "/srv/app/data/countdown"]).unwrap();

    // What was read, as a trace that a conversion takes.
    let scratch = Scratch::new("trace").unwrap();
    let file = scratch.join("trace").display().to_string();
    node_ok(&all.snapshotter, &["trace", &image, "--output", &file]);
    let text = fs::read_to_string(&file).unwrap();
    let touched = |path: &str| text.lines().any(|line| line.starts_with("0+") && line.ends_with(path));
    assert!(text.starts_with("# clipper trace 1") && touched(" /srv/app/data/countdown"), "{text}");
    assert!(!text.contains("/srv/app/data/random"), "nobody has read that: {text}");
    let ranges = node_json(&all.snapshotter, &["trace", &image]);
    assert!(ranges.as_array().unwrap().iter().any(|range| range["path"] == "/srv/app/data/countdown"), "{ranges}");
    convert_with(&world().small.base, &["--trace", &file, "--strict", "--tag-suffix", "_traced"]).unwrap();

    // Loaded whole, by its chain ID.
    let images = node_json(&all.snapshotter, &["images"]);
    let chain = images["images"][0]["chain"].as_str().unwrap().trim_start_matches("sha256:")[..12].to_owned();
    assert!(images["images"][0]["cached"].as_u64() < images["images"][0]["size"].as_u64());
    let done = node_json(&all.snapshotter, &["prefetch", &chain]);
    assert_eq!((&done["cached"], &done["done"], &done["image"]), (&done["size"], &true.into(), &image.clone().into()));
    let scrape = Scrape::of(&metrics).unwrap();
    assert!(scrape.sum("clipper_fetched_bytes_total", &[("source", "prefetch")]) > 1e6, "{scrape:#?}");
    let output = node(&all.snapshotter, &["prefetch", &image]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("are here"), "{output:?}");

    let usage = node_json(&all.snapshotter, &["df"]);
    let layers = usage["layers"].as_array().unwrap();
    assert_eq!(layers.len(), world().small.layers().len());
    for layer in layers {
        assert!(world().small.layers().contains(&layer["layer"].as_str().unwrap().to_owned()), "{layer}");
        assert_eq!((&layer["pinned"], &layer["images"][0]), (&true.into(), &image.clone().into()));
    }
    let text = node_ok(&all.snapshotter, &["df"]);
    assert!(text.contains("in use") && text.contains("free on its disk"), "{text}");

    // What runs stays, unless it is to go all the same; then it is fetched again.
    let taken = |scrape: &Scrape| scrape.sum("clipper_cache_bytes", &[]);
    let before = taken(&Scrape::of(&metrics).unwrap());
    let text = node_ok(&all.snapshotter, &["evict", &image]);
    assert!(text.contains("nothing was evicted"), "{text}");
    let freed = node_json(&all.snapshotter, &["evict", "--bytes", "1M", "--force"]);
    let freed = freed["freed"].as_f64().unwrap();
    assert!((1e6..before / 2.0).contains(&freed), "{freed} of {before}");
    let text = node_ok(&all.snapshotter, &["evict", &image, "--force"]);
    assert!(text.contains("evicted"), "{text}");
    assert!(taken(&Scrape::of(&metrics).unwrap()) < before / 4.0);
    let sum = all.containerd.exec("reads", "y", &["sha256sum", "/srv/app/data/random"]);
    let expected = all.containerd.run("clipper", &image, "again", &["sha256sum", "/srv/app/data/random"]).unwrap();
    assert_eq!(sum.unwrap(), expected);
    all.containerd.remove_container("reads").unwrap();
    // Once it is known that nothing runs.
    let begun = Instant::now();
    let cached = || {
        node_ok(&all.snapshotter, &["evict", "--all"]);
        let usage = node_json(&all.snapshotter, &["df"]);
        usage["layers"].as_array().unwrap().iter().map(|layer| layer["cached"].as_u64().unwrap()).sum::<u64>()
    };
    while cached() > 0 {
        let left = || {
            let containers = all.containerd.ctr(&["containers", "list"]);
            let usage = node_json(&all.snapshotter, &["df"]);
            format!("{usage}\n{containers:?}\n{:?}\n{}", all.containerd.snapshots("clipper"), all.snapshotter.log())
        };
        assert!(begun.elapsed() < Duration::from_secs(30), "{}", left());
        std::thread::sleep(Duration::from_millis(100));
    }

    // Errors say what to do.
    for (args, told) in [
        (&["prefetch", "no/such:image"][..], "`clipper node images` lists them"),
        (&["evict", "no/such:image"], "no lazy image is called"),
        (&["evict"], "required"),
    ] {
        let output = node(&all.snapshotter, args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(told), "{args:?}: {error}");
    }
    let nobody = clipper_output(&["node", "--address", "/no/such.sock", "status"]).unwrap();
    let error = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && error.contains("is clipper-snapshotter running"), "{error}");
}

#[test]
fn probes_are_answered_and_nothing_is_named_that_is_not_there() {
    let mut snapshotter = Snapshotter::start().unwrap();
    let metrics = observed(&mut snapshotter, "", "[cache]\nmax_bytes = \"1GiB\"\n");
    for (method, path, status) in [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/", 404),
        ("POST", "/metrics", 405),
    ] {
        assert_eq!(request(&metrics, method, path).unwrap().0, status, "{method} {path}");
    }
    let mode = fs::metadata(&metrics).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);

    let families = Scrape::of(&metrics).unwrap().families();
    let named = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("clipper_")).map(str::to_owned).collect()
    };
    let is_there = |name: &str| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        families.contains(name) || families.contains(family)
    };
    let dashboard = fs::read_to_string(workspace().join("deploy/grafana/clipper.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let names = named(target["expr"].as_str().unwrap());
            assert!(!names.is_empty(), "{target}");
            for name in names {
                assert!(is_there(&name), "the dashboard asks for {name}, but there are {families:?}");
                queries += 1;
            }
        }
    }
    assert!(queries > 15, "{queries}");
    // The table in the documentation has all of them, and no others.
    let docs = fs::read_to_string(workspace().join("docs/operations.md")).unwrap();
    let rows = docs.lines().filter_map(|line| line.strip_prefix("| `clipper_")?.split_once('`'));
    // Rows of other tables begin with expressions.
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let listed: Vec<_> = rows.filter(|(name, _)| is_name(name)).map(|(name, _)| format!("clipper_{name}")).collect();
    for family in &families {
        assert!(listed.contains(family), "docs/operations.md lacks {family}");
    }
    for name in &listed {
        assert!(is_there(name), "docs/operations.md names {name}, but there are {families:?}");
    }
}
