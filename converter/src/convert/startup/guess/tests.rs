//! Guesses over small images made for the purpose.
use super::*;
use crate::cli::Cli;
use crate::convert::layer::{self, LayerInput};
use crate::convert::startup::reader::SpanReader;
use crate::report::Progress;
use clap::Parser;
use clipper_format::Digest;
use clipper_registry::{Client, ClientOptions};
use clipper_tests::tarball::{Entry, TarWriter};
use serde_json::json;
use std::sync::Arc;

/// What is guessed of an image of one layer: paths.
async fn guessed(entries: &[Entry], config: Value) -> Vec<String> {
    let found = guessed_parts(entries, config).await;
    found.into_iter().map(|expected| String::from_utf8(expected.path).unwrap()).collect()
}

async fn guessed_parts(entries: &[Entry], config: Value) -> Vec<Expected> {
    let mut writer = TarWriter::new(Vec::new());
    entries.iter().for_each(|entry| writer.entry(entry).unwrap());
    let tar = writer.finish().unwrap();
    let (dir, digest) = (tempfile::tempdir().unwrap(), Digest::of(&tar));
    std::fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
    std::fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(dir.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), &tar).unwrap();
    let reference = format!("oci:{}:x", dir.path().display()).parse().unwrap();
    let blob = Client::new(ClientOptions::default()).unwrap().repository(&reference).unwrap();
    let blob = blob.blob(digest, tar.len() as u64);
    let progress = Progress::new(&Cli::parse_from(["clipper", "--quiet", "inspect", "oci:x"]).common);
    let input = LayerInput { blob: blob.clone(), diff_id: digest, zstd: false };
    let layer = layer::describe(input, 1 << 20, None, &progress.task("layer", 0)).await.unwrap().index;
    let files = ImageFiles::merge(vec![layer.index.tree.unpack().unwrap()]).unwrap();
    let layers = [SpanReader { blob, layer: Arc::new(layer) }];
    guess(&files, &FileReader::new(&layers), &json!({ "config": config })).await
}

#[tokio::test]
async fn scripts_lead_to_interpreters_and_those_to_libraries() {
    // A program of this machine: where its linker and its libraries are, they are in the image, too.
    let shell = std::fs::read("/bin/sh").unwrap();
    let entries = [
        Entry::file("opt/app/start", "#!/usr/bin/env -S sh -e\nexec something\n"),
        Entry::file("opt/app/settings.json", "{}"),
        Entry::file("usr/bin/env", "not really"),
        Entry::file("usr/bin/dash", shell),
        Entry::symlink("usr/bin/sh", "dash"),
        Entry::symlink("lib64", "usr/lib64"),
        Entry::file("usr/lib64/ld-linux-x86-64.so.2", "the linker"),
        Entry::file("etc/ld.so.conf", "# comment\ninclude /etc/ld.so.conf.d/*.conf\n"),
        Entry::file("etc/ld.so.conf.d/machine.conf", "/usr/lib/machine\n"),
        Entry::file("usr/lib/machine/libc.so.6", "the library"),
        Entry::file("usr/lib/machine/libother.so", "not needed"),
        Entry::file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
    ];
    let config = json!({
        "Entrypoint": ["start"],
        "Cmd": ["--verbose", "settings.json"],
        "Env": ["PATH=/opt/app:/usr/bin"],
        "WorkingDir": "/opt/app",
    });
    let found = guessed(&entries, config).await;
    let expected = [
        "/etc/passwd",
        "/opt/app/start",
        "/opt/app/settings.json",
        "/usr/bin/env",
        "/usr/bin/dash",
        "/usr/lib64/ld-linux-x86-64.so.2",
        "/usr/lib/machine/libc.so.6",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn shells_are_looked_through_and_what_is_missing_is_left_out() {
    let entries = [
        Entry::file("bin/sh", "#!/bin/busybox sh\n"),
        Entry::file("usr/local/bin/node", "\x7fELF but torn"),
        Entry::file("app/index.js", "x"),
        Entry::file("app/package.json", "{}"),
    ];
    let config = json!({ "Cmd": ["/bin/sh", "-c", "PORT=80 exec node app/index.js && other"] });
    let found = guessed(&entries, config).await;
    assert_eq!(found, ["/bin/sh", "/usr/local/bin/node", "/app/index.js", "/app/package.json"]);
    assert_eq!(guessed(&entries, json!({ "Cmd": ["none"] })).await, [""; 0]);
    assert_eq!(guessed(&entries, json!(null)).await, [""; 0]);
}

#[tokio::test]
async fn modules_for_node_are_found_as_node_finds_them() {
    let entries = [
        Entry::file("usr/bin/node", "the interpreter"),
        Entry::file("app/bin/start", "#!/usr/bin/env node\nrequire('../lib')\n"),
        Entry::file("usr/bin/env", "not really"),
        Entry::file("app/package.json", "{}"),
        Entry::file("app/lib/index.js", "import a from 'a'; import '@s/b/sub'; require('fs'); require('none')"),
        Entry::file("app/node_modules/a/package.json", r#"{"main": "./out"}"#),
        Entry::file("app/node_modules/a/out.js", "require('./data'); require('c')"),
        Entry::file("app/node_modules/a/data.json", "{}"),
        Entry::file("app/node_modules/a/node_modules/c/index.js", "require('/etc/app.js')"),
        Entry::file("app/node_modules/c/index.js", "the wrong one"),
        Entry::file("app/node_modules/fs/index.js", "never: Node.js has its own"),
        Entry::file("app/node_modules/@s/b/package.json", r#"{"exports": {"./sub": {"import": "./m.mjs"}}}"#),
        Entry::file("app/node_modules/@s/b/m.mjs", ""),
        Entry::file("etc/app.js", ""),
    ];
    let found = guessed(&entries, json!({ "Cmd": ["/app/bin/start"] })).await;
    let expected = [
        "/app/bin/start",
        "/usr/bin/env",
        "/usr/bin/node",
        "/app/package.json",
        "/app/lib/index.js",
        "/app/node_modules/a/package.json",
        "/app/node_modules/a/out.js",
        "/app/node_modules/a/data.json",
        "/app/node_modules/a/node_modules/c/index.js",
        "/etc/app.js",
        "/app/node_modules/@s/b/package.json",
        "/app/node_modules/@s/b/m.mjs",
    ];
    let sorted = |mut paths: Vec<String>| {
        paths.sort();
        paths
    };
    assert_eq!(sorted(found), sorted(expected.map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn modules_for_python_are_found_as_python_finds_them() {
    let lib = "usr/lib/python3.11";
    let packages = "usr/local/lib/python3.11/dist-packages";
    let entries = [
        Entry::file("usr/bin/python3.11", "the interpreter"),
        Entry::symlink("usr/bin/python3", "python3.11"),
        Entry::file(format!("{lib}/os.py"), "import stat\n"),
        Entry::file(format!("{lib}/stat.py"), ""),
        Entry::file(format!("{lib}/__pycache__/stat.cpython-311.pyc"), "compiled"),
        Entry::file(format!("{lib}/unused.py"), ""),
        Entry::file(format!("{lib}/lib-dynload/_fast.cpython-311-machine.so"), "native"),
        Entry::file(format!("{packages}/server/__init__.py"), "from . import config\n"),
        Entry::file(format!("{packages}/server/__main__.py"), "import _fast\n"),
        Entry::file(format!("{packages}/server/config.py"), "def late():\n    import unused\n"),
        Entry::file("srv/service.py", "from server.config import thing\n"),
    ];
    let config = json!({ "Cmd": ["python3", "-m", "server", "service:app"], "WorkingDir": "/srv" });
    let mut found = guessed(&entries, config).await;
    found.sort();
    let mut expected = [
        "/usr/bin/python3.11".to_owned(),
        format!("/{lib}/os.py"),
        format!("/{lib}/__pycache__/stat.cpython-311.pyc"),
        format!("/{lib}/lib-dynload/_fast.cpython-311-machine.so"),
        format!("/{packages}/server/__init__.py"),
        format!("/{packages}/server/__main__.py"),
        format!("/{packages}/server/config.py"),
        "/srv/service.py".to_owned(),
    ];
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn servers_are_known() {
    let entries = [
        Entry::file("bin/entry", "#!/bin/sh\nset -e\nif true; then exec \"$@\"; fi\n"),
        Entry::file("bin/sh", "a shell"),
        Entry::file("usr/lib/postgresql/15/bin/postgres", "the server"),
        Entry::file("usr/lib/postgresql/15/bin/initdb", "its tool"),
        Entry::file("usr/share/postgresql/15/postgres.bki", "the catalogue"),
        Entry::file("usr/share/postgresql/15/unknown.txt", "not read"),
        Entry::file("usr/lib/locale/locale-archive", "languages"),
    ];
    let path = "PATH=/bin:/usr/lib/postgresql/15/bin";
    let config = json!({ "Entrypoint": ["entry"], "Cmd": ["postgres"], "Env": [path, "LANG=de_DE.UTF-8"] });
    let mut found = guessed(&entries, config).await;
    found.sort();
    let expected = [
        "/bin/entry",
        "/bin/sh",
        "/usr/lib/locale/locale-archive",
        "/usr/lib/postgresql/15/bin/initdb",
        "/usr/lib/postgresql/15/bin/postgres",
        "/usr/share/postgresql/15/postgres.bki",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_is_taken_stays_within_bounds() {
    let many: Vec<Entry> = (0..6).map(|n| Entry::file(format!("srv/{n}"), vec![0; 24 << 20])).collect();
    let mut entries = vec![Entry::file("bin/run", "a program")];
    entries.extend(many);
    let command: Vec<String> =
        std::iter::once("/bin/run".to_owned()).chain((0..6).map(|n| format!("/srv/{n}"))).collect();
    let mut files = guessed_parts(&entries, json!({ "Cmd": command })).await;
    assert_eq!(files.remove(0).ranges, std::slice::from_ref(&(0..9)));
    // Nothing is known of them but that they are large.
    let head = std::slice::from_ref(&(0..HEAD));
    assert!(files.len() == 6 && files.iter().all(|file| file.ranges == head), "{files:?}");
}

#[tokio::test]
async fn a_package_whose_place_is_asked_for_is_looked_through() {
    let entries = [
        Entry::file("usr/bin/node", "node"),
        Entry::file("app/start.js", "const dir = require.resolve('p'); require.resolve('q/package.json')"),
        Entry::file("app/node_modules/p/package.json", r#"{"main": "index.js"}"#),
        Entry::file("app/node_modules/p/index.js", ""),
        Entry::file("app/node_modules/p/core/deep/node.js", "require('dependency')"),
        Entry::file("app/node_modules/p/core/deep/node.html", ""),
        Entry::file("app/node_modules/p/core/deep/icon.png", "not loaded"),
        Entry::file("app/node_modules/p/test/node.js", "not loaded"),
        Entry::file("app/node_modules/p/core/large.js", vec![b' '; 300 << 10]),
        Entry::file("app/node_modules/dependency/index.js", ""),
        Entry::file("app/node_modules/q/package.json", "{}"),
        Entry::file("app/node_modules/q/lib/other.js", "only its description is asked for"),
    ];
    let mut found = guessed(&entries, json!({ "Cmd": ["node", "/app/start.js"] })).await;
    found.sort();
    let expected = [
        "/app/node_modules/dependency/index.js",
        "/app/node_modules/p/core/deep/node.html",
        "/app/node_modules/p/core/deep/node.js",
        "/app/node_modules/p/index.js",
        "/app/node_modules/p/package.json",
        "/app/node_modules/q/package.json",
        "/app/start.js",
        "/usr/bin/node",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_new_cluster_reads_the_extensions_that_its_scripts_create() {
    let extensions = "usr/share/postgresql/15/extension";
    let library = "usr/lib/postgresql/15/lib";
    let entries = [
        Entry::file("usr/lib/postgresql/15/bin/postgres", "server"),
        Entry::file("usr/lib/postgresql/15/bin/psql", "client"),
        Entry::file("usr/share/postgresql/15/postgres.bki", ""),
        Entry::file("docker-entrypoint-initdb.d/1.sql", "CREATE EXTENSION place;"),
        Entry::symlink(format!("{extensions}/place.control"), "place-3.control"),
        Entry::file(
            format!("{extensions}/place-3.control"),
            "default_version = '3.1'\nmodule_pathname = '$libdir/place-3'\nrequires = 'other'\n",
        ),
        Entry::file(format!("{extensions}/place--3.1.sql"), ""),
        Entry::file(format!("{extensions}/place--3.0.sql"), "not this version"),
        Entry::file(format!("{extensions}/other.control"), "default_version = '2'\n"),
        Entry::file(format!("{extensions}/other--1.sql"), ""),
        Entry::file(format!("{extensions}/other--1--2.sql"), ""),
        Entry::file(format!("{extensions}/unused.control"), ""),
        Entry::file(format!("{library}/place-3.so"), "library"),
    ];
    let found = guessed(&entries, json!({ "Cmd": ["/usr/lib/postgresql/15/bin/postgres"] })).await;
    let wanted = ["place-3.control", "place--3.1.sql", "other.control", "other--1.sql", "other--1--2.sql"];
    for name in wanted {
        assert!(found.contains(&format!("/{extensions}/{name}")), "{name}: {found:?}");
    }
    assert!(found.contains(&format!("/{library}/place-3.so")) && found.iter().any(|path| path.ends_with("/psql")));
    assert!(
        !found.iter().any(|path| path.ends_with("place--3.0.sql") || path.ends_with("unused.control")),
        "{found:?}"
    );
}

#[tokio::test]
async fn perl_scripts_lead_to_modules_and_their_machine_code() {
    let entries = [
        Entry::file("usr/bin/perl", "perl"),
        Entry::file("usr/bin/tool", "#!/usr/bin/perl\nuse A::B;\nuse Missing;\n"),
        Entry::file("usr/share/perl5/A/B.pm", "package A::B;\nrequire C;\n1;\n"),
        Entry::file("usr/lib/machine/perl-base/C.pm", "1;"),
        Entry::file("usr/lib/machine/perl/5.36/auto/C/C.so", "code"),
        Entry::file("usr/share/perl5/D.pm", "not used"),
    ];
    let mut found = guessed(&entries, json!({ "Cmd": ["tool"] })).await;
    found.sort();
    let expected = [
        "/usr/bin/perl",
        "/usr/bin/tool",
        "/usr/lib/machine/perl-base/C.pm",
        "/usr/lib/machine/perl/5.36/auto/C/C.so",
        "/usr/share/perl5/A/B.pm",
    ];
    assert_eq!(found, expected);
}
