//! File trees as values: everything that lstat, readlink, xattrs and the bytes themselves tell, to be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One path of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, i64),
    /// Size in bytes; 0 for directories, whose size is the filesystem's own affair.
    pub size: u64,
    /// Number of links; 0 for directories, likewise.
    pub links: u64,
    /// The first path of the same inode: equal paths are hard links of each other.
    pub same_as: PathBuf,
    /// Device number, of devices.
    pub device: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// BLAKE3 of a file's bytes, or a link's target.
    pub content: Vec<u8>,
}

/// All paths below a root, the root itself being the empty path.
pub type Tree = BTreeMap<PathBuf, Node>;

/// Reads a tree with all its bytes.
pub fn read(root: &Path) -> Result<Tree> {
    let mut walk = Walk { root, inodes: HashMap::new(), tree: Tree::new() };
    walk.visit(Path::new(""))?;
    Ok(walk.tree)
}

/// What differs between two trees, one line each, at most `limit` of them.
pub fn differences(expected: &Tree, actual: &Tree, limit: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, node) in expected {
        match actual.get(path) {
            None => lines.push(format!("{} is missing", path.display())),
            Some(other) if other != node => {
                lines.push(format!("{} differs:\n  expected {node:?}\n  actual   {other:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    lines.extend(
        actual.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("{} is extra", path.display())),
    );
    let more = lines.len().saturating_sub(limit);
    lines.truncate(limit);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// Fails, saying what differs, unless the two trees are the same.
#[track_caller]
pub fn assert_same(expected: &Tree, actual: &Tree) {
    let differences = differences(expected, actual, 10);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(!expected.is_empty());
}

struct Walk<'a> {
    root: &'a Path,
    inodes: HashMap<(u64, u64), PathBuf>,
    tree: Tree,
}

impl Walk<'_> {
    fn visit(&mut self, relative: &Path) -> Result<()> {
        let absolute = if relative.as_os_str().is_empty() { self.root.to_owned() } else { self.root.join(relative) };
        let node = self.node(relative, &absolute).with_context(|| format!("reading {}", absolute.display()))?;
        self.tree.insert(relative.into(), node);
        if fs::symlink_metadata(&absolute)?.is_dir() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&absolute).with_context(|| format!("listing {}", absolute.display()))? {
                names.push(entry?.file_name());
            }
            names.sort();
            for name in names {
                self.visit(&relative.join(name))?;
            }
        }
        Ok(())
    }

    fn node(&mut self, relative: &Path, absolute: &Path) -> Result<Node> {
        let meta = fs::symlink_metadata(absolute)?;
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(absolute)?.into_os_string().as_bytes().to_vec()
        } else if kind.is_file() {
            hash(absolute)?
        } else {
            Vec::new()
        };
        let mut xattrs = BTreeMap::new();
        for name in xattr::list(absolute)? {
            let value = xattr::get(absolute, &name)?.unwrap_or_default();
            xattrs.insert(name.as_bytes().to_vec(), value);
        }
        let directory = kind.is_dir();
        let same_as = match directory {
            true => relative.to_owned(),
            false => self.inodes.entry((meta.dev(), meta.ino())).or_insert_with(|| relative.to_owned()).clone(),
        };
        Ok(Node {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if directory { 0 } else { meta.size() },
            links: if directory { 0 } else { meta.nlink() },
            same_as,
            device: meta.rdev(),
            xattrs,
            content,
        })
    }
}

fn hash(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().as_bytes().to_vec()),
            read => hasher.update(&buffer[..read]),
        };
    }
}
