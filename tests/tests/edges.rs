//! The edges between rooms: who may know whom, and where `unsafe` may stand.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clipper_tests::daemon::workspace;

/// The room's own crates and the outside crates that are one room's business, as its Cargo.toml names them.
fn dependencies(room: &str) -> BTreeSet<String> {
    let path = workspace().join(room).join("Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
    let tables = ["dependencies", "build-dependencies"].iter().filter_map(|name| manifest.get(*name)?.as_table());
    tables.flat_map(|table| table.keys().cloned()).collect()
}

/// `snapshotter, converter → mount → device → format, registry`; siblings don't know each other.
const ROOMS: [(&str, &[&str]); 6] = [
    ("crates/format", &[]),
    ("crates/registry", &["clipper-format"]),
    ("crates/device", &["clipper-format", "clipper-registry"]),
    ("crates/mount", &["clipper-format", "clipper-registry", "clipper-device"]),
    ("converter", &["clipper-format", "clipper-registry", "clipper-device", "clipper-mount"]),
    ("snapshotter", &["clipper-format", "clipper-registry", "clipper-device", "clipper-mount"]),
];

#[test]
fn rooms_know_only_what_is_below_them() {
    for (room, allowed) in ROOMS {
        for dependency in dependencies(room).iter().filter(|name| name.starts_with("clipper")) {
            assert!(allowed.contains(&dependency.as_str()), "{room} must not know {dependency}");
        }
    }
}

#[test]
fn each_outside_matter_has_its_rooms() {
    let matters: [(&[&str], &[&str]); 8] = [
        (&["fuser"], &["crates/mount"]),
        (&["tonic", "containerd-client", "prost", "prost-types"], &["snapshotter", "converter"]),
        (&["reqwest", "rustls", "docker_credential"], &["crates/registry"]),
        // It serves metrics; of HTTP as a client it knows nothing.
        (&["hyper", "prometheus-client"], &["crates/registry", "snapshotter"]),
        (&["redb"], &["snapshotter"]),
        (&["kube", "k8s-openapi"], &["snapshotter"]),
        (&["ring"], &["snapshotter"]),
        (&["clap", "indicatif"], &["snapshotter", "converter"]),
    ];
    for (names, rooms) in matters {
        for (room, _) in ROOMS {
            let known = dependencies(room);
            for name in names.iter().filter(|name| known.contains(**name)) {
                assert!(rooms.contains(&room), "{room} must not know {name}");
            }
        }
    }
    let io = ["tokio", "rustix", "reqwest", "tempfile"];
    assert!(dependencies("crates/format").iter().all(|name| !io.contains(&name.as_str())), "the format does no I/O");
}

#[test]
fn every_member_is_a_known_room() {
    let manifest: toml::Table = fs::read_to_string(workspace().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    for member in members.iter().filter_map(|member| member.as_str()) {
        let known = ROOMS.iter().any(|(room, _)| *room == member) || ["tests", "benches"].contains(&member);
        assert!(known, "{member} has no place in the house: say here what it may know");
        let own: toml::Table =
            fs::read_to_string(workspace().join(member).join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(own["lints"]["workspace"].as_bool(), Some(true), "{member} keeps the house's lints");
    }
}

/// The rooms for `unsafe`, besides that of mounts: what the zstd crate has no safe way to.
const UNSAFE: [&str; 1] = ["crates/format/src/zstd/encoder.rs"];

#[test]
fn unsafe_stands_only_in_its_rooms() {
    let mut found = Vec::new();
    for room in ["crates/format", "crates/registry", "crates/device", "converter", "snapshotter", "tests", "benches"] {
        for file in rust_files(&workspace().join(room)) {
            if UNSAFE.iter().any(|known| file == workspace().join(known)) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let hit = |line: &str| {
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe"]
                    .iter()
                    .any(|word| line.contains(word))
                    && !line.contains('"')
            };
            found.extend(code.filter(|line| hit(line)).map(|line| format!("{}: {line}", file.display())));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    let text = fs::read_to_string(workspace().join("crates/format/src/lib.rs")).unwrap();
    assert!(text.contains("deny(unsafe_code)"), "the format crate allows it where it says so");
    for room in UNSAFE {
        let text = fs::read_to_string(workspace().join(room)).unwrap();
        let (blocks, reasons) = (
            text.matches("unsafe {").count() + text.matches("unsafe impl").count(),
            text.matches("// SAFETY: ").count(),
        );
        assert_eq!(blocks, reasons, "{room}: each has its reason");
    }
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files
}
