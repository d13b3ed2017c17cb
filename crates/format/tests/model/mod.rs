//! A reference model of layers: random layers, written as tars by `tarball`, and what a container must see of them,
//! worked out on plain maps by `disk`. It shares no code with the walker and the merge that it is there to check.
#![allow(dead_code)]

pub mod disk;
pub mod script;
pub mod strategy;
pub mod tarball;

use std::collections::BTreeMap;

/// A path as its components; the root has none.
pub type Path = Vec<Vec<u8>>;

/// One entry of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    pub path: Path,
    pub what: What,
    pub meta: Meta,
    pub dress: Dress,
}

#[derive(Clone, Debug)]
pub enum What {
    Directory,
    File(Vec<u8>),
    /// The file's size, its runs of data, and how the tar writes them.
    Sparse(u64, Vec<(u64, Vec<u8>)>, SparseFormat),
    Symlink(Vec<u8>),
    HardLink(Path),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// `.wh.` and the last component of the path.
    Whiteout,
    /// `.wh..wh..opq` in the directory at the path.
    Opaque,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// How an entry is written; the writer falls back to what can express it.
#[derive(Clone, Copy, Debug)]
pub struct Dress {
    pub format: Format,
    pub lead: Lead,
    /// Numbers as GNU base-256 even where octal would do; PAX records even where the header would do.
    pub lavish: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    V7,
    Ustar,
    Gnu,
    Pax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseFormat {
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// What stands before the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    Nothing,
    Dot,
    Slash,
    DotDot,
    Messy,
}

/// What a container sees: every path with what is there. The root is the empty path.
pub type View = BTreeMap<Vec<u8>, Shown>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub kind: Kind,
    pub perm: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of all names of the same file.
    pub same_as: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => write!(f, "directory"),
            Self::File(bytes) => {
                let sum = bytes.iter().fold(0u64, |sum, b| sum.wrapping_mul(31).wrapping_add(u64::from(*b)));
                write!(f, "file of {} bytes ({sum:016x})", bytes.len())
            }
            Self::Symlink(target) => write!(f, "link to {}", target.escape_ascii()),
            Self::CharDevice(major, minor) => write!(f, "char {major}:{minor}"),
            Self::BlockDevice(major, minor) => write!(f, "block {major}:{minor}"),
            Self::Fifo => write!(f, "fifo"),
        }
    }
}

/// The components joined by slashes.
pub fn joined(path: &[Vec<u8>]) -> Vec<u8> {
    path.join(&b'/')
}

/// What differs between two views, for people; empty if nothing does.
pub fn differences(expected: &View, found: &View) -> Vec<String> {
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    paths
        .into_iter()
        .filter(|path| expected.get(*path) != found.get(*path))
        .map(|path| {
            format!("/{}:\n  expected {:?}\n  found    {:?}", path.escape_ascii(), expected.get(path), found.get(path))
        })
        .collect()
}
