//! Layers that are lazy already, zstd in many frames and gzip with a member for each file: indexed without checkpoints,
//! and read as any other.

use std::fs;
use std::io::{Read, Write};
use std::sync::OnceLock;

use clipper_tests::clipper::clipper_ok;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::corpus::{noise, text};
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::{Entry, TarWriter};
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::fidelity::compare;
use crate::run::Node;
use crate::world::{Converted, world};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A file that only a few of its spans are read of.
const LARGE: &str = "data/large";

/// An image with a layer of every make: busybox in frames of uneven sizes, files as zstd:chunked and as eStargz have
/// them, and what pzstd writes.
fn image() -> &'static Converted {
    static IMAGE: OnceLock<Converted> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let scratch = Scratch::new("frames").unwrap();
        let layout = Layout::create(scratch.path()).unwrap();
        let busybox = world().registry.blob_file(&world().busybox.layers()[0]);
        let mut tar = Vec::new();
        MultiGzDecoder::new(fs::File::open(busybox).unwrap()).read_to_end(&mut tar).unwrap();
        let frames = layout.layer(&Compression::by_name("frames").unwrap(), |out| Ok(out.write_all(&tar)?)).unwrap();
        let pzstd = layout
            .layer(&Compression::by_name("pzstd").unwrap(), |out| {
                let mut tar = TarWriter::new(out);
                tar.entry(&Entry::dir("data"))?;
                tar.entry(&Entry::file(LARGE, large()))?;
                tar.finish()?;
                Ok(())
            })
            .unwrap();
        let (chunked_tar, chunked) = chunked();
        let (estargz_tar, estargz) = estargz();
        let layers = vec![
            frames,
            layout.packed(ZSTD, &chunked_tar, &chunked).unwrap(),
            layout.packed(GZIP, &estargz_tar, &estargz).unwrap(),
            pzstd,
        ];
        let config = json!({"Cmd": ["/bin/sh"]});
        layout.tag("1", &layout.image(&Image { layers, config, ..Image::default() }).unwrap()).unwrap();
        let source = format!("oci:{}:1", scratch.path().display());
        Converted::from(world().registry.push_as_is(&source, "frames:1").unwrap())
    })
}

fn large() -> Vec<u8> {
    (0..30).flat_map(|part| if part % 2 == 0 { noise(part, 1 << 20) } else { text(part, 1 << 20) }).collect()
}

/// A tar of files of up to `largest` bytes below `dir`, cut into headers and contents.
fn parts(dir: &str, largest: usize) -> Vec<Vec<u8>> {
    let mut entries = vec![Entry::dir(dir)];
    for (number, size) in [1, 100, 511, 512, 4096, 70_000, 300_000, 900_000, 5, largest, 0, 33].into_iter().enumerate()
    {
        entries.push(Entry::file(format!("{dir}/text-{number}"), text(size as u64, size)));
        entries.push(Entry::file(format!("{dir}/noise-{number}"), noise(size as u64, size / 3)));
    }
    let mut parts = Vec::new();
    for entry in &entries {
        let mut tar = TarWriter::new(Vec::new());
        tar.entry(entry).unwrap();
        let mut bytes = tar.finish().unwrap();
        bytes.truncate(bytes.len() - 1024);
        let content = bytes.split_off(512);
        parts.extend([bytes, content]);
    }
    parts.push(vec![0; 1024]);
    parts.retain(|part| !part.is_empty());
    parts
}

/// As podman writes it: a frame for each header and each file, a manifest and a footer in skippable frames.
fn chunked() -> (Vec<u8>, Vec<u8>) {
    let parts = parts("chunked", 2_000_000);
    let mut blob: Vec<u8> = parts.iter().flat_map(|part| zstd::stream::encode_all(&part[..], 3).unwrap()).collect();
    for skipped in [&[1; 3000][..], &[2; 64]] {
        blob.extend([0x50, 0x2a, 0x4d, 0x18]);
        blob.extend((skipped.len() as u32).to_le_bytes());
        blob.extend(skipped);
    }
    (parts.concat(), blob)
}

/// As stargz-snapshotter writes it: a member for each header and each file, the table of contents as the last file, and
/// an empty member as the footer. No file is longer than a span: inside of one that is, checkpoints save decoding.
fn estargz() -> (Vec<u8>, Vec<u8>) {
    let mut parts = parts("estargz", 1_000_000);
    let mut toc = TarWriter::new(Vec::new());
    toc.entry(&Entry::file("stargz.index.json", text(9, 40_000))).unwrap();
    let end = parts.len() - 1;
    parts[end] = toc.finish().unwrap();
    let member = |part: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    let mut blob: Vec<u8> = parts.iter().flat_map(|part| member(part)).collect();
    blob.extend(member(b""));
    (parts.concat(), blob)
}

#[test]
fn they_need_no_checkpoints() {
    let image = image();
    let made = &image.report["images"][0];
    assert!(made["checkpoints"].is_null(), "{made}");
    let inspected: Value =
        serde_json::from_str(&clipper_ok(&["inspect", "--json", &image.accelerated]).unwrap()).unwrap();
    let inspected = &inspected[0];
    assert!(inspected["checkpoints"].is_null() && inspected["checkpoints_size"] == 0, "{inspected}");
    let layers = inspected["layers"].as_array().unwrap();
    let formats: Vec<&str> = layers.iter().filter_map(|layer| layer["format"].as_str()).collect();
    assert_eq!(formats, ["zstd frames", "zstd frames", "gzip members", "zstd frames"]);
    assert!(layers.iter().all(|layer| layer["spans"] == layer["spans_without_checkpoint"]), "{inspected}");
    let text = clipper_ok(&["inspect", &image.accelerated]).unwrap();
    assert!(text.contains("none needed") && text.contains("zstd frames") && text.contains("gzip members"), "{text}");
}

#[test]
fn check_finds_no_difference() {
    clipper_ok(&["check", &image().accelerated]).unwrap();
}

#[test]
fn they_look_as_containerd_unpacks_them() {
    let found = compare(image(), &Containerd::start(Settings::overlayfs()).unwrap(), &Node::new());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn they_run_before_they_are_downloaded() {
    let (node, image) = (Node::new(), image());
    let reference = node.proxy.by_way(&image.accelerated);
    let pulled = node.pull(&reference);
    assert!(pulled["layers"].as_array().unwrap().iter().all(|layer| layer["lazy"] == true), "{pulled}");
    for layer in image.layers() {
        assert_eq!(node.proxy.bytes_of(&layer), 0, "the pull fetched of {layer}");
    }
    let script =
        format!("dd if=/{LARGE} bs=1M skip=3 count=1 2>/dev/null | head -c 60; cat /estargz/text-1 /chunked/text-1");
    let said = node.containerd.run("clipper", &reference, "lazy", &["sh", "-c", &script]).unwrap();
    let wanted = [&text(3, 1 << 20)[..60], &text(100, 100), &text(100, 100)].concat();
    assert_eq!(said.as_bytes(), wanted);
}
