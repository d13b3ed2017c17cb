//! What a start-up will read, guessed from the image: its command, the interpreters and libraries that takes, and what
//! well-known runtimes always read.
use super::elf::{self, Needs};
use super::files::{Found, ImageFiles};
use super::reader::FileReader;
use clipper_format::tree::InodeId;
use serde_json::Value;
use std::collections::{BTreeSet, VecDeque};

/// Bytes of the largest file that is taken whole; of larger ones only the beginning is sure to be read.
const WHOLE: u64 = 8 << 20;
/// Bytes taken of larger files.
const HEAD: u64 = 512 << 10;
/// Bytes of a script or a configuration file that are looked at.
const TEXT: u64 = 64 << 10;
/// Files that are looked into.
const FILES_MAX: usize = 512;
/// Where libraries are if nothing else says so (ld.so(8)).
const LIBRARY_DIRS: [&str; 4] = ["/lib", "/usr/lib", "/lib64", "/usr/lib64"];
/// What the C library and every shell read.
const ALWAYS: [&str; 6] = [
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
];

/// A file that a start-up is expected to read, from its first byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its path without symlinks.
    pub path: Vec<u8>,
    /// Bytes.
    pub len: u64,
}

/// Guesses what the start of an image with this config blob reads, in order. What can't be read is left out.
pub async fn guess(files: &ImageFiles, reader: &FileReader<'_>, config: &Value) -> Vec<Expected> {
    let config = &config["config"];
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut command = strings(&config["Entrypoint"]);
    command.extend(strings(&config["Cmd"]));
    let path = strings(&config["Env"]).into_iter().find_map(|env| env.strip_prefix("PATH=").map(str::to_owned));
    let path = path.unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let cwd = config["WorkingDir"].as_str().filter(|dir| dir.starts_with('/')).unwrap_or("/").to_owned();
    let mut guess = Guess {
        files,
        reader,
        path,
        cwd,
        found: Vec::new(),
        seen: BTreeSet::new(),
        todo: VecDeque::new(),
        library_dirs: Vec::new(),
    };
    guess.read_library_dirs().await;
    guess.run(&command);
    guess.follow().await;
    for path in ALWAYS {
        guess.take(path.as_bytes());
    }
    guess.found
}

struct Guess<'a> {
    files: &'a ImageFiles,
    reader: &'a FileReader<'a>,
    path: String,
    cwd: String,
    found: Vec<Expected>,
    seen: BTreeSet<InodeId>,
    /// Files to look into.
    todo: VecDeque<Found>,
    library_dirs: Vec<String>,
}

impl Guess<'_> {
    /// Takes a regular file, if it is there.
    fn take(&mut self, path: &[u8]) -> Option<Found> {
        let found = self.files.locate(path)?;
        if !self.files.is_file(found.id) {
            return None;
        }
        if self.seen.insert(found.id) {
            let size = self.files.size(found.id);
            let len = if size <= WHOLE { size } else { HEAD };
            self.found.push(Expected { path: found.path.clone(), len });
            if self.seen.len() <= FILES_MAX {
                self.todo.push_back(found.clone());
            }
        }
        Some(found)
    }

    /// A command: its program, and those of its arguments that are files.
    fn run(&mut self, command: &[String]) {
        let Some((program, arguments)) = command.split_first() else { return };
        if self.program(program).is_none() {
            return;
        }
        // In `sh -c 'exec app …'` the words of the script are the command.
        if let [flag, script, ..] = arguments
            && flag == "-c"
        {
            let words: Vec<String> = script.split_whitespace().map(str::to_owned).collect();
            let rest = words.iter().position(|word| word != "exec" && !word.contains('='));
            self.run(rest.map_or(&[], |first| &words[first..]));
            return;
        }
        for argument in arguments.iter().filter(|argument| !argument.starts_with('-')) {
            let path = self.absolute(argument);
            self.take(path.as_bytes());
        }
    }

    /// A program by its name, as execvp(3) finds it.
    fn program(&mut self, name: &str) -> Option<Found> {
        if name.contains('/') {
            let path = self.absolute(name);
            return self.take(path.as_bytes());
        }
        let dirs: Vec<String> = self.path.split(':').map(str::to_owned).collect();
        dirs.iter().find_map(|dir| self.take(format!("{dir}/{name}").as_bytes()))
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.cwd) }
    }

    /// Looks into what was taken, and takes what that needs, until nothing new comes up.
    async fn follow(&mut self) {
        while let Some(file) = self.todo.pop_front() {
            let head = self.reader.read(self.files, file.id, 0..TEXT).await.unwrap_or_default();
            if let Some(line) = head.strip_prefix(b"#!") {
                self.script(line);
            } else if head.starts_with(elf::MAGIC) {
                match elf::needs(self.files, self.reader, file.id).await {
                    Ok(needs) => self.libraries(&file, needs),
                    Err(error) => tracing::debug!(path = %file.path.escape_ascii(), "not followed: {error:#}"),
                }
            }
            self.runtime(&file);
        }
    }

    /// The first line of a script: its interpreter, or what `env` finds for it (execve(2)).
    fn script(&mut self, line: &[u8]) {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let Some(interpreter) = words.next() else { return };
        self.take(interpreter.as_bytes());
        if interpreter.ends_with("/env")
            && let Some(name) = words.find(|word| !word.starts_with('-') && !word.contains('='))
        {
            self.program(name);
        }
    }

    /// What the dynamic linker loads for a program or library (ld.so(8)).
    fn libraries(&mut self, file: &Found, needs: Needs) {
        if let Some(interpreter) = &needs.interpreter {
            self.take(interpreter);
        }
        let end = file.path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
        let origin = String::from_utf8_lossy(&file.path[..end]).into_owned();
        let own = needs.run_path.iter().map(|dir| dir.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin));
        let dirs: Vec<String> = own.chain(self.library_dirs.iter().cloned()).collect();
        for name in &needs.libraries {
            if name.contains('/') {
                let path = self.absolute(name);
                self.take(path.as_bytes());
            } else {
                // The first directory that has it: as a rule there is no second.
                let _ = dirs.iter().find_map(|dir| self.take(format!("{dir}/{name}").as_bytes()));
            }
        }
    }

    /// What well-known runtimes read before they come to the application.
    fn runtime(&mut self, file: &Found) {
        let path = String::from_utf8_lossy(&file.path).into_owned();
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name.starts_with("python") {
            let prefix = dir.strip_suffix("/bin").unwrap_or(dir);
            for version in self.files.names(format!("{prefix}/lib").as_bytes()) {
                if version.starts_with(b"python3.") {
                    let lib = format!("{prefix}/lib/{}", String::from_utf8_lossy(&version));
                    self.python(&lib);
                }
            }
        } else if name == "java" {
            let home = dir.strip_suffix("/bin").unwrap_or(dir);
            for file in [
                "lib/jvm.cfg",
                "lib/server/libjvm.so",
                "lib/libjava.so",
                "lib/libjimage.so",
                "lib/libnio.so",
                "lib/libnet.so",
                "lib/libzip.so",
                "lib/modules",
                "lib/server/classes.jsa",
                "conf/security/java.security",
            ] {
                self.take(format!("{home}/{file}").as_bytes());
            }
        } else if name.ends_with(".js") || name.ends_with(".mjs") || name.ends_with(".cjs") {
            // Node looks for the package that a script belongs to.
            let parents = path.match_indices('/').map(|(at, _)| format!("{}/package.json", &path[..at]));
            let parents: Vec<String> = parents.collect();
            let _ = parents.iter().rev().find_map(|package| self.take(package.as_bytes()));
        }
    }

    /// The modules that the Python interpreter imports before any other (`python3 -X importtime -c ''`).
    fn python(&mut self, lib: &str) {
        const MODULES: [&str; 16] = [
            "encodings/__init__",
            "codecs",
            "encodings/aliases",
            "encodings/utf_8",
            "io",
            "abc",
            "site",
            "os",
            "stat",
            "_collections_abc",
            "posixpath",
            "genericpath",
            "_sitebuiltins",
            "collections/__init__",
            "types",
            "enum",
        ];
        let tag = lib.rsplit_once("python").map_or("", |(_, version)| version).replace('.', "");
        for module in MODULES {
            let (dir, name) =
                module.rsplit_once('/').map_or((lib.to_owned(), module), |(d, n)| (format!("{lib}/{d}"), n));
            if self.take(format!("{dir}/__pycache__/{name}.cpython-{tag}.pyc").as_bytes()).is_none() {
                self.take(format!("{dir}/{name}.py").as_bytes());
            }
        }
    }

    /// The directories in /etc/ld.so.conf and what it includes, then the usual ones.
    async fn read_library_dirs(&mut self) {
        let mut texts = vec![b"/etc/ld.so.conf".to_vec()];
        let mut read = 0;
        while let Some(path) = texts.pop()
            && read < FILES_MAX
        {
            read += 1;
            let Some(found) = self.files.locate(&path) else { continue };
            let text = self.reader.read(self.files, found.id, 0..TEXT).await.unwrap_or_default();
            for line in String::from_utf8_lossy(&text).lines() {
                let line = line.split('#').next().unwrap_or_default().trim();
                if let Some(pattern) = line.strip_prefix("include ") {
                    texts.extend(self.matching(pattern.trim()));
                } else if line.starts_with('/') {
                    self.library_dirs.push(line.to_owned());
                }
            }
        }
        self.library_dirs.extend(LIBRARY_DIRS.map(str::to_owned));
    }

    /// Files that a pattern such as `/etc/ld.so.conf.d/*.conf` matches; one `*`, in the last name.
    fn matching(&self, pattern: &str) -> Vec<Vec<u8>> {
        let pattern = if pattern.starts_with('/') { pattern.to_owned() } else { format!("/etc/{pattern}") };
        let Some((dir, name)) = pattern.rsplit_once('/') else { return Vec::new() };
        let Some((before, after)) = name.split_once('*') else { return vec![pattern.into_bytes()] };
        let names = self.files.names(dir.as_bytes()).into_iter().rev();
        let fits = |name: &Vec<u8>| {
            name.len() >= before.len() + after.len()
                && name.starts_with(before.as_bytes())
                && name.ends_with(after.as_bytes())
        };
        names.filter(fits).map(|name| [dir.as_bytes(), b"/", &name].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
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
        let input = LayerInput { blob: blob.clone(), media_type: "tar".into(), diff_id: digest };
        let layer = layer::describe(input, 1 << 20, None, &progress.task("layer", 0)).await.unwrap().index.unwrap();
        let files = ImageFiles::merge(vec![layer.index.tree.unpack().unwrap()]).unwrap();
        let layers = [SpanReader { blob, layer: Arc::new(layer) }];
        let found = guess(&files, &FileReader::new(&layers), &json!({ "config": config })).await;
        found.into_iter().map(|expected| String::from_utf8(expected.path).unwrap()).collect()
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
            "/opt/app/start",
            "/opt/app/settings.json",
            "/usr/bin/env",
            "/usr/bin/dash",
            "/usr/lib64/ld-linux-x86-64.so.2",
            "/usr/lib/machine/libc.so.6",
            "/etc/passwd",
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
}
