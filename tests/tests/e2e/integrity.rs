//! Whatever is damaged, a reader gets an error and never a wrong byte, and the log says which blob it was.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use clipper_tests::clipper::{LazyMount, clipper_output, convert_with};
use clipper_tests::corpus::{noise, text};
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::proxy::{Fault, Proxy};
use clipper_tests::registry::Registry;
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::Value;

/// An image of one layer, in a registry of its own, that tests may damage.
pub struct Victim {
    pub registry: Registry,
    pub accelerated: String,
    report: Value,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Victim {
    /// One with a gzip layer.
    pub fn new() -> Self {
        Self::of("gzip")
    }

    /// One with a gzip layer, and one with a layer of one zstd frame that spans start inside of.
    fn each() -> [Self; 2] {
        ["gzip", "zstd"].map(Self::of)
    }

    fn of(compression: &'static str) -> Self {
        let files = vec![("text", text(7, 5_000_000)), ("noise", noise(7, 3_000_000)), ("small", b"small".to_vec())];
        let scratch = Scratch::new("victim").unwrap();
        let layout = Layout::create(scratch.path()).unwrap();
        let layer = layout
            .layer(&Compression::by_name(compression).unwrap(), |out| {
                let mut tar = TarWriter::new(out);
                for (name, bytes) in &files {
                    tar.entry(&Entry::file(*name, bytes.as_slice()))?;
                }
                tar.finish()?;
                Ok(())
            })
            .unwrap();
        layout.tag("1", &layout.image(&Image { layers: vec![layer], ..Image::default() }).unwrap()).unwrap();
        let registry = Registry::start().unwrap();
        let base = registry.push(&format!("oci:{}:1", scratch.path().display()), "victim:1").unwrap();
        let (accelerated, report) = convert_with(&base, &["--span-size", "128K"]).unwrap();
        assert!(!report["images"][0]["checkpoints"].is_null(), "{compression}: {report}");
        Self { registry, accelerated, report, files }
    }

    pub fn digest(&self, part: &str) -> String {
        let image = &self.report["images"][0];
        let value = if part == "layer" { &image["layers"][0] } else { &image[part]["digest"] };
        value.as_str().unwrap().to_owned()
    }

    /// Mounts it afresh and reads every file: `None` where the mount was refused, else how many files failed. Panics at
    /// the first byte that is wrong.
    fn read_all(&self, reference: &str) -> Option<(usize, String)> {
        let mount = LazyMount::start(reference).ok()?;
        Some((self.failed(&mount), mount.log()))
    }

    /// Reads every file: how many failed. Panics at the first byte that is wrong.
    pub fn failed(&self, mount: &LazyMount) -> usize {
        let right = |(name, expected): &&(&str, Vec<u8>)| !reads_right(&mount.path().join(name), expected);
        self.files.iter().filter(right).count()
    }
}

/// Reads a file in small pieces: each is right or an error. Whether all of it could be read.
fn reads_right(path: &Path, expected: &[u8]) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let (mut at, mut buffer) = (0, vec![0; 16 << 10]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => {
                assert_eq!(at, expected.len(), "{} ends early", path.display());
                return true;
            }
            Ok(read) => {
                assert!(buffer[..read] == expected[at..at + read], "wrong bytes in {} after {at}", path.display());
                at += read;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "EIO, not {error}");
                return false;
            }
        }
    }
}

/// Damages a file of the registry's storage, runs something, and mends it.
fn with_damage<T>(file: &Path, damage: impl FnOnce(&mut Vec<u8>), then: impl FnOnce() -> T) -> T {
    let bytes = fs::read(file).unwrap();
    let mut damaged = bytes.clone();
    damage(&mut damaged);
    fs::write(file, damaged).unwrap();
    let result = then();
    fs::write(file, bytes).unwrap();
    result
}

#[test]
fn undamaged_it_reads_right() {
    Victim::each().into_iter().for_each(|victim| {
        let (failed, log) = victim.read_all(&victim.accelerated).expect("mounts");
        assert_eq!(failed, 0, "{log}");
    });
}

#[test]
fn flipped_bytes_of_the_layer() {
    Victim::each().into_iter().for_each(|victim| {
        let layer = victim.digest("layer");
        let file = victim.registry.blob_file(&layer);
        let size = fs::metadata(&file).unwrap().len() as usize;
        for at in [1000, size / 3, size / 2, size - 1_000_000] {
            let (failed, log) =
                with_damage(&file, |bytes| bytes[at] ^= 1, || victim.read_all(&victim.accelerated)).expect("mounts");
            assert!(failed >= 1, "byte {at}");
            assert!(log.contains(&layer), "byte {at}: the log names the blob: {log}");
        }
    });
}

#[test]
fn a_truncated_or_missing_layer() {
    Victim::each().into_iter().for_each(|victim| {
        let layer = victim.digest("layer");
        let file = victim.registry.blob_file(&layer);
        let (failed, log) =
            with_damage(&file, |bytes| bytes.truncate(bytes.len() / 2), || victim.read_all(&victim.accelerated))
                .expect("mounts");
        assert!(failed >= 1 && log.contains(&layer), "{failed} {log}");
        let aside = file.with_extension("aside");
        fs::rename(&file, &aside).unwrap();
        let (failed, log) = victim.read_all(&victim.accelerated).expect("mounts");
        assert!(failed == 3 && log.contains(&layer), "{failed} {log}");
        fs::rename(&aside, &file).unwrap();
        assert_eq!(victim.read_all(&victim.accelerated).expect("mounts").0, 0);
    });
}

#[test]
fn swapped_pieces_of_the_layer() {
    Victim::each().into_iter().for_each(|victim| {
        let file = victim.registry.blob_file(&victim.digest("layer"));
        let swap = |bytes: &mut Vec<u8>| {
            let half = bytes.len() / 2;
            let (front, back) = bytes.split_at_mut(half);
            front[half / 2..half / 2 + 300_000].swap_with_slice(&mut back[..300_000]);
        };
        let (failed, _) = with_damage(&file, swap, || victim.read_all(&victim.accelerated)).expect("mounts");
        assert!(failed >= 1);
    });
}

#[test]
fn a_damaged_index_is_refused() {
    Victim::each().into_iter().for_each(|victim| {
        let index = victim.digest("index");
        let file = victim.registry.blob_file(&index);
        let size = fs::metadata(&file).unwrap().len() as usize;
        let flips = (0..12).map(|step| step * (size - 1) / 11);
        for at in flips {
            let run = with_damage(
                &file,
                |bytes| bytes[at] ^= 0x40,
                || clipper_output(&["check", &victim.accelerated]).unwrap(),
            );
            assert_eq!(run.status.code(), Some(1), "byte {at}");
            let said = String::from_utf8_lossy(&run.stderr);
            assert!(said.contains(&index), "byte {at}: {said}");
        }
        assert!(with_damage(&file, |bytes| bytes.truncate(100), || victim.read_all(&victim.accelerated)).is_none());
    });
}

#[test]
fn damaged_checkpoints_yield_errors() {
    Victim::each().into_iter().for_each(|victim| {
        let checkpoints = victim.digest("checkpoints");
        let file = victim.registry.blob_file(&checkpoints);
        let size = fs::metadata(&file).unwrap().len() as usize;
        let mut failures = 0;
        for at in (0..8).map(|step| step * (size - 1) / 7) {
            // A checkpoint that no read needs may be damaged without anybody noticing; a wrong byte is always noticed.
            failures += with_damage(&file, |bytes| bytes[at] ^= 0x40, || victim.read_all(&victim.accelerated))
                .map_or(1, |seen| seen.0);
        }
        let cut = with_damage(&file, |bytes| bytes.truncate(size / 2), || reads_backwards(&victim));
        assert!(failures + cut > 0, "damage to checkpoints is noticed");
    });
}

/// Reads single pieces from the end to the start, so that every span starts from its own checkpoint. How many failed.
fn reads_backwards(victim: &Victim) -> usize {
    use std::os::unix::fs::FileExt;
    let Ok(mount) = LazyMount::start(&victim.accelerated) else { return 1 };
    let mut failed = 0;
    for (name, expected) in &victim.files {
        let file = File::open(mount.path().join(name)).unwrap();
        for at in (0..expected.len()).step_by(300_000).rev() {
            let mut piece = vec![0; 4096.min(expected.len() - at)];
            match file.read_exact_at(&mut piece, at as u64) {
                Ok(()) => assert!(piece == expected[at..at + piece.len()], "wrong bytes in {name} at {at}"),
                Err(_) => failed += 1,
            }
        }
    }
    failed
}

#[test]
fn bytes_changed_on_the_way() {
    Victim::each().into_iter().for_each(|victim| {
        let layer = victim.digest("layer");
        let proxy = Proxy::start(victim.registry.address(), Duration::ZERO).unwrap();
        let reference = proxy.by_way(&victim.accelerated);
        proxy.rule(&layer, Fault::Flip(400_000), None);
        let (failed, log) = victim.read_all(&reference).expect("mounts");
        assert!(failed >= 1 && log.contains(&layer), "{log}");
    });
}

#[test]
fn a_registry_that_stumbles_is_asked_again() {
    Victim::each().into_iter().for_each(|victim| {
        let layer = victim.digest("layer");
        let proxy = Proxy::start(victim.registry.address(), Duration::ZERO).unwrap();
        let reference = proxy.by_way(&victim.accelerated);
        proxy.rule("/manifests/", Fault::Status(503), Some(1));
        proxy.rule(&layer, Fault::Status(429), Some(1));
        proxy.rule(&layer, Fault::Cut(70_000), Some(1));
        proxy.rule(&layer, Fault::IgnoreRange, Some(1));
        let (failed, log) = victim.read_all(&reference).expect("mounts");
        assert_eq!(failed, 0, "{log}");
    });
}
