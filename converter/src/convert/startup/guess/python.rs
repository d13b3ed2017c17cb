//! What the Python interpreter imports (the language's reference, "The import system"; the library's, "site").
use super::{Guess, Language, Lead, NAMES_MAX, Part, Script, split};
use crate::convert::startup::files::{Found, ImageFiles};
use std::collections::HashMap;

/// The modules that the interpreter imports before any other (`python3 -X importtime -c ''`).
const FIRST: [&str; 16] = [
    "encodings",
    "codecs",
    "encodings.aliases",
    "encodings.utf_8",
    "io",
    "abc",
    "site",
    "os",
    "stat",
    "_collections_abc",
    "posixpath",
    "genericpath",
    "_sitebuiltins",
    "collections",
    "types",
    "enum",
];

/// The interpreter of the image, once it is known.
#[derive(Default)]
pub struct Python {
    /// Directories in which modules are looked for.
    roots: Vec<String>,
    /// What compiled modules end with, such as `.cpython-311.pyc`.
    compiled: String,
    /// What modules in machine code end with, such as `.cpython-311-x86_64-linux-gnu.so`.
    native: Vec<String>,
    /// What importing a name led to, by the directory that it was looked for in, or wherever modules are: most modules
    /// import the same few.
    imported: HashMap<(Option<String>, String), Option<String>>,
}

impl Python {
    /// Adds directories in which modules are looked for, before the others or behind them.
    fn add_roots(&mut self, first: bool, roots: impl IntoIterator<Item = String>) {
        let at = if first { 0 } else { self.roots.len() };
        self.roots.splice(at..at, roots);
        self.imported.clear();
    }

    /// Whether there is an interpreter.
    pub fn is_known(&self) -> bool {
        !self.compiled.is_empty()
    }
}

/// Whether the path is that of an interpreter: `python`, `python3`, `python3.11`.
pub fn is_interpreter(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.strip_prefix(b"python").is_some_and(|rest| rest.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.'))
}

/// A statement that imports.
#[derive(Debug, PartialEq, Eq)]
struct Import<'t> {
    /// Leading dots.
    level: usize,
    /// The module, dots between its packages.
    module: &'t str,
    /// What is taken from it, modules or not.
    names: Vec<&'t str>,
}

impl Guess<'_> {
    /// An interpreter at `path`, before symlinks are followed: those of virtual environments are links to another.
    pub(super) fn python_at(&mut self, path: &str) {
        let resolved = self.file(path).map(|found| String::from_utf8_lossy(&found.path).into_owned());
        let mut prefixes: Vec<String> = Vec::new();
        for path in [Some(path.to_owned()), resolved].into_iter().flatten() {
            let prefix = split(&path).0.strip_suffix("/bin").unwrap_or_default().to_owned();
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
            }
        }
        let known = self.python.is_known();
        let mut roots = Vec::new();
        if let (false, Some(path)) = (known, self.variable("PYTHONPATH")) {
            roots.extend(path.split(':').map(str::to_owned));
        }
        for prefix in &prefixes {
            for version in self.files.names(format!("{prefix}/lib").as_bytes()) {
                let version = String::from_utf8_lossy(&version).into_owned();
                let Some(minor) = version.strip_prefix("python3.") else { continue };
                let lib = format!("{prefix}/lib/{version}");
                roots.extend([lib.clone(), format!("{lib}/lib-dynload"), format!("{lib}/site-packages")]);
                roots.extend(["", "/local"].map(|local| format!("{prefix}{local}/lib/{version}/dist-packages")));
                roots.push(format!("{prefix}/lib/python3/dist-packages"));
                if self.python.compiled.is_empty() && self.file(&format!("{lib}/os.py")).is_some() {
                    self.python.compiled = format!(".cpython-3{minor}.pyc");
                    self.python.native = natives(self.files, &format!("{lib}/lib-dynload"), minor);
                }
            }
        }
        let new = |root: &String| !self.python.roots.contains(root) && self.files.locate(root.as_bytes()).is_some();
        let roots: Vec<String> = roots.into_iter().filter(new).collect();
        self.python.add_roots(false, roots);
        if !known {
            for module in FIRST {
                self.import(None, module);
            }
        }
    }

    /// The interpreter's arguments: `-m MODULE`, and those that servers have, `MODULE:OBJECT`.
    pub(super) fn python_command(&mut self, arguments: &[String]) {
        self.python.add_roots(true, [self.cwd.clone()]);
        for (at, argument) in arguments.iter().enumerate() {
            if at > 0 && arguments[at - 1] == "-m" {
                self.import(None, argument);
                self.import(None, &format!("{argument}.__main__"));
            } else if let Some((module, _)) = argument.split_once(':') {
                self.import(None, module);
            }
        }
    }

    /// Takes the modules that a script imports when it is imported itself.
    pub(super) fn python(&mut self, script: &Found, text: &[u8]) {
        let path = String::from_utf8_lossy(&script.path).into_owned();
        let (dir, name) = split(&path);
        if !name.ends_with(".py") && !self.python.roots.iter().any(|root| root == dir) {
            // A program, whose directory comes first.
            self.python.add_roots(true, [dir.to_owned()]);
        }
        for Import { level, module, names } in imports(&String::from_utf8_lossy(text)).into_iter().take(NAMES_MAX) {
            let mut package = None;
            if level > 0 {
                let up = std::iter::successors(Some(dir), |dir| dir.rsplit_once('/').map(|(parent, _)| parent));
                package = up.take(level).last().map(str::to_owned);
            }
            let Some(inside) = self.import(package.as_deref(), module) else { continue };
            for name in names.into_iter().take(NAMES_MAX) {
                self.import(Some(&inside), name);
            }
        }
    }

    /// Takes a module and the packages that it is in; `below` a package's directory, or else wherever modules are.
    /// Returns the directory of what is in it.
    fn import(&mut self, below: Option<&str>, module: &str) -> Option<String> {
        let (first, rest) = module.split_once('.').map_or((module, None), |(first, rest)| (first, Some(rest)));
        if first.is_empty() {
            return below.map(str::to_owned);
        }
        let key = (below.map(str::to_owned), first.to_owned());
        let inside = match self.python.imported.get(&key) {
            Some(known) => known.clone(),
            None => {
                let dirs = below.map_or_else(|| self.python.roots.clone(), |dir| vec![dir.to_owned()]);
                let inside = dirs.iter().find_map(|dir| self.module_in(dir, first));
                self.python.imported.insert(key, inside.clone());
                inside
            }
        }?;
        match rest {
            Some(rest) => self.import(Some(&inside), rest),
            None => Some(inside),
        }
    }

    fn module_in(&mut self, dir: &str, name: &str) -> Option<String> {
        let inside = format!("{dir}/{name}");
        // A package, else a module in machine code, else one in Python: importlib's order.
        if self.take_source(&inside, "__init__") {
            return Some(inside);
        }
        for end in &self.python.native {
            let path = format!("{dir}/{name}{end}");
            if self.file(&path).is_some() {
                self.take(&path);
                return Some(inside);
            }
        }
        (self.take_source(dir, name) || self.files.locate(inside.as_bytes()).is_some()).then_some(inside)
    }

    /// Takes a module in Python: what it was compiled to, or else its text.
    fn take_source(&mut self, dir: &str, name: &str) -> bool {
        let source = self.file(&format!("{dir}/{name}.py"));
        let compiled = self.file(&format!("{dir}/__pycache__/{name}{}", self.python.compiled));
        let Some(file) = compiled.or_else(|| source.clone()) else { return false };
        let script = source.map(|file| Script { file, language: Language::Python });
        self.lead(Lead { file, part: Part::Usual, script });
        true
    }
}

/// The endings of modules in machine code, by one that every interpreter has.
fn natives(files: &ImageFiles, dir: &str, minor: &str) -> Vec<String> {
    let tag = format!(".cpython-3{minor}-");
    let own = files.names(dir.as_bytes()).iter().find_map(|name| {
        let name = String::from_utf8_lossy(name).into_owned();
        name.find(&tag).map(|at| name[at..].to_owned())
    });
    own.into_iter().chain([".abi3.so".to_owned(), ".so".to_owned()]).collect()
}

/// The imports that run when a module is imported: not those in functions, nor those for type checkers.
fn imports(text: &str) -> Vec<Import<'_>> {
    let mut found = Vec::new();
    let mut apart: Option<usize> = None;
    let mut quoted = false;
    let mut lines = text.split_inclusive('\n').scan(0, |at, line| {
        *at += line.len();
        Some((*at - line.len(), line.trim_end()))
    });
    while let Some((start, line)) = lines.next() {
        let quotes = triple(line, '"', "\"\"\"") + triple(line, '\'', "'''");
        let inside = quoted;
        quoted ^= quotes % 2 == 1;
        let statement = line.trim_start();
        if inside || statement.is_empty() || statement.starts_with('#') {
            continue;
        }
        let indentation = line.len() - statement.len();
        if apart.is_some_and(|outer| indentation > outer) {
            continue;
        }
        apart = None;
        let starts = ["def ", "async def ", "if TYPE_CHECKING", "if typing.TYPE_CHECKING", "if t.TYPE_CHECKING"];
        if starts.iter().any(|start| statement.starts_with(start)) {
            apart = Some(indentation);
        } else if let Some(modules) = statement.strip_prefix("import ") {
            found.extend(modules.split(',').filter_map(name).map(|module| Import {
                level: 0,
                module,
                names: Vec::new(),
            }));
        } else if let Some(rest) = statement.strip_prefix("from ")
            && let Some((module, names)) = rest.split_once(" import ")
        {
            let mut names = names;
            if names.trim_start().starts_with('(') && !names.contains(')') {
                // To the closing bracket, lines further down.
                let from = start + (line.len() - names.len());
                let end = text[from..].find(')').map_or(text.len(), |len| from + len);
                names = &text[from..end];
                while end > start + line.len() && lines.next().is_some_and(|(at, line)| at + line.len() < end) {}
            }
            let module = module.trim();
            let level = module.bytes().take_while(|byte| *byte == b'.').count();
            let names = names.trim_start().trim_start_matches('(');
            let names = names.split([',', '\n']).filter_map(name).collect();
            found.push(Import { level, module: &module[level..], names });
        }
    }
    found
}

/// How often three quotation marks stand in a line. Most lines have none, which is seen sooner.
fn triple(line: &str, one: char, three: &str) -> usize {
    if line.contains(one) { line.matches(three).count() } else { 0 }
}

/// The name in `name as other  # comment`.
fn name(text: &str) -> Option<&str> {
    let name = text.split(['#', ';', ')']).next()?.split_whitespace().next()?;
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.').then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_at_import_counts() {
        let text = "\"\"\"A module.\n\nimport none1\n\"\"\"\nimport os, sys as system\nfrom . import a, b as c  # d\n\
                    from ..up.er import (\n    x,  # why\n    y,\n)\nif TYPE_CHECKING:\n    import none2\ntry:\n    \
                    import fast\nexcept ImportError:\n    from slow import *\ndef f():\n    import none3\n\n    \
                    import none4\nclass C:\n    import inner\nfrom z import (q)\nfrom end import (r,";
        let found: Vec<_> = imports(text).into_iter().map(|i| (i.level, i.module, i.names)).collect();
        let expected = [
            (0, "os", vec![]),
            (0, "sys", vec![]),
            (1, "", vec!["a", "b"]),
            (2, "up.er", vec!["x", "y"]),
            (0, "fast", vec![]),
            (0, "slow", vec![]),
            (0, "inner", vec![]),
            (0, "z", vec!["q"]),
            (0, "end", vec!["r"]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn interpreters_are_known_by_name() {
        assert!(is_interpreter(b"/usr/bin/python3.11") && is_interpreter(b"/venv/bin/python"));
        assert!(!is_interpreter(b"/usr/bin/python3-config") && !is_interpreter(b"/usr/bin/pythonic"));
    }
}
