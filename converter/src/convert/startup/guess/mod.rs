//! What a start-up will read, guessed from the image: its command, the interpreters and libraries that takes, the modules
//! that its scripts load, and what well-known programs always read.
mod elf;
mod java;
mod jimage;
mod loader;
mod node;
mod perl;
mod postgres;
mod python;
mod shell;

use super::files::{Found, ImageFiles};
use super::reader::FileReader;
use clipper_format::tree::InodeId;
use futures::future::join_all;
use loader::Loader;
use node::Packages;
use perl::Perl;
use postgres::{FIRST_SCRIPTS, Postgres};
use python::Python;
use serde_json::Value;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// Bytes of the largest file that is taken whole.
const WHOLE: u64 = 8 << 20;
/// Bytes taken of larger files of which nothing is known.
const HEAD: u64 = 512 << 10;
/// Bytes taken of a program: what comes after is read less, and later (the start of Node-RED reads 79 % of Node.js's first
/// 64 MiB, and 28 % of the 40 MiB behind), so that it goes to the end.
const PROGRAM: u64 = 64 << 20;
/// Bytes before and behind that the kernel reads with a page that is touched: half of the read-ahead of Clipper's mounts.
const READ_AROUND: u64 = 128 << 10;
/// Bytes of a file that are looked at to see what it is, and of a script to see what it loads.
const HEADER: u64 = 64 << 10;
const SCRIPT: u64 = 1 << 20;
/// Files that are taken, and their bytes. Making the hot blob costs time with each.
const FILES_MAX: usize = 4096;
const BYTES_MAX: u64 = 192 << 20;
/// Names in one script that are looked for: an image made for the purpose must not keep a conversion busy for ever.
const NAMES_MAX: usize = 2000;
/// With less room than that for what else is found, nothing more is looked for.
const ROOM_MIN: u64 = 1 << 20;
/// Files that are read side by side.
const AHEAD: usize = 64;
/// What container runtimes, the C library and every shell read.
const ALWAYS: [&str; 7] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
];

/// A file that a start-up is expected to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its path without symlinks.
    pub path: Vec<u8>,
    /// Which bytes of it.
    pub ranges: Vec<Range<u64>>,
}

/// Guesses what the start of an image with this config blob reads, in order. What can't be read is left out.
pub async fn guess(files: &ImageFiles, reader: &FileReader<'_>, config: &Value) -> Vec<Expected> {
    let config = &config["config"];
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut command = strings(&config["Entrypoint"]);
    command.extend(strings(&config["Cmd"]));
    let cwd = config["WorkingDir"].as_str().filter(|dir| dir.starts_with('/')).unwrap_or("/").to_owned();
    let loader = Loader::read(files, reader).await;
    let mut guess = Guess {
        files,
        reader,
        environment: strings(&config["Env"]),
        cwd,
        loader,
        packages: Packages::default(),
        python: Python::default(),
        perl: Perl::default(),
        postgres: Postgres::default(),
        found: Vec::new(),
        late: Vec::new(),
        seen: BTreeSet::new(),
        leads: Vec::new(),
        todo: VecDeque::new(),
        room: BYTES_MAX,
    };
    for path in ALWAYS {
        guess.take(path);
    }
    guess.run(&command);
    guess.follow().await;
    guess.expect_late();
    guess.found
}

struct Guess<'a> {
    files: &'a ImageFiles,
    reader: &'a FileReader<'a>,
    environment: Vec<String>,
    cwd: String,
    loader: Loader,
    packages: Packages,
    python: Python,
    perl: Perl,
    postgres: Postgres,
    /// What was taken, in the order in which the start reads it.
    found: Vec<Expected>,
    /// What it reads late, or less likely.
    late: Vec<Expected>,
    seen: BTreeSet<InodeId>,
    /// What the file that is being looked at leads to.
    leads: Vec<Lead>,
    /// Files to look at, what is read first in front.
    todo: VecDeque<Lead>,
    /// Bytes that may still be taken.
    room: u64,
}

/// A regular file that the start reads.
#[derive(Clone)]
struct Lead {
    file: Found,
    part: Part,
    /// The script that it was compiled from, or it is itself: which file holds what it loads.
    script: Option<Script>,
}

#[derive(Clone)]
struct Script {
    file: Found,
    language: Language,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Node,
    Perl,
    /// Of PostgreSQL: scripts that a new cluster runs.
    Sql,
    /// Of PostgreSQL: what an extension consists of.
    Extension,
    Python,
    Shell,
}

/// How much of a file is read.
#[derive(Clone)]
enum Part {
    /// All of a small file, the beginning of a large one.
    Usual,
    /// A program's, or of other files that are read by and large from the beginning: so many bytes.
    First(u64),
    /// Of a program of which what comes first was taken before: these bytes.
    Rest(Vec<Range<u64>>),
}

impl Guess<'_> {
    /// Takes a regular file, if it is there.
    fn take(&mut self, path: &str) -> Option<Found> {
        self.take_part(path, Part::Usual)
    }

    fn take_part(&mut self, path: &str, part: Part) -> Option<Found> {
        let file = self.file(path)?;
        let language = Language::by_name(&file.path);
        let script = language.map(|language| Script { file: file.clone(), language });
        self.lead(Lead { file: file.clone(), part, script });
        Some(file)
    }

    /// The regular file that a path leads to.
    fn file(&self, path: &str) -> Option<Found> {
        self.files.locate(path.as_bytes()).filter(|found| self.files.is_file(found.id))
    }

    fn lead(&mut self, lead: Lead) {
        if self.seen.len() < FILES_MAX && self.seen.insert(lead.file.id) {
            self.leads.push(lead);
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find_map(|env| env.strip_prefix(name)?.strip_prefix('='))
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
            if self.take(&path).is_none() {
                // An entry point runs what it is given, as a rule.
                self.program(argument);
            }
        }
        if self.python.is_known() {
            self.python_command(arguments);
        }
    }

    /// A program by its name, as execvp(3) finds it.
    fn program(&mut self, name: &str) -> Option<Found> {
        if name.contains('/') {
            let path = self.absolute(name);
            return self.program_at(&path);
        }
        if name.is_empty() {
            return None;
        }
        let path = self.variable("PATH").unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let dirs: Vec<String> = path.split(':').map(str::to_owned).collect();
        dirs.iter().find_map(|dir| self.program_at(&format!("{dir}/{name}")))
    }

    fn program_at(&mut self, path: &str) -> Option<Found> {
        let file = self.take_part(path, Part::First(PROGRAM))?;
        if python::is_interpreter(&file.path) {
            self.python_at(path);
        }
        Some(file)
    }

    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.cwd) }
    }

    /// Looks into what was taken, and takes what that needs, until nothing new comes up. What a file leads to comes right
    /// after it, as interpreters read it.
    async fn follow(&mut self) {
        loop {
            for lead in self.leads.drain(..).rev() {
                self.todo.push_front(lead);
            }
            if self.room < ROOM_MIN {
                self.todo.clear();
            }
            let batch: Vec<Lead> = self.todo.drain(..self.todo.len().min(AHEAD)).collect();
            if batch.is_empty() {
                return;
            }
            let read = join_all(batch.iter().map(|lead| lead.read(self.files, self.reader))).await;
            for (lead, insides) in batch.into_iter().zip(read) {
                self.look(lead, insides).await;
            }
        }
    }

    async fn look(&mut self, lead: Lead, insides: Insides) {
        let file = &lead.file;
        let size = self.files.size(file.id);
        let len = match lead.part {
            Part::First(len) => size.min(len),
            Part::Usual if size <= WHOLE => size,
            Part::Usual => HEAD,
            Part::Rest(ranges) => return self.expect(file, ranges),
        };
        let mut ranges: Vec<_> = std::iter::once(0..len).collect();
        let mut language = lead.script.as_ref().map(|script| script.language);
        let text: &[u8] = match &insides {
            Insides::Elf(needs) => {
                self.libraries(file, needs);
                if size > WHOLE {
                    // The linker reads these first and to the end, however large the file is.
                    ranges = cut(&around(&needs.eager), 0..size);
                    let rest = cut(&around(&needs.mapped), 0..len);
                    self.leads.push(Lead { file: file.clone(), part: Part::Rest(rest), script: None });
                    self.late
                        .push(Expected { path: file.path.clone(), ranges: cut(&around(&needs.mapped), len..size) });
                }
                &[]
            }
            Insides::Text(text) => text,
        };
        if let Some(line) = text.strip_prefix(b"#!") {
            language = self.interpreter(line).or(language);
        }
        self.expect(file, ranges);
        let script = lead.script.as_ref().map_or(file, |script| &script.file);
        match language {
            Some(Language::Node) => self.node(script, text).await,
            Some(Language::Python) => self.python(script, text),
            Some(Language::Perl) => self.perl(text),
            Some(Language::Sql) => self.sql(text),
            Some(Language::Extension) => self.extension(script, text),
            Some(Language::Shell) => self.shell(text),
            None => {}
        }
        self.known(file).await;
    }

    fn expect(&mut self, file: &Found, ranges: Vec<Range<u64>>) {
        let len = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum::<u64>();
        if let Some(room) = self.room.checked_sub(len) {
            self.room = room;
            self.found.push(Expected { path: file.path.clone(), ranges });
        }
    }

    /// Takes what is read late, as far as there is room.
    fn expect_late(&mut self) {
        for Expected { path, ranges } in std::mem::take(&mut self.late) {
            let mut taken = Vec::new();
            for range in ranges {
                let len = (range.end - range.start).min(self.room);
                self.room -= len;
                taken.push(range.start..range.start + len);
            }
            self.found.push(Expected { path, ranges: taken });
        }
    }

    /// The first line of a script: takes its interpreter, or what `env` finds for it (execve(2)), and says which it is.
    fn interpreter(&mut self, line: &[u8]) -> Option<Language> {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let mut words = line.split_whitespace();
        let mut interpreter = words.next()?;
        self.program_at(interpreter);
        if interpreter.ends_with("/env") {
            interpreter = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
            self.program(interpreter);
        }
        Language::of_interpreter(interpreter)
    }

    /// What well-known programs read besides.
    async fn known(&mut self, file: &Found) {
        let path = String::from_utf8_lossy(&file.path).into_owned();
        match split(&path) {
            (dir, "java") => self.java(dir).await,
            (_, "catalina.sh") => self.tomcat(),
            (dir, "postgres") => self.postgres(dir),
            _ => {}
        }
    }
}

/// What a file is.
enum Insides {
    /// A program or library.
    Elf(elf::Needs),
    /// Perhaps a script.
    Text(Vec<u8>),
}

impl Lead {
    /// Reads what must be known of the file to follow it.
    async fn read(&self, files: &ImageFiles, reader: &FileReader<'_>) -> Insides {
        if matches!(self.part, Part::Rest(_)) {
            return Insides::Text(Vec::new());
        }
        let (id, len) = match &self.script {
            Some(script) => (script.file.id, SCRIPT),
            None if is_data(&self.file.path) => return Insides::Text(Vec::new()),
            None => (self.file.id, HEADER),
        };
        let text = reader.read(files, id, 0..len).await.unwrap_or_default();
        if !text.starts_with(elf::MAGIC) {
            return Insides::Text(text);
        }
        let needs = elf::needs(files, reader, id).await.inspect_err(|error| {
            tracing::debug!(path = %self.file.path.escape_ascii(), "not followed: {error:#}");
        });
        needs.map_or_else(|_| Insides::Text(Vec::new()), Insides::Elf)
    }
}

impl Language {
    fn by_name(path: &[u8]) -> Option<Self> {
        let ends: [(&[u8], Self); 5] = [
            (b".js", Self::Node),
            (b".mjs", Self::Node),
            (b".cjs", Self::Node),
            (b".pm", Self::Perl),
            (b".control", Self::Extension),
        ];
        if path.starts_with(FIRST_SCRIPTS.as_bytes()) && path.ends_with(b".sql") {
            return Some(Self::Sql);
        }
        ends.into_iter().find_map(|(end, language)| path.ends_with(end).then_some(language))
    }

    fn of_interpreter(path: &str) -> Option<Self> {
        match split(path).1 {
            "node" | "nodejs" => Some(Self::Node),
            "sh" | "bash" | "dash" | "ash" => Some(Self::Shell),
            "perl" => Some(Self::Perl),
            name if name.starts_with("python") => Some(Self::Python),
            _ => None,
        }
    }
}

/// These ranges and what the kernel reads around them.
fn around(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    ranges.iter().map(|range| range.start.saturating_sub(READ_AROUND)..range.end.saturating_add(READ_AROUND)).collect()
}

/// What of these ranges lies in `part`.
fn cut(ranges: &[Range<u64>], part: Range<u64>) -> Vec<Range<u64>> {
    let cut = ranges.iter().map(|range| range.start.max(part.start)..range.end.min(part.end));
    cut.filter(|range| range.start < range.end).collect()
}

/// Whether a file's name says that it leads to no other.
fn is_data(path: &[u8]) -> bool {
    let ends: [&[u8]; 9] = [b".json", b".pyc", b".jar", b".jsa", b".xml", b".conf", b".sql", b".pem", b".bki"];
    ends.iter().any(|end| path.ends_with(end))
}

/// Directory and name.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[cfg(test)]
mod tests;
