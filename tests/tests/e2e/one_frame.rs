//! Layers of one zstd frame: described without being repacked, entered inside the frame, and what is refused.

use std::fs;
use std::io::Write;

use clipper_tests::clipper::{clipper_ok, clipper_output, convert, convert_with};
use clipper_tests::corpus::{noise, text};
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::{Value, json};

use crate::run::Node;
use crate::world::world;

const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

fn inspect(reference: &str) -> Value {
    let inspected: Value = serde_json::from_str(&clipper_ok(&["inspect", "--json", reference]).unwrap()).unwrap();
    inspected[0].clone()
}

/// A layout with an image of one layer, which `fill` writes; its reference.
fn layout(scratch: &Scratch, compression: &str, files: &[(&str, Vec<u8>)]) -> String {
    let layout = Layout::create(scratch.path()).unwrap();
    let layer = layout.layer(&Compression::by_name(compression).unwrap(), |out| {
        let mut tar = TarWriter::new(out);
        for (name, bytes) in files {
            tar.entry(&Entry::file(*name, bytes.as_slice()))?;
        }
        tar.finish()?;
        Ok(())
    });
    layout.tag("1", &layout.image(&Image { layers: vec![layer.unwrap()], ..Image::default() }).unwrap()).unwrap();
    format!("oci:{}:1", scratch.path().display())
}

#[test]
fn a_real_image_is_described_for_three_percent() {
    let image = &world().small_zstd;
    let (manifest, _) = world().registry.manifest(&image.base).unwrap();
    let first = &manifest["layers"][0];
    assert_eq!(first["mediaType"], ZSTD);
    let inspected = inspect(&image.accelerated);
    let layers = inspected["layers"].as_array().unwrap();
    let formats: Vec<&str> = layers.iter().filter_map(|layer| layer["format"].as_str()).collect();
    assert!(formats[0] == "zstd" && !formats.contains(&"gzip"), "{formats:?}");
    assert_eq!(inspected["needs_base"], true);
    for layer in layers.iter().filter(|layer| layer["size"].as_u64().unwrap() > 1 << 20) {
        assert!(layer["overhead_percent"].as_f64().unwrap() < 3.0, "{layer}");
    }
    assert!(layers[0]["spans"].as_u64().unwrap() > 10 && layers[0]["checkpoints_size"].as_u64().unwrap() > 0);
    let text = clipper_ok(&["inspect", &image.accelerated]).unwrap();
    assert!(text.contains("longest") && text.contains("overhead"), "{text}");
}

#[test]
fn check_finds_no_difference() {
    clipper_ok(&["check", &world().small_zstd.accelerated]).unwrap();
}

#[test]
fn converting_again_reuses_and_anew_gives_the_same() {
    let image = &world().small_zstd;
    let (_, again) = convert(&image.base).unwrap();
    assert!(again["layers"].as_array().unwrap().iter().all(|layer| layer["reused"] == true), "{again}");
    let (_, anew) = convert_with(&image.base, &["--no-reuse"]).unwrap();
    assert_eq!((&again["digest"], &anew["digest"]), (&image.report["digest"], &image.report["digest"]));
}

#[test]
fn it_runs_before_it_is_downloaded() {
    let (node, image) = (Node::new(), &world().small_zstd);
    let reference = node.proxy.by_way(&image.accelerated);
    let pulled = node.pull(&reference);
    assert!(pulled["layers"].as_array().unwrap().iter().all(|layer| layer["lazy"] == true), "{pulled}");
    for layer in image.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the pull fetched of {layer}");
    }
    let said = node.containerd.run("clipper", &reference, "hello", &[]).unwrap();
    assert_eq!(said, "hello from the small image\n");
}

#[test]
fn every_make() {
    let files = [("text", text(1, 12 << 20)), ("noise", noise(2, 3 << 20)), ("more", text(3, 6 << 20))];
    for make in ["zstd-1", "zstd", "zstd-9", "zstd-long", "zstd-threads"] {
        let scratch = Scratch::new("make").unwrap();
        let (accelerated, report) = convert(&layout(&scratch, make, &files)).unwrap();
        let spans = report["layers"][0]["spans"].as_u64().unwrap();
        assert!(spans > 1, "{make}: {report}");
        clipper_ok(&["check", &accelerated]).unwrap();
    }
}

#[test]
fn a_frame_that_is_dear_to_enter_works_with_a_warning() {
    // The same bytes again, 40 MiB later: nothing of them is in the layer a second time, but all in checkpoints.
    let (scratch, repeated) = (Scratch::new("dear").unwrap(), noise(4, 40 << 20));
    let source = layout(&scratch, "zstd-long", &[("a", repeated.clone()), ("b", repeated.clone()), ("c", repeated)]);
    let run = clipper_output(&["convert", &source]).unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("warning") && said.contains("--mode full"), "{said}");
    clipper_ok(&["check", &format!("{source}_accelerated")]).unwrap();
}

#[test]
fn a_frame_that_needs_a_dictionary_is_a_clear_error() {
    let scratch = Scratch::new("dictionary").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    // A frame whose header names dictionary 77, and a last block of one byte.
    let blob = [0x28, 0xb5, 0x2f, 0xfd, 1, 0x58, 77, 9, 0, 0, b'x'];
    let layer = layout.packed(ZSTD, b"x", &blob).unwrap();
    let digest = layer.descriptor["digest"].as_str().unwrap().to_owned();
    layout.tag("1", &layout.image(&Image { layers: vec![layer], ..Image::default() }).unwrap()).unwrap();
    let run = clipper_output(&["convert", &format!("oci:{}:1", scratch.path().display())]).unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(1));
    assert!(said.contains(&digest) && said.contains("needs the dictionary 77"), "{said}");
    let index: Value = serde_json::from_slice(&fs::read(scratch.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1, "nothing was published");
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    let scratch = Scratch::new("other").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let mut tar = TarWriter::new(Vec::new());
    tar.entry(&Entry::file("file", text(5, 10 << 20))).unwrap();
    let tar = tar.finish().unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&tar).unwrap();
    let mut layer = layout.packed(ZSTD, &tar, &encoder.finish().unwrap()).unwrap();
    layer.diff_id = format!("sha256:{}", "0".repeat(64));
    let digest = layer.descriptor["digest"].clone();
    layout.tag("1", &layout.image(&Image { layers: vec![layer], ..Image::default() }).unwrap()).unwrap();
    let run = clipper_output(&["convert", &format!("oci:{}:1", scratch.path().display())]).unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(json!(run.status.code()) == 1 && said.contains(digest.as_str().unwrap()), "{said}");
}
