//! Copies of accelerated images: everything comes along, digests stay, the tag comes last.

use clipper_tests::clipper::{clipper_ok, clipper_output};
use clipper_tests::layout::Layout;
use clipper_tests::registry::Registry;
use clipper_tests::scratch::Scratch;
use serde_json::Value;

use crate::world::world;

fn copy(args: &[&str]) -> Value {
    serde_json::from_str(&clipper_ok(&[&["copy", "--json"], args].concat()).unwrap()).unwrap()
}

#[test]
fn an_image_moves_to_another_registry_with_its_index() {
    let there = Registry::start().unwrap();
    let source = &world().small.accelerated;
    let target = format!("{}/elsewhere/app:1", there.host());
    let copied = copy(&[source, &target]);
    assert_eq!(copied["digest"], world().small.report["digest"]);
    assert_eq!(copied["blobs"], copied["copied_blobs"]);
    clipper_ok(&["check", &target]).unwrap();
    // Once more, and there is nothing to do.
    let again = copy(&[source, &format!("{}/elsewhere/app", there.host())]);
    assert_eq!((&again["copied_blobs"], &again["digest"]), (&0.into(), &copied["digest"]));
    assert!(again["target"].as_str().unwrap().ends_with("/elsewhere/app:latest_accelerated"));
}

#[test]
fn with_its_base_an_image_moves_to_a_layout_and_on() {
    let scratch = Scratch::new("copy").unwrap();
    Layout::create(scratch.path()).unwrap();
    let layout = format!("oci:{}", scratch.path().display());
    let copied = copy(&["--with-base", &world().small.accelerated, &format!("{layout}:app_accelerated")]);
    assert_eq!(copied["base"], "app");
    let there = Registry::start().unwrap();
    let target = format!("{}/app:2", there.host());
    copy(&[&format!("{layout}:app"), &target]);
    let (_, digest) = there.manifest(&target).unwrap();
    let (_, original) = world().registry.manifest(&world().small.base).unwrap();
    assert_eq!(digest, original, "the base image is the same");
    let failed = clipper_output(&["copy", "--with-base", &world().small.base, &target]).unwrap();
    assert_eq!(failed.status.code(), Some(1));
}

#[test]
fn a_corrupt_blob_is_not_copied_and_no_tag_is_set() {
    let (here, there) = (Registry::start().unwrap(), Registry::start().unwrap());
    let source = here.push_cached("busybox").unwrap();
    let (manifest, _) = here.manifest(&source).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let file = here.blob_file(layer);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let failed = clipper_output(&["copy", &source, &format!("{}/app:1", there.host())]).unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains(layer), "{said}");
    assert!(there.tags("app").map_or(true, |tags| tags.is_empty()));
}
