//! Entries applied to a layer's own tree, as containerd's `archive.Apply` does for an overlayfs upper directory.
use super::bottom::Bottom;
use super::error::{Dropped, Problem, Warning};
use super::header::kind;
use super::limits::Limits;
use super::rootpath::{Found, NAME_MAX, clean, components, find, join, lstat, root_path, split};
use super::xattrs;
use crate::tree::{
    Content, DeviceNumber, Directory, FileData, IMPLICIT_XATTR, Inherits, Inode, InodeId, OPAQUE_XATTR, ROOT, Tree,
};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Warnings kept; a layer of nothing but oddities must not fill the memory.
const WARNINGS_MAX: usize = 64;

/// Bytes that an inode's first attribute takes: a map's smallest node has room for eleven.
const XATTR_MAP: usize = 512;

/// Seconds since 1970, and nanoseconds.
type Time = (i64, u32);

/// An entry with everything that extended headers say folded in.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub kind: u8,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: i64,
    pub uid: i64,
    pub gid: i64,
    pub mtime: Time,
    pub major: i64,
    pub minor: i64,
    pub data: FileData,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The tree so far, and what has to be done to it when the archive ends.
#[derive(Debug)]
pub(crate) struct Unpacker {
    tree: Tree,
    limits: Limits,
    memory: u64,
    warnings: Vec<Warning>,
    /// Directory entries in archive order, with their times: containerd sets them once more at the end, by name.
    directories: Vec<(Box<[u8]>, Time)>,
    /// The last parent resolved: as it was written, where it is. Forgotten when anything is removed.
    parent: Option<(Vec<u8>, Place)>,
    bottom: Bottom,
}

/// A directory of the tree and its path, which starts with `/`.
#[derive(Clone, Debug)]
struct Place {
    id: InodeId,
    path_len: usize,
}

impl Unpacker {
    pub fn new(limits: Limits) -> Self {
        Self {
            tree: Tree::empty(),
            limits,
            memory: 0,
            warnings: Vec::new(),
            directories: Vec::new(),
            parent: None,
            bottom: Bottom::default(),
        }
    }

    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The inode that [`Unpacker::apply`] returned.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.tree.inodes[id]
    }

    /// Sets the directories' times for good and gives the tree away.
    pub fn finish(mut self) -> Tree {
        for (name, mtime) in std::mem::take(&mut self.directories) {
            // What the path leads to by now; containerd fails if that is nothing, other runtimes don't mind.
            let Ok(path) = root_path(&self.tree, &name) else { continue };
            if let Ok(Some(id)) = lstat(&self.tree, &path) {
                let inode = &mut self.tree.inodes[id];
                set_mtime(inode, mtime);
                if let Some(inherits) = inode.inherits() {
                    inode.set_inherits(Inherits { time: false, ..inherits });
                }
            }
        }
        std::mem::take(&mut self.bottom).store(&mut self.tree);
        self.tree.compact();
        self.tree
    }

    /// Applies one entry. `None` if it made no inode: a whiteout, the root, a type that is skipped.
    pub fn apply(&mut self, mut entry: Entry) -> Result<Option<InodeId>, Problem> {
        let name = clean(&entry.name);
        if name.contains(&0) {
            return Err(Problem::Name("it holds a NUL"));
        }
        let (dir, base) = split(&name);
        // Whiteouts go by their names alone.
        if !is_known(entry.kind) && !base.starts_with(WHITEOUT_PREFIX) {
            self.warn(&entry.name, Dropped::Entry(entry.kind));
            return Ok(None);
        }
        if matches!(base, b"" | b"." | b"..") {
            // containerd ignores what resolves to the root. Only a time is taken from it, where unpacking leaves its own.
            if entry.kind == kind::DIRECTORY {
                let root = &mut self.tree.inodes[ROOT];
                root.xattrs.remove(IMPLICIT_XATTR);
                set_mtime(root, entry.mtime);
            }
            return Ok(None);
        }
        if base.len() > NAME_MAX {
            return Err(Problem::Name("a part of its path is longer than 255 bytes"));
        }
        let place = self.parent(dir)?;
        if place.path_len + 1 + base.len() > self.limits.path {
            return Err(Problem::Limit { what: "bytes of path", limit: self.limits.path as u64 });
        }
        let dir = place.id;
        if base == WHITEOUT_OPAQUE {
            self.tree.inodes[dir].xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
            self.bottom.opaque(&self.tree, dir)?;
            self.parent = None;
            return Ok(None);
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Problem::Whiteout);
            }
            // containerd refuses the second of a file and its whiteout in one layer; Docker, and containerd in an
            // image's first layer, let the whiteout win.
            self.remove(dir, hidden);
            let mut whiteout = self.blank(dir, Content::CharDevice(DeviceNumber::WHITEOUT));
            whiteout.perm = 0;
            chown(&mut whiteout, &entry);
            self.add(dir, hidden, whiteout)?;
            return Ok(None);
        }
        self.bottom.revive(&self.tree, dir, base);
        // A directory over a directory describes it anew; all else replaces.
        let there = self.child(dir, base);
        let same = there.filter(|id| entry.kind == kind::DIRECTORY && self.tree.entries(*id).is_some());
        if there.is_some() && same.is_none() {
            self.remove(dir, base);
        }
        let id = match (same, entry.kind) {
            (Some(id), _) => id,
            (None, kind::PAX_GLOBAL) => return Ok(None),
            (None, kind::HARD_LINK) => {
                let target = self.link_target(&entry.link)?;
                self.link(dir, base, target)?;
                target
            }
            (None, _) => {
                let content = content(&mut entry)?;
                let inode = self.blank(dir, content);
                self.add(dir, base, inode)?
            }
        };
        if entry.kind == kind::DIRECTORY {
            self.spend(name.len() + 32)?;
            self.directories.push((name.into_boxed_slice(), entry.mtime));
        }
        self.describe(id, entry)?;
        Ok(Some(id))
    }

    /// Owner, attributes, mode and time, in containerd's order.
    fn describe(&mut self, id: InodeId, entry: Entry) -> Result<(), Problem> {
        let mut bytes = if entry.xattrs.is_empty() { 0 } else { XATTR_MAP };
        self.make_explicit(id);
        let inode = &mut self.tree.inodes[id];
        chown(inode, &entry);
        let mut ignored = Vec::new();
        for (name, value) in entry.xattrs {
            bytes += name.len() + value.len() + 64;
            if !xattrs::set(inode, &name, &value)? {
                ignored.push(name);
            }
        }
        if !matches!(inode.content, Content::Symlink(_)) {
            xattrs::chmod(inode, (entry.mode & 0o7777) as u16);
        }
        set_mtime(inode, entry.mtime);
        for name in ignored {
            self.warn(&entry.name, Dropped::Xattr(name));
        }
        self.spend(bytes)
    }

    /// A directory that was made as a parent, with the attributes of the directory below, gets its own entry. The
    /// extended attributes stay, and so does what its subdirectories got from it.
    fn make_explicit(&mut self, id: InodeId) {
        let Some(inherits) = self.tree.inode(id).inherits().filter(|inherits| inherits.owner) else { return };
        self.tree.inodes[id].set_inherits(Inherits { owner: false, time: false, ..inherits });
        let children: Vec<InodeId> = self.tree.entries(id).into_iter().flat_map(Directory::ids).collect();
        for child in children {
            let inode = &mut self.tree.inodes[child];
            if let Some(inherits) = inode.inherits() {
                inode.set_inherits(Inherits { early: true, ..inherits });
            }
        }
    }

    /// The directory that `written` names, made with all its parents if it doesn't exist.
    fn parent(&mut self, written: &[u8]) -> Result<Place, Problem> {
        if let Some((_, place)) = self.parent.as_ref().filter(|(before, _)| before == written) {
            return Ok(place.clone());
        }
        let path = root_path(&self.tree, written)?;
        if path.len() > self.limits.path {
            return Err(Problem::Limit { what: "bytes of path", limit: self.limits.path as u64 });
        }
        let mut id = ROOT;
        for name in components(&path) {
            if name.len() > NAME_MAX {
                return Err(Problem::Name("a part of its path is longer than 255 bytes"));
            }
            self.bottom.revive(&self.tree, id, name);
            let existing = self.child(id, name);
            id = match existing.map(|child| (child, self.tree.inode(child))) {
                Some((child, inode)) if matches!(inode.content, Content::Directory(_)) => child,
                Some((_, inode)) if inode.is_whiteout() => {
                    // Only naive unpackers allow this: what was below is gone, what comes now is all there is.
                    self.remove(id, name);
                    let mut dir = self.blank(id, Content::Directory(Default::default()));
                    dir.xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
                    self.add(id, name, dir)?
                }
                Some(_) => return Err(Problem::NotADirectory(path.clone())),
                None => {
                    let mut dir = self.blank(id, Content::Directory(Default::default()));
                    self.spend(XATTR_MAP)?;
                    dir.set_inherits(Inherits::ALL);
                    self.add(id, name, dir)?
                }
            };
        }
        let place = Place { id, path_len: path.len() };
        self.parent = Some((written.to_vec(), place.clone()));
        Ok(place)
    }

    /// What a hard link's target names now. To containerd a whiteout is a device like any other.
    fn link_target(&self, link: &[u8]) -> Result<InodeId, Problem> {
        let (dir, base) = split(link);
        let path = join(&root_path(&self.tree, dir)?, base);
        match find(&self.tree, &path)? {
            Found::Inode(id) if self.tree.entries(id).is_some() => Err(Problem::LinkToDirectory(link.to_vec())),
            Found::Inode(id) | Found::Whiteout(Some(id)) => Ok(id),
            Found::Whiteout(None) | Found::Nothing => Err(Problem::LinkTarget(link.to_vec())),
        }
    }

    fn child(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        self.tree.entries(dir)?.get(name)
    }

    fn remove(&mut self, dir: InodeId, name: &[u8]) {
        if let Content::Directory(entries) = &mut self.tree.inodes[dir].content
            && entries.remove(name).is_some()
        {
            self.parent = None;
        }
    }

    fn add(&mut self, dir: InodeId, name: &[u8], inode: Inode) -> Result<InodeId, Problem> {
        let content = match &inode.content {
            Content::Symlink(target) => target.len(),
            Content::File(data) => data.extent_count() * size_of::<crate::tree::Extent>(),
            _ => 0,
        };
        self.spend(size_of::<Inode>() + content)?;
        let id = self.tree.inodes.len();
        self.tree.inodes.push(inode);
        self.link(dir, name, id)?;
        Ok(id)
    }

    fn link(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Result<(), Problem> {
        self.spend(name.len() + 64)?;
        if let Content::Directory(entries) = &mut self.tree.inodes[dir].content {
            entries.insert(name, id);
        }
        Ok(())
    }

    /// A new inode in `dir`, before anything is known of it: root's, and the group of a setgid directory.
    fn blank(&self, dir: InodeId, content: Content) -> Inode {
        let parent = self.tree.inode(dir);
        let gid = if parent.perm & 0o2000 != 0 { parent.gid } else { 0 };
        let perm = if matches!(content, Content::Symlink(_)) { 0o777 } else { 0o755 };
        Inode { perm, gid, content, ..Inode::empty_directory() }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Problem> {
        self.memory = self.memory.saturating_add(bytes as u64);
        if self.memory > self.limits.memory {
            return Err(Problem::Limit { what: "bytes of memory for the layer's tree", limit: self.limits.memory });
        }
        Ok(())
    }

    fn warn(&mut self, path: &[u8], dropped: Dropped) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(Warning { path: path.to_vec(), dropped });
        }
    }
}

fn is_known(kind: u8) -> bool {
    matches!(
        kind,
        kind::REGULAR
            | kind::CONTIGUOUS
            | kind::GNU_SPARSE
            | kind::HARD_LINK
            | kind::SYMLINK
            | kind::CHAR_DEVICE
            | kind::BLOCK_DEVICE
            | kind::DIRECTORY
            | kind::FIFO
            | kind::PAX_GLOBAL
    )
}

fn content(entry: &mut Entry) -> Result<Content, Problem> {
    // As mknod(2) keeps them: 12 bits of major, 20 of minor.
    let device = || DeviceNumber { major: (entry.major & 0xfff) as u32, minor: (entry.minor & 0xf_ffff) as u32 };
    Ok(match entry.kind {
        kind::DIRECTORY => Content::Directory(Default::default()),
        kind::SYMLINK => {
            if entry.link.is_empty() || entry.link.len() > 4095 || entry.link.contains(&0) {
                return Err(Problem::SymlinkTarget);
            }
            Content::Symlink(std::mem::take(&mut entry.link))
        }
        kind::CHAR_DEVICE => Content::CharDevice(device()),
        kind::BLOCK_DEVICE => Content::BlockDevice(device()),
        kind::FIFO => Content::Fifo,
        _ => Content::File(std::mem::take(&mut entry.data)),
    })
}

/// lchown(2): IDs are taken modulo 2³², and all ones leaves the owner as it is. It drops file capabilities.
fn chown(inode: &mut Inode, entry: &Entry) {
    let (uid, gid) = (entry.uid as u32, entry.gid as u32);
    if uid != u32::MAX {
        inode.uid = uid;
    }
    if gid != u32::MAX {
        inode.gid = gid;
    }
    if !matches!(inode.content, Content::Directory(_)) {
        inode.xattrs.remove(xattrs::CAPABILITY);
    }
}

/// containerd keeps times from 1970 to what 63 bits of nanoseconds hold; all others become 1970.
fn set_mtime(inode: &mut Inode, (seconds, nanos): Time) {
    const LAST: Time = (9_223_372_036, 854_775_807);
    (inode.mtime, inode.mtime_nsec) = if seconds < 0 || (seconds, nanos) > LAST { (0, 0) } else { (seconds, nanos) };
}
