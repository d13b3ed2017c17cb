//! `clipper convert`, `inspect` and `check`: what they make, and who can use it.

use std::fs;
use std::process::Command;

use clipper_tests::clipper::{clipper_ok, clipper_output, convert};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::corpus::text;
use clipper_tests::daemon::run;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::registry::{Registry, cached_image};
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::{Value, json};

use crate::world::{awkward, world};

const INDEX_TYPE: &str = "application/vnd.clipper.index.v1";

#[test]
fn the_artifact_is_one_index_over_the_images_own_layers() {
    let world = world();
    let (base, _) = world.registry.manifest(&world.small.base).unwrap();
    let (index, digest) = world.registry.manifest(&world.small.accelerated).unwrap();
    assert_eq!(world.small.report["digest"], json!(digest));
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2, "{index}");
    let repository = world.small.base.rsplit_once(':').unwrap().0;
    let fetch = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        world.registry.manifest(&format!("{repository}@{digest}")).unwrap().0
    };
    let (image, attachment) = (fetch(&manifests[0]), fetch(&manifests[1]));
    assert_eq!(image["config"]["digest"], base["config"]["digest"], "the config is untouched");
    assert_eq!(attachment["artifactType"], INDEX_TYPE);
    assert_eq!(attachment["subject"]["digest"], manifests[0]["digest"]);
    assert_eq!(manifests[1]["platform"], json!({"architecture": "unknown", "os": "unknown"}));
    let index_blob = &attachment["layers"][0]["digest"];
    let (layers, originals) = (image["layers"].as_array().unwrap(), base["layers"].as_array().unwrap());
    assert_eq!(layers.len(), originals.len());
    for (layer, original) in layers.iter().zip(originals) {
        assert_eq!((&layer["digest"], &layer["size"]), (&original["digest"], &original["size"]));
        assert_eq!(layer["annotations"]["containerd.io/snapshot/clipper.index"], *index_blob);
        assert_eq!(layer["annotations"]["containerd.io/snapshot/clipper.layer"], original["digest"]);
    }
}

#[test]
fn the_index_is_small() {
    for image in &world().small.report["images"].as_array().unwrap()[..] {
        let part = |name: &str| image[name]["size"].as_u64().unwrap_or(0);
        let overhead = part("index") + part("checkpoints");
        let layers = image["layers_size"].as_u64().unwrap();
        // One layer in three here is made to be hard; real images are held to 1 % by the benches.
        assert!(overhead * 100 <= layers * 2, "{overhead} bytes for {layers}");
    }
}

#[test]
fn the_base_image_stays_as_it_was() {
    let registry = Registry::start().unwrap();
    let base = registry.push_cached("busybox").unwrap();
    let (before, blobs) = (registry.manifest(&base).unwrap(), registry.blobs().unwrap());
    convert(&base).unwrap();
    assert_eq!(registry.manifest(&base).unwrap(), before);
    let after = registry.blobs().unwrap();
    assert!(blobs.iter().all(|blob| after.contains(blob)));
    assert_eq!(registry.tags("busybox").unwrap(), ["latest", "latest_accelerated"]);
}

#[test]
fn converting_again_gives_the_same_and_says_that_it_reused() {
    let world = world();
    let (_, again) = convert(&world.small.base).unwrap();
    assert_eq!(again["digest"], world.small.report["digest"]);
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["reused"] == true), "{again}");
    let anew: Value =
        serde_json::from_str(&clipper_ok(&["convert", "--json", "--no-reuse", &world.small.base]).unwrap()).unwrap();
    assert_eq!(anew["digest"], world.small.report["digest"], "deterministic");
    assert!(anew["layers"].as_array().unwrap().iter().all(|layer| layer["reused"] == false), "{anew}");
}

#[test]
fn layouts_convert_to_the_same_as_registries() {
    let scratch = Scratch::new("layout").unwrap();
    let dir = scratch.join("image");
    run(Command::new("cp").arg("-r").arg(cached_image("busybox").unwrap()).arg(&dir)).unwrap();
    let source = format!("oci:{}:latest", dir.display());
    let (accelerated, report) = convert(&source).unwrap();
    assert_eq!(report["digest"], world().busybox.report["digest"]);
    let inspected = clipper_ok(&["inspect", "--json", &accelerated]).unwrap();
    assert!(inspected.contains("\"needs_base\": true") || inspected.contains("\"needs_base\":true"), "{inspected}");
    clipper_ok(&["check", &accelerated]).unwrap();
    // From a layout into a registry: the base's blobs must come along.
    let target = format!("{}/from-layout:1", world().registry.host());
    clipper_ok(&["convert", &source, &target]).unwrap();
    clipper_ok(&["check", &target]).unwrap();
    let by_digest = format!("{}@{}", target.rsplit_once(':').unwrap().0, world().registry.manifest(&target).unwrap().1);
    clipper_ok(&["check", &by_digest]).unwrap();
}

#[test]
fn check_finds_no_difference_in_any_image() {
    clipper_ok(&["check", &world().small.accelerated]).unwrap();
    let failures: Vec<String> = awkward()
        .iter()
        .filter_map(|image| clipper_ok(&["check", &image.accelerated]).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn check_tells_two_images_apart() {
    let world = world();
    let run = clipper_output(&["check", "--limit", "100000", "--base", &world.busybox.base, &world.small.accelerated])
        .unwrap();
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(said.contains("hello.py"), "{said}");
}

#[test]
fn skopeo_copies_it_and_plain_containerd_runs_it() {
    let world = world();
    let elsewhere = Registry::start().unwrap();
    let copy = format!("{}/copied/small:fast", elsewhere.host());
    let (from, to) = (format!("docker://{}", world.small.accelerated), format!("docker://{copy}"));
    let flags = ["-q", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"];
    run(Command::new("skopeo").arg("copy").args(flags).args([&from, &to])).unwrap();
    assert_eq!(json!(elsewhere.manifest(&copy).unwrap().1), world.small.report["digest"], "the same digest everywhere");
    clipper_ok(&["check", &copy]).unwrap();
    let containerd = Containerd::start(Settings::overlayfs()).unwrap();
    containerd.pull("overlayfs", &copy).unwrap();
    assert_eq!(containerd.run("overlayfs", &copy, "hello", &[]).unwrap(), "hello from the small image\n");
}

#[test]
fn docker_media_types() {
    let world = world();
    let host = world.registry.host();
    let (from, to) = (format!("docker://{}", world.busybox.base), format!("docker://{host}/docker/busybox:1"));
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run(Command::new("skopeo").args(["copy", "-q", "--format", "v2s2"]).args(tls).args([&from, &to])).unwrap();
    let base = format!("{host}/docker/busybox:1");
    let (manifest, _) = world.registry.manifest(&base).unwrap();
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let (accelerated, _) = convert(&base).unwrap();
    clipper_ok(&["check", &accelerated]).unwrap();
}

#[test]
fn multi_platform_images() {
    let scratch = Scratch::new("platforms").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let manifests: Vec<Value> = ["amd64", "arm64", "riscv64"]
        .map(|architecture| {
            let layer = layout
                .layer(&Compression::gzip(), |out| {
                    let mut tar = TarWriter::new(out);
                    tar.entry(&Entry::file("architecture", architecture))?;
                    tar.entry(&Entry::file("data", text(1, 3_000_000)))?;
                    tar.finish()?;
                    Ok(())
                })
                .unwrap();
            layout
                .image(&Image { layers: vec![layer], architecture: Some(architecture.into()), ..Image::default() })
                .unwrap()
        })
        .into();
    layout.tag("all", &layout.index(&manifests).unwrap()).unwrap();
    let source = format!("oci:{}:all", scratch.path().display());
    let base = world().registry.push(&source, "platforms:1").unwrap();
    let (accelerated, report) = convert(&base).unwrap();
    assert_eq!(report["images"].as_array().unwrap().len(), 3);
    assert_eq!(world().registry.manifest(&accelerated).unwrap().0["manifests"].as_array().unwrap().len(), 6);
    clipper_ok(&["check", &accelerated]).unwrap();
    let target = format!("{}_arm", base);
    let one = clipper_ok(&["convert", "--json", "--platform", "linux/arm64", &base, &target]).unwrap();
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["images"].as_array().unwrap().len(), 1, "{one}");
    assert_eq!(one["images"][0]["platform"], "linux/arm64");
}

#[test]
fn damaged_layers_are_refused() {
    let registry = Registry::start().unwrap();
    let base = registry.push_cached("busybox").unwrap();
    refused(&registry, &base);
    let source = format!("docker://{base}");
    refused(&registry, &registry.push_zstd(&source, "busybox-zstd:latest").unwrap());
}

fn refused(registry: &Registry, base: &str) {
    let repository = base.split_once('/').unwrap().1.rsplit_once(':').unwrap().0;
    let (manifest, _) = registry.manifest(base).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let file = registry.blob_file(digest);
    let bytes = fs::read(&file).unwrap();
    for at in [0, 10, bytes.len() / 2, bytes.len() - 3] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&file, &damaged).unwrap();
        let run = clipper_output(&["convert", base]).unwrap();
        assert_eq!(run.status.code(), Some(1), "byte {at}");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(said.contains(digest), "byte {at}: {said}");
        assert_eq!(registry.tags(repository).unwrap(), ["latest"], "no tag for a half image");
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn inspect_tells_what_is_in_it() {
    let world = world();
    let inspected: Value =
        serde_json::from_str(&clipper_ok(&["inspect", "--json", &world.small.accelerated]).unwrap()).unwrap();
    let image = inspected.as_array().map_or(&inspected, |all| &all[0]);
    let image = image["images"].as_array().map_or(image, |all| &all[0]);
    assert_eq!(image["needs_base"], true, "{inspected}");
    let layers: Vec<&str> =
        image["layers"].as_array().unwrap().iter().filter_map(|layer| layer["digest"].as_str()).collect();
    assert_eq!(layers, world.small.layers());
    let text = clipper_ok(&["inspect", &world.small.accelerated]).unwrap();
    assert!(text.contains("base image"), "{text}");
}

#[test]
fn every_command_has_help() {
    for command in ["", "convert", "inspect", "check", "mount", "pull"] {
        let mut args: Vec<&str> = vec![command, "--help"];
        args.retain(|arg| !arg.is_empty());
        let text = clipper_ok(&args).unwrap();
        assert!(text.contains("Usage:"), "{text}");
    }
    assert_eq!(clipper_output(&["no-such-command"]).unwrap().status.code(), Some(2));
}
