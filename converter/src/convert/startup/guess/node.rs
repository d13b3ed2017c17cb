//! What a script for Node.js loads (its documentation: "Modules: CommonJS modules", "Modules: Packages").
use super::{Guess, NAMES_MAX, split};
use crate::convert::startup::files::Found;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of the largest `package.json` that is read.
const PACKAGE_MAX: u64 = 1 << 20;
/// Longest name of a module.
const NAME_MAX: usize = 256;
/// Modules that are in Node.js itself.
const BUILT_IN: [&str; 42] = [
    "assert",
    "async_hooks",
    "buffer",
    "child_process",
    "cluster",
    "console",
    "constants",
    "crypto",
    "dgram",
    "diagnostics_channel",
    "dns",
    "domain",
    "events",
    "fs",
    "http",
    "http2",
    "https",
    "inspector",
    "module",
    "net",
    "os",
    "path",
    "perf_hooks",
    "process",
    "punycode",
    "querystring",
    "readline",
    "repl",
    "stream",
    "string_decoder",
    "sys",
    "timers",
    "tls",
    "trace_events",
    "tty",
    "url",
    "util",
    "v8",
    "vm",
    "wasi",
    "worker_threads",
    "zlib",
];

/// What is known of packages.
#[derive(Default)]
pub struct Packages {
    /// The `package.json` files that were read, by directory.
    described: BTreeMap<String, Option<Arc<Value>>>,
    /// Directories of packages of which everything was taken.
    whole: BTreeSet<String>,
}

/// A module by the name that a script has for it.
#[derive(Debug, PartialEq, Eq)]
struct Import<'t> {
    name: &'t str,
    /// By `import`, not by `require`.
    modern: bool,
    /// Its place is asked for, by `require.resolve`: what is in its package is then found by looking into directories.
    place: bool,
}

/// Where packages have their texts in the language that is taken if no other is asked for.
const TEXTS: [&str; 3] = ["locales/en-US", "locales/en", "locales/en.json"];
/// Directories of a package in which no scripts are that it loads by looking for them.
const ASIDE: [&str; 8] = ["node_modules", "test", "tests", "docs", "examples", "locales", "public", "types"];
/// What programs load that look into directories.
const LOADED: [&str; 5] = [".js", ".cjs", ".mjs", ".json", ".html"];
/// Bytes of the largest such file.
const LOADED_MAX: u64 = 256 << 10;

impl Guess<'_> {
    /// Takes the modules that the script loads, and the packages' descriptions that lead to them.
    pub(super) async fn node(&mut self, script: &Found, text: &[u8]) {
        let path = String::from_utf8_lossy(&script.path).into_owned();
        let (dir, _) = split(&path);
        // What a script is depends on its package.
        let parents: Vec<&str> = parents(dir).collect();
        let is_package = |parent: &&&str| self.file(&format!("{parent}/package.json")).is_some();
        let package = parents.iter().find(is_package).copied();
        if let Some(package) = package {
            self.take(&format!("{package}/package.json"));
        }
        let text = String::from_utf8_lossy(text);
        if text.contains("readdir") {
            if text.contains("__dirname") {
                self.all_of(dir);
            }
            if text.contains("node_modules") {
                self.plugins(&parents);
            }
        }
        if let Some(package) = package.filter(|_| text.contains("locales")) {
            self.texts(package);
        }
        for import in imports(&text).into_iter().take(NAMES_MAX) {
            if import.name.starts_with('.') {
                self.module(&format!("{dir}/{}", import.name)).await;
            } else if import.name.starts_with('/') {
                self.module(import.name).await;
            } else if !is_built_in(import.name) {
                for parent in &parents {
                    if self.package(&format!("{parent}/node_modules"), &import).await {
                        break;
                    }
                }
            }
        }
    }

    /// A module of a package below `dir`; false if the package isn't there.
    async fn package(&mut self, dir: &str, import: &Import<'_>) -> bool {
        let slashes = if import.name.starts_with('@') { 2 } else { 1 };
        let end = import.name.match_indices('/').nth(slashes - 1).map_or(import.name.len(), |(at, _)| at);
        let (name, rest) = import.name.split_at(end);
        let root = format!("{dir}/{name}");
        if self.files.locate(root.as_bytes()).is_none() {
            return false;
        }
        if let Some(package) = self.description(&root).await
            && !package["exports"].is_null()
        {
            if let Some(target) = exported(&package["exports"], rest, import.modern) {
                self.take(&format!("{root}/{target}"));
            }
        } else {
            self.module(&format!("{root}{rest}")).await;
        }
        if import.place {
            self.texts(&root);
            if rest.is_empty() {
                self.all_of(&root);
            }
        }
        true
    }

    /// The descriptions of all packages that a script sees: what a program reads that looks for plug-ins among them.
    fn plugins(&mut self, parents: &[&str]) {
        for parent in parents {
            let dir = format!("{parent}/node_modules");
            if !self.packages.whole.insert(dir.clone()) {
                continue;
            }
            for name in self.files.names(dir.as_bytes()).into_iter().take(NAMES_MAX) {
                let name = String::from_utf8_lossy(&name).into_owned();
                if !name.starts_with('@') {
                    self.take(&format!("{dir}/{name}/package.json"));
                    continue;
                }
                for inner in self.files.names(format!("{dir}/{name}").as_bytes()).into_iter().take(NAMES_MAX) {
                    self.take(&format!("{dir}/{name}/{}/package.json", String::from_utf8_lossy(&inner)));
                }
            }
        }
    }

    /// A package's texts for people.
    fn texts(&mut self, root: &str) {
        for texts in TEXTS {
            let path = format!("{root}/{texts}");
            self.take(&path);
            for name in self.files.names(path.as_bytes()).into_iter().take(NAMES_MAX) {
                self.take(&format!("{path}/{}", String::from_utf8_lossy(&name)));
            }
        }
    }

    /// Everything in a package, or a directory of it, that a program may load that looks for it there.
    fn all_of(&mut self, root: &str) {
        if !self.packages.whole.insert(root.to_owned()) {
            return;
        }
        let (mut dirs, mut looked_at) = (vec![root.to_owned()], 0);
        while let Some(dir) = dirs.pop() {
            for name in self.files.names(dir.as_bytes()) {
                looked_at += 1;
                if looked_at > NAMES_MAX {
                    return;
                }
                let path = format!("{dir}/{}", String::from_utf8_lossy(&name));
                let Some(found) = self.files.locate(path.as_bytes()) else { continue };
                if !self.files.is_file(found.id) {
                    if !ASIDE.iter().any(|aside| aside.as_bytes() == name) {
                        dirs.push(path);
                    }
                } else if LOADED.iter().any(|end| name.ends_with(end.as_bytes()))
                    && self.files.size(found.id) <= LOADED_MAX
                {
                    self.take(&path);
                }
            }
        }
    }

    /// A module by its path: a file, a file with an extension left out, or a directory.
    async fn module(&mut self, path: &str) {
        let path = path.trim_end_matches('/');
        if self.take_script(path) {
            return;
        }
        if let Some(package) = self.description(path).await
            && let Some(main) = package["main"].as_str()
        {
            let main = format!("{path}/{}", main.trim_end_matches('/'));
            if self.take_script(&main) || self.take_script(&format!("{main}/index")) {
                return;
            }
        }
        self.take_script(&format!("{path}/index"));
    }

    fn take_script(&mut self, path: &str) -> bool {
        ["", ".js", ".json", ".node"].iter().any(|end| self.take(&format!("{path}{end}")).is_some())
    }

    /// The description of the package in `dir`.
    async fn description(&mut self, dir: &str) -> Option<Arc<Value>> {
        if let Some(known) = self.packages.described.get(dir) {
            return known.clone();
        }
        let file = self.take(&format!("{dir}/package.json"));
        let mut description = None;
        if let Some(file) = file {
            let text = self.reader.read(self.files, file.id, 0..PACKAGE_MAX).await.unwrap_or_default();
            description = serde_json::from_slice(&text).ok().map(Arc::new);
        }
        self.packages.described.insert(dir.to_owned(), description.clone());
        description
    }
}

/// A directory and those above it, below the root.
fn parents(dir: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(dir), |dir| dir.rsplit_once('/').map(|(parent, _)| parent))
}

fn is_built_in(name: &str) -> bool {
    name.starts_with("node:") || BUILT_IN.contains(&name.split('/').next().unwrap_or_default()) && !name.ends_with('/')
}

/// What a package's `exports` have for `rest`, the name of the module without the package's.
fn exported(exports: &Value, rest: &str, modern: bool) -> Option<String> {
    let by_path = exports.as_object().is_some_and(|map| map.keys().any(|key| key.starts_with('.')));
    if !by_path {
        return rest.is_empty().then(|| target(exports, modern)).flatten().map(str::to_owned);
    }
    let wanted = format!(".{rest}");
    if let Some(found) = exports.get(&wanted) {
        return target(found, modern).map(str::to_owned);
    }
    exports.as_object()?.iter().find_map(|(key, value)| {
        let (before, after) = key.split_once('*')?;
        let star = wanted.strip_prefix(before)?.strip_suffix(after)?;
        Some(target(value, modern)?.replace('*', star))
    })
}

/// The first of the conditions that hold for Node.js, in the order in which packages have them.
fn target(value: &Value, modern: bool) -> Option<&str> {
    match value {
        Value::String(path) => Some(path),
        Value::Array(all) => all.iter().find_map(|value| target(value, modern)),
        Value::Object(map) => {
            let conditions = ["module-sync", "node", if modern { "import" } else { "require" }, "default"];
            conditions.iter().filter_map(|condition| map.get(*condition)).find_map(|value| target(value, modern))
        }
        _ => None,
    }
}

/// The modules that a script names in `require("…")`, `require.resolve("…")`, `import "…"`, `import("…")` and `from "…"`.
fn imports(text: &str) -> Vec<Import<'_>> {
    let mut found = Vec::new();
    for line in text.lines() {
        // Comments, where types are imported.
        let begin = line.trim_start();
        if begin.starts_with("//") || begin.starts_with('*') || begin.starts_with("/*") {
            continue;
        }
        for (word, modern) in [("require", false), ("import", true), ("from", true)] {
            for (at, _) in line.match_indices(word) {
                // `x.require()` is something else, `...require()` isn't.
                let before = line[..at].trim_end_matches("...").chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | '.')) {
                    continue;
                }
                let rest = line[at + word.len()..].trim_start();
                let resolved = rest.strip_prefix(".resolve").filter(|_| word == "require");
                let place = resolved.is_some();
                let rest = resolved.unwrap_or(rest);
                let called = rest.strip_prefix('(').map(str::trim_start);
                let quoted = match word {
                    "require" => called,
                    "from" => Some(rest),
                    _ => Some(called.unwrap_or(rest)),
                };
                if let Some(name) = quoted.and_then(unquote) {
                    found.push(Import { name, modern, place });
                }
            }
        }
    }
    found
}

/// The text between quotes at the beginning.
fn unquote(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'))?;
    let (name, _) = text[1..].split_once(quote)?;
    (!name.is_empty() && name.len() <= NAME_MAX && !name.contains("${")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modules_are_named_in_every_way_of_loading_them() {
        let text = "require.resolve('r/package.json');const a = require('a'), b = require( \"./b\" );\nimport c from 'c'\nimport './d.mjs';\n\
                    export * from \"@e/e/sub\";\nawait import(`f`)\n// require('no')\n * import('no')\nx.require('no')\n...require('g'),\n\
                    require(name); require('); from 'g";
        let found = imports(text);
        assert_eq!(
            found.iter().filter(|import| import.place).map(|import| import.name).collect::<Vec<_>>(),
            ["r/package.json"]
        );
        let names: Vec<_> = found.iter().map(|import| (import.name, import.modern)).collect();
        let expected = [
            ("r/package.json", false),
            ("a", false),
            ("./b", false),
            ("c", true),
            ("./d.mjs", true),
            ("@e/e/sub", true),
            ("f", true),
            ("g", false),
            ("); from ", false),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn exports_have_paths_conditions_and_patterns() {
        let exports = json!({
            ".": { "import": "./m.mjs", "require": { "types": "./t", "default": "./m.cjs" } },
            "./lib/*.js": "./out/*.js",
            "./package.json": "./package.json",
        });
        assert_eq!(exported(&exports, "", false).as_deref(), Some("./m.cjs"));
        assert_eq!(exported(&exports, "", true).as_deref(), Some("./m.mjs"));
        assert_eq!(exported(&exports, "/lib/x/y.js", false).as_deref(), Some("./out/x/y.js"));
        assert_eq!(exported(&exports, "/none", false), None);
        assert_eq!(exported(&json!("./only.js"), "", false).as_deref(), Some("./only.js"));
        assert_eq!(exported(&json!("./only.js"), "/sub", false), None);
        assert_eq!(exported(&json!([null, { "browser": "./b" }, "./c"]), "", true).as_deref(), Some("./c"));
    }

    #[test]
    fn what_node_has_itself_is_not_looked_for() {
        assert!(is_built_in("fs/promises") && is_built_in("node:test") && is_built_in("util"));
        assert!(!is_built_in("express") && !is_built_in("@scope/fs") && !is_built_in("punycode/"));
    }
}
