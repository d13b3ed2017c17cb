//! What a directory shows: every path, attribute, xattr and byte; and what the entries of a layer should show.
use crate::tarball::{Entry, Kind};
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    pub nlink: u64,
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// By path below the root; the root is the empty path.
pub type View = BTreeMap<Vec<u8>, Seen>;

/// Everything below `root`. Also checks that inode numbers tell hard links.
pub fn view(root: &Path) -> View {
    let mut view = View::new();
    let mut names_of_inode: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let status = fs::symlink_metadata(&full).unwrap();
        let file_type = status.file_type();
        let kind = if file_type.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name().into_vec();
                pending.push(if path.is_empty() { name } else { [&path[..], b"/", &name].concat() });
            }
            Kind::Directory
        } else if file_type.is_symlink() {
            Kind::Symlink(fs::read_link(&full).unwrap().into_os_string().into_vec())
        } else if file_type.is_char_device() {
            Kind::CharDevice(rustix::fs::major(status.rdev()), rustix::fs::minor(status.rdev()))
        } else if file_type.is_block_device() {
            Kind::BlockDevice(rustix::fs::major(status.rdev()), rustix::fs::minor(status.rdev()))
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else {
            Kind::File(fs::read(&full).unwrap())
        };
        if kind != Kind::Directory {
            let (found, nlink) = names_of_inode.entry(status.ino()).or_default();
            *found += 1;
            *nlink = status.nlink();
        }
        let names = xattr::list(&full).unwrap();
        let xattrs = names.map(|name| {
            let value = xattr::get(&full, &name).unwrap().unwrap();
            (name.into_vec(), value)
        });
        let seen = Seen {
            kind,
            mode: status.mode() & 0o7777,
            uid: status.uid(),
            gid: status.gid(),
            mtime: (status.mtime(), status.mtime_nsec()),
            nlink: status.nlink(),
            size: if file_type.is_dir() { 0 } else { status.size() },
            xattrs: xattrs.collect(),
        };
        view.insert(path, seen);
    }
    for (ino, (found, nlink)) in names_of_inode {
        assert_eq!(found, nlink, "inode {ino} has other names than links");
    }
    view
}

/// What one layer of `entries` must show. Every directory must be among them, the root as `.`.
pub fn expected(entries: &[Entry]) -> View {
    let mut view = View::new();
    let mut aliases: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for entry in entries {
        let path = if entry.path == b"." { Vec::new() } else { entry.path.clone() };
        if let Kind::Hardlink(target) = &entry.kind {
            aliases.insert(path, target.clone());
            continue;
        }
        let size = match &entry.kind {
            Kind::File(bytes) | Kind::Symlink(bytes) => bytes.len() as u64,
            _ => 0,
        };
        let nlink = if entry.kind == Kind::Directory { 2 } else { 1 };
        let seen = Seen {
            kind: entry.kind.clone(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: (entry.mtime.0, entry.mtime.1.into()),
            nlink,
            size,
            xattrs: entry.xattrs.clone(),
        };
        view.insert(path, seen);
    }
    for (path, target) in &aliases {
        let links = 1 + aliases.values().filter(|other| *other == target).count() as u64;
        view.get_mut(target).unwrap().nlink = links;
        let seen = view[target].clone();
        view.insert(path.clone(), seen);
    }
    for target in aliases.values() {
        let links = view[target].nlink;
        for path in aliases.iter().filter(|(_, other)| *other == target).map(|(path, _)| path) {
            view.get_mut(path).unwrap().nlink = links;
        }
    }
    let directories: Vec<Vec<u8>> =
        view.iter().filter(|(_, seen)| seen.kind == Kind::Directory).map(|(path, _)| path.clone()).collect();
    for path in directories.into_iter().filter(|path| !path.is_empty()) {
        let parent = path.iter().rposition(|byte| *byte == b'/').map_or(Vec::new(), |at| path[..at].to_vec());
        view.get_mut(&parent).unwrap().nlink += 1;
    }
    view
}

/// Compares path by path, for a message that can be read.
pub fn assert_same(found: &View, expected: &View) {
    for (path, expected) in expected {
        let name = String::from_utf8_lossy(path);
        let found = found.get(path).unwrap_or_else(|| panic!("{name:?} is missing"));
        let brief = |seen: &Seen| match &seen.kind {
            Kind::File(_) => format!("{:?}", Seen { kind: Kind::File(Vec::new()), ..seen.clone() }),
            _ => format!("{seen:?}"),
        };
        assert!(found == expected, "{name:?} is {}, should be {}", brief(found), brief(expected));
    }
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(extra.is_empty(), "not of the image: {extra:?}");
}

/// Bytes that are cheap to make, hard to compress to nothing, and different for every `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Letters, in runs: Deflate finds matches as in real files.
        let run = 1 + (state >> 60) as usize;
        bytes.extend(std::iter::repeat_n(b'a' + (state >> 33) as u8 % 26, run));
    }
    bytes.truncate(len);
    bytes
}
