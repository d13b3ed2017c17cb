//! `clipper convert --mode full`: images of their own that every runtime takes, and the base's layers under a second tag.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use clipper_tests::clipper::{LazyMount, clipper_ok, clipper_output, convert_with};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::corpus::noise;
use clipper_tests::daemon::run;
use clipper_tests::docker::Docker;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::podman::Podman;
use clipper_tests::proxy::{Fault, Proxy};
use clipper_tests::registry::Registry;
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::{Entry, TarWriter};
use clipper_tests::walk;
use serde_json::{Value, json};

use crate::run::Node;
use crate::world::{awkward, strings, world};

const HELLO: &str = "hello from the small image\n";
const TOC: &str = "io.github.containers.zstd-chunked.manifest-position";

/// The small image in a repository of its own, in full mode: the base, the reference, and the report.
fn full() -> &'static (String, String, Value) {
    static FULL: OnceLock<(String, String, Value)> = OnceLock::new();
    FULL.get_or_init(|| {
        let registry = &world().registry;
        let base = registry.push(&format!("docker://{}", world().small.base), "full/small:1").unwrap();
        let (accelerated, report) = convert_with(&base, &["--mode", "full"]).unwrap();
        (base, accelerated, report)
    })
}

fn manifest_of(registry: &Registry, reference: &str) -> Value {
    let (index, _) = registry.manifest(reference).unwrap();
    let repository = reference.rsplit_once(':').unwrap().0;
    registry.manifest(&format!("{repository}@{}", index["manifests"][0]["digest"].as_str().unwrap())).unwrap().0
}

#[test]
fn two_images_are_published() {
    let (base, accelerated, report) = full();
    let registry = &world().registry;
    let tags = registry.tags("full/small").unwrap();
    assert!(
        ["1", "1_accelerated", "1_containerd_accelerated"].iter().all(|tag| tags.iter().any(|t| t == tag)),
        "{tags:?}"
    );
    let (original, _) = registry.manifest(base).unwrap();
    let repacked = manifest_of(registry, accelerated);
    assert_eq!(repacked["config"]["digest"], original["config"]["digest"], "the config, and so every diff ID, is kept");
    let (layers, originals) = (repacked["layers"].as_array().unwrap(), original["layers"].as_array().unwrap());
    assert_eq!(layers.len(), originals.len());
    for (layer, original) in layers.iter().zip(originals) {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
        assert_ne!(layer["digest"], original["digest"]);
        assert_eq!(layer["annotations"]["io.clipper.base.layer"], original["digest"]);
        assert_eq!(layer["annotations"]["containerd.io/snapshot/clipper.layer"], layer["digest"]);
        assert!(layer["annotations"][TOC].is_string(), "{layer}");
    }
    // The second tag is what index-only mode makes, but for frames of the hot blob that are copied from repacked layers.
    assert_eq!(report["base_layers"]["mode"], "index-only");
    let (second, alone) = (&report["base_layers"]["images"][0], &world().small.report["images"][0]);
    assert!(second["layers"].is_array() && second["layers"] == alone["layers"], "{second} {alone}");
    assert!(second["checkpoints"].is_object() && second["checkpoints"] == alone["checkpoints"], "{second} {alone}");
    let inspect = |reference: &str| -> Value {
        serde_json::from_str(&clipper_ok(&["inspect", "--json", reference]).unwrap()).unwrap()
    };
    let (first, second) = (inspect(accelerated), inspect(&format!("{base}_containerd_accelerated")));
    assert_eq!((&first[0]["mode"], &first[0]["needs_base"]), (&json!("full"), &json!(false)));
    assert_eq!((&second[0]["mode"], &second[0]["needs_base"]), (&json!("index-only"), &json!(true)));
}

#[test]
fn it_is_the_same_files() {
    let (base, accelerated, _) = full();
    clipper_ok(&["check", "--base", base, accelerated]).unwrap();
    clipper_ok(&["check", accelerated]).unwrap();
}

#[test]
fn awkward_images_are_the_same_files_repacked_either_way() {
    let mut failures = Vec::new();
    for image in awkward() {
        for (compression, suffix) in [("zstd", "_zstd"), ("gzip", "_gzip")] {
            let args = ["convert", "--mode", "full", "--compression", compression, "--tag-suffix", suffix, &image.base];
            clipper_ok(&args).unwrap();
            let repacked = format!("{}{suffix}", image.base);
            failures.extend(clipper_ok(&["check", "--base", &image.base, &repacked]).err());
            failures.extend(clipper_ok(&["check", &repacked]).err());
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn converting_again_gives_the_same_and_reads_nothing() {
    let (base, _, report) = full();
    let (_, again) = convert_with(base, &["--mode", "full"]).unwrap();
    assert_eq!(again["digest"], report["digest"]);
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["reused"] == true), "{again}");
    let (_, anew) = convert_with(base, &["--mode", "full", "--no-reuse"]).unwrap();
    assert_eq!(
        (&anew["digest"], &anew["base_layers"]["digest"]),
        (&report["digest"], &report["base_layers"]["digest"])
    );
}

#[test]
fn other_options_are_not_reused() {
    let (base, _, report) = full();
    let args = ["--mode", "full", "--level", "1", "--tag-suffix", "_accelerated_fast"];
    let other = clipper_ok(&[&["convert", "--json"], &args[..], &[base.as_str()]].concat()).unwrap();
    let other: Value = serde_json::from_str(&other).unwrap();
    assert_ne!(other["digest"], report["digest"]);
    assert!(other["target"].as_str().unwrap().ends_with(":1_accelerated_fast"), "{other}");
    assert!(other["base_layers"]["target"].as_str().unwrap().ends_with(":1_containerd_accelerated_fast"), "{other}");
}

#[test]
fn it_outlives_its_base() {
    let registry = Registry::start().unwrap();
    let base = registry.push_cached("small").unwrap();
    let (accelerated, _) = convert_with(&base, &["--mode", "full"]).unwrap();
    let (manifest, digest) = registry.manifest(&base).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        fs::remove_file(registry.blob_file(layer["digest"].as_str().unwrap())).unwrap();
    }
    fs::remove_file(registry.blob_file(&digest)).unwrap();
    let elsewhere = Registry::start().unwrap();
    let copy = format!("{}/copied/small:1", elsewhere.host());
    let flags = ["-q", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let (from, to) = (format!("docker://{accelerated}"), format!("docker://{copy}"));
    run(Command::new("skopeo").arg("copy").args(flags).args([&from, &to])).unwrap();
    for reference in [&accelerated, &copy] {
        clipper_ok(&["check", reference]).unwrap();
        let containerd = Containerd::start(Settings::overlayfs()).unwrap();
        containerd.pull("overlayfs", reference).unwrap();
        assert_eq!(containerd.run("overlayfs", reference, "hello", &[]).unwrap(), HELLO);
        let node = Node::new();
        let report = node.pull(reference);
        assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["lazy"] == true), "{report}");
        assert_eq!(node.containerd.run("clipper", reference, "hello", &[]).unwrap(), HELLO);
    }
}

#[test]
fn it_runs_before_it_is_downloaded() {
    let (_, accelerated, report) = full();
    let node = Node::new();
    let image = node.proxy.by_way(accelerated);
    node.pull(&image);
    let layers = strings(&report["images"][0]["layers"]);
    assert_eq!(layers.iter().map(|layer| node.proxy.bytes_of(layer)).sum::<u64>(), 0, "the pull fetched layers");
    assert_eq!(node.containerd.run("clipper", &image, "hello", &[]).unwrap(), HELLO);
    let head = ["head", "-c", "14", "/srv/app/data/countdown"];
    assert_eq!(node.containerd.run("clipper", &image, "head", &head).unwrap(), "400000\n399999\n");
}

#[test]
fn podman_fetches_it_in_parts() {
    let (_, accelerated, report) = full();
    let podman = Podman::new().unwrap();
    let layers = report["images"][0]["layers"].as_array().unwrap().len();
    assert_eq!(podman.pull(accelerated).unwrap(), layers, "layers fetched by their tables of contents");
    let lazily = LazyMount::start(accelerated).unwrap();
    let (mut expected, mut actual) =
        (walk::read(lazily.path()).unwrap(), walk::read(&podman.mount(accelerated).unwrap()).unwrap());
    // What podman 4.3 doesn't take from tables of contents: device files and FIFOs, symlinks' times and owners, the root's
    // mode. And it leaves directories with the times at which it filled them.
    for tree in [&mut expected, &mut actual] {
        tree.retain(|path, node| {
            let special = matches!(node.mode & 0o170000, 0o020000 | 0o060000 | 0o010000);
            !special && !path.as_os_str().is_empty()
        });
        for node in tree.values_mut() {
            match node.mode & 0o170000 {
                0o040000 => (node.mtime, node.links) = ((0, 0), 0),
                0o120000 => (node.mtime, node.owner) = ((0, 0), (0, 0)),
                _ => {}
            }
        }
    }
    assert_eq!(walk::differences(&expected, &actual, 10), Vec::<String>::new());
    assert_eq!(podman.run(accelerated).unwrap(), HELLO);
}

#[test]
fn docker_runs_gzip_and_the_bases_own_layers() {
    let (base, ..) = full();
    let gzip = ["convert", "--mode", "full", "--compression", "gzip", "--tag-suffix", "_docker", base];
    clipper_ok(&gzip).unwrap();
    let docker = Docker::start(&world().registry.host()).unwrap();
    for tag in ["_docker", "_containerd_docker", "_containerd_accelerated"] {
        let image = format!("{base}{tag}");
        docker.pull(&image).unwrap();
        assert_eq!(docker.run(&image).unwrap(), HELLO, "{image}");
    }
}

/// An image of one layer with these files, pushed under `reference`.
fn push_layer(reference: &str, compression: &str, files: &[(&[u8], Vec<u8>)]) -> String {
    let scratch = Scratch::new("layer").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let write = |out: &mut dyn std::io::Write| {
        let mut tar = TarWriter::new(out);
        for (name, data) in files {
            tar.entry(&Entry::file(*name, data.clone()))?;
        }
        tar.finish()?;
        Ok(())
    };
    let layer = layout.layer(&Compression::by_name(compression).unwrap(), write).unwrap();
    layout.tag("1", &layout.image(&Image { layers: vec![layer], ..Image::default() }).unwrap()).unwrap();
    world().registry.push(&format!("oci:{}:1", scratch.path().display()), reference).unwrap()
}

#[test]
fn a_layer_in_one_large_zstd_frame_is_repacked() {
    let files: [(&[u8], _); 2] = [(b"large", noise(5, 40 << 20)), (b"small", noise(6, 100))];
    let base = push_layer("full/one-frame:1", "zstd", &files);
    convert_with(&base, &["--mode", "full"]).unwrap();
    let tags = ["1", "1_accelerated", "1_containerd_accelerated"];
    assert_eq!(world().registry.tags("full/one-frame").unwrap(), tags);
    let (_, again) = convert_with(&base, &["--mode", "full"]).unwrap();
    assert_eq!(again["layers"][0]["reused"], true, "{again}");
    for tag in &tags[1..] {
        clipper_ok(&["check", "--base", &base, &base.replace(":1", &format!(":{tag}"))]).unwrap();
    }
}

#[test]
fn a_name_that_json_cannot_hold_only_costs_the_table_of_contents() {
    let base = push_layer("full/latin1:1", "gzip", &[(b"caf\xe9", noise(7, 5000))]);
    let run = clipper_output(&["convert", "--mode", "full", &base]).unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("not UTF-8") && said.contains("table of contents"), "{said}");
    let accelerated = format!("{base}_accelerated");
    let manifest = manifest_of(&world().registry, &accelerated);
    assert!(manifest["layers"][0]["annotations"][TOC].is_null());
    clipper_ok(&["check", "--base", &base, &accelerated]).unwrap();
}

#[test]
fn an_upload_that_the_registry_loses_is_made_again() {
    let proxy = Proxy::start(world().registry.address(), std::time::Duration::ZERO).unwrap();
    let base = push_layer("full/lost:1", "gzip", &[(b"large", noise(8, 20 << 20))]);
    proxy.rule("PATCH /v2/full/lost/blobs/uploads/", Fault::CutRequest(3 << 20), Some(1));
    let by_proxy = proxy.by_way(&base);
    clipper_ok(&["convert", "--mode", "full", &by_proxy]).unwrap();
    assert_eq!(proxy.pending(), 0, "the fault happened");
    clipper_ok(&["check", "--base", &base, &format!("{base}_accelerated")]).unwrap();
}

#[test]
fn a_hot_blob_that_the_registry_loses_is_made_again() {
    let proxy = Proxy::start(world().registry.address(), std::time::Duration::ZERO).unwrap();
    let base = push_layer("full/lost-hot:1", "gzip", &[(b"large", noise(9, 20 << 20))]);
    proxy.rule("PATCH /v2/full/lost-hot/blobs/uploads/", Fault::CutRequest(3 << 20), Some(1));
    let scratch = Scratch::new("list").unwrap();
    fs::write(scratch.join("list"), "/large\n").unwrap();
    let list = scratch.join("list").display().to_string();
    let args = ["--prefetch-list", &list, "--hot-limit", "100%"];
    let (_, report) = convert_with(&proxy.by_way(&base), &args).unwrap();
    assert_eq!(proxy.pending(), 0, "the fault happened");
    assert!(report["images"][0]["hot"]["size"].as_u64().unwrap() > 19 << 20, "{report}");
    let inspected = clipper_ok(&["inspect", "--json", &format!("{base}_accelerated")]).unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["hot"]["digest"], report["images"][0]["hot"]["digest"]);
}

#[test]
fn nothing_is_published_of_a_damaged_layer() {
    let registry = Registry::start().unwrap();
    let base = registry.push_cached("busybox").unwrap();
    let (manifest, _) = registry.manifest(&base).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let file = registry.blob_file(digest);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&file, &bytes).unwrap();
    let blobs = registry.blobs().unwrap().len();
    let run = clipper_output(&["convert", "--mode", "full", &base]).unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(1) && said.contains(digest), "{said}");
    assert_eq!(registry.tags("busybox").unwrap(), ["latest"]);
    assert_eq!(registry.blobs().unwrap().len(), blobs, "not even a blob");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let base = &world().busybox.base;
    for args in [
        &["--level", "3"][..],
        &["--compression", "gzip"],
        &["--mode", "full", "--compression", "gzip", "--level", "12"],
    ] {
        let run = clipper_output(&[&["convert"], args, &[base.as_str()]].concat()).unwrap();
        assert_eq!(run.status.code(), Some(1), "{args:?}");
    }
    let run = clipper_output(&["convert", "--tag-suffix", "a/b", base]).unwrap();
    assert_eq!(run.status.code(), Some(2));
}
