//! Differences between two readings of an image.
use super::reference::{Kind, Node, Paths};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// One thing that isn't the same.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The path, from the root.
    pub path: String,
    /// What differs: `missing`, `extra`, `type`, `bytes`, `mode`, …
    pub what: &'static str,
    /// In the base image.
    pub base: String,
    /// As read lazily.
    pub lazy: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, what, base, lazy } = self;
        write!(f, "{path}: {what}: base image {base}, read lazily {lazy}")
    }
}

/// Compares every path of both, in order of paths.
pub fn compare(base: &Paths, lazy: &Paths) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut paths: Vec<&[u8]> = base.names.keys().chain(lazy.names.keys()).map(Vec::as_slice).collect();
    paths.sort_unstable();
    paths.dedup();
    let (base_links, lazy_links) = (first_names(base), first_names(lazy));
    for path in paths {
        let mut differ = |what, base: String, lazy: String| {
            if base != lazy {
                found.push(Difference { path: format!("/{}", show(path)), what, base, lazy });
            }
        };
        match (base.get(path), lazy.get(path)) {
            (Some(a), Some(b)) => {
                differ("type", kind(a), kind(b));
                if kind(a) != kind(b) {
                    continue;
                }
                differ(content_name(a), content(a), content(b));
                if !matches!(a.kind, Kind::Symlink(_)) {
                    differ("mode", format!("{:04o}", a.perm), format!("{:04o}", b.perm));
                }
                differ("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
                if let (Some(a), Some(b)) = (a.mtime, b.mtime) {
                    differ("mtime", format!("{}.{:09}", a.0, a.1), format!("{}.{:09}", b.0, b.1));
                }
                differ("xattrs", xattrs(a), xattrs(b));
                differ("hard link of", link(base, &base_links, path), link(lazy, &lazy_links, path));
            }
            (Some(a), None) => differ("missing", kind(a), "nothing".into()),
            (None, Some(b)) => differ("extra", "nothing".into(), kind(b)),
            (None, None) => {}
        }
    }
    found
}

/// The first name of every inode: equal for all its hard links.
fn first_names(paths: &Paths) -> BTreeMap<usize, &[u8]> {
    let mut first = BTreeMap::new();
    for (name, number) in &paths.names {
        first.entry(*number).or_insert(name.as_slice());
    }
    first
}

fn link(paths: &Paths, first: &BTreeMap<usize, &[u8]>, path: &[u8]) -> String {
    let first = paths.names.get(path).and_then(|n| first.get(n)).copied().unwrap_or_default();
    if first == path { "nothing before it".into() } else { format!("/{}", show(first)) }
}

fn kind(node: &Node) -> String {
    match node.kind {
        Kind::Directory => "a directory",
        Kind::File { .. } => "a file",
        Kind::Symlink(_) => "a symbolic link",
        Kind::CharDevice(..) => "a character device",
        Kind::BlockDevice(..) => "a block device",
        Kind::Fifo => "a FIFO",
        Kind::Socket => "a socket",
    }
    .into()
}

fn content_name(node: &Node) -> &'static str {
    match node.kind {
        Kind::File { .. } => "bytes",
        Kind::Symlink(_) => "target",
        _ => "device number",
    }
}

fn content(node: &Node) -> String {
    match &node.kind {
        Kind::File { size, sha256 } => format!("{size} bytes, {sha256}"),
        Kind::Symlink(target) => show(target),
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => format!("{major}:{minor}"),
        Kind::Directory | Kind::Fifo | Kind::Socket => String::new(),
    }
}

fn xattrs(node: &Node) -> String {
    let all: Vec<_> = node.xattrs.iter().map(|(k, v)| format!("{}={}", show(k), v.escape_ascii())).collect();
    if all.is_empty() { "none".into() } else { all.join(" ") }
}

/// A path or target for people: bytes that aren't UTF-8 are escaped, so that names stay apart.
fn show(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.escape_ascii().to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::Digest;

    fn file(text: &[u8]) -> Node {
        Node {
            kind: Kind::File { size: text.len() as u64, sha256: Digest::of(text) },
            perm: 0o644,
            uid: 0,
            gid: 0,
            mtime: Some((1, 2)),
            xattrs: BTreeMap::new(),
        }
    }

    fn paths(entries: &[(&str, usize)], nodes: &[Node]) -> Paths {
        Paths { names: entries.iter().map(|(n, i)| (n.as_bytes().to_vec(), *i)).collect(), nodes: nodes.to_vec() }
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let base = paths(&[("a", 0), ("b", 0), ("c", 1)], &[file(b"1"), file(b"2")]);
        assert_eq!(compare(&base, &base), []);
        let what = |lazy: &Paths| -> Vec<_> { compare(&base, lazy).into_iter().map(|d| (d.path, d.what)).collect() };
        let alone = paths(&[("a", 0), ("b", 1), ("c", 2)], &[file(b"1"), file(b"1"), file(b"2")]);
        assert_eq!(what(&alone), [("/b".to_owned(), "hard link of")]);
        let changed = |change: fn(&mut Node)| {
            let mut nodes = [file(b"1"), file(b"2")];
            change(&mut nodes[1]);
            what(&paths(&[("a", 0), ("b", 0), ("c", 1)], &nodes))
        };
        type Change = fn(&mut Node);
        let cases: [(Change, &str); 6] = [
            (|n| n.kind = Kind::Fifo, "type"),
            (|n| n.kind = file(b"3").kind, "bytes"),
            (|n| n.perm = 0o4755, "mode"),
            (|n| n.gid = 9, "owner"),
            (|n| n.mtime = Some((1, 3)), "mtime"),
            (|n| drop(n.xattrs.insert(b"user.x".to_vec(), vec![0])), "xattrs"),
        ];
        for (change, name) in cases {
            assert_eq!(changed(change), [("/c".to_owned(), name)]);
        }
        let fewer = paths(&[("a", 0), ("b", 0), ("d", 1)], &[file(b"1"), file(b"2")]);
        assert_eq!(what(&fewer), [("/c".to_owned(), "missing"), ("/d".to_owned(), "extra")]);
    }
}
