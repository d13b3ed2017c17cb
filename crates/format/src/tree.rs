//! A layer's or an image's file tree in memory: what the tar walker makes, the merge combines and EROFS stores.
mod directory;
mod file;

pub use directory::{Directory, Iter};
pub use file::{Extent, ExtentSource, FileData};

use std::collections::BTreeMap;

/// Xattr by which overlayfs knows an opaque directory (kernel, Documentation/filesystems/overlayfs.rst).
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// Xattr that marks, in a layer's own tree only, a directory that came to be because something in it did. A merge gives
/// it the attributes of the directory in the layers below and drops the mark. Its value is an [`Inherits`].
pub const IMPLICIT_XATTR: &[u8] = b"trusted.clipper.implicit";

/// Xattr of a directory, in a layer's own tree only: names in it, joined by `/`, that aren't there if the layer is an
/// image's first, because containerd unpacks that one by other rules (see `tar::bottom`). A merge removes it.
pub const BOTTOM_XATTR: &[u8] = b"trusted.clipper.bottom";

/// Number of an inode within its [`Tree`].
pub type InodeId = usize;

/// A file tree. Inode 0 is the root directory. Hard links are several names for one [`InodeId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// All inodes; those that no name leads to are ignored by whoever reads the tree.
    pub inodes: Vec<Inode>,
    /// Bytes of each device that extents may name: device `n` (from 1) is `device_sizes[n - 1]`.
    pub device_sizes: Vec<u64>,
}

/// The root's number in every tree.
pub const ROOT: InodeId = 0;

/// One file, directory, link, device, FIFO or socket. Its link count is derived from the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`. The type is in `content`.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970; negative before.
    pub mtime: i64,
    /// Nanoseconds of the modification time, 0 to 999 999 999.
    pub mtime_nsec: u32,
    /// Extended attributes by full name, such as `security.capability`.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Type and what goes with it.
    pub content: Content,
}

/// The type of an inode and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Names to inodes.
    Directory(Directory),
    /// A regular file.
    File(FileData),
    /// A symbolic link's target; 1 to 4095 bytes, no NUL.
    Symlink(Vec<u8>),
    /// A character device. Device 0:0 is a whiteout in a layer's tree, as in overlayfs.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A FIFO.
    Fifo,
    /// A Unix socket. Tar can't carry one; kept for completeness of the on-disk format.
    Socket,
}

/// What a directory that a layer made only as a parent takes from the directory below; always extended attributes that
/// the layer doesn't set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherits {
    /// Owner and mode: unless the layer described the directory later on.
    pub owner: bool,
    /// Modification time: unless the layer gave one later on.
    pub time: bool,
    /// The layer described the parent directory, itself made only as a parent, after this one was made. It makes a
    /// difference if nothing is below: the group then is what the parent inherited, if that was setgid.
    pub early: bool,
}

/// A device file's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major, 12 bits used by Linux.
    pub major: u32,
    /// Minor, 20 bits used by Linux.
    pub minor: u32,
}

impl DeviceNumber {
    /// 0:0, overlayfs's whiteout.
    pub const WHITEOUT: Self = Self { major: 0, minor: 0 };
}

impl Inode {
    /// A directory without entries, root-owned, mode 0755, at the epoch.
    pub fn empty_directory() -> Self {
        Self {
            perm: 0o755,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: BTreeMap::new(),
            content: Content::Directory(Directory::default()),
        }
    }

    /// Whether a merge takes this for a whiteout.
    pub fn is_whiteout(&self) -> bool {
        self.content == Content::CharDevice(DeviceNumber::WHITEOUT)
    }

    /// Whether this directory hides what lies below it in lower layers.
    pub fn is_opaque(&self) -> bool {
        self.xattrs.get(OPAQUE_XATTR).is_some_and(|v| v == b"y")
    }

    /// What a merge has to take from below for this directory; `None` if the layer described it from the start.
    pub fn inherits(&self) -> Option<Inherits> {
        self.xattrs.get(IMPLICIT_XATTR).map(|value| Inherits::from_bytes(value))
    }

    /// Marks a directory.
    pub fn set_inherits(&mut self, inherits: Inherits) {
        self.xattrs.insert(IMPLICIT_XATTR.to_vec(), inherits.to_bytes());
    }
}

impl Inherits {
    /// A directory that the layer never described.
    pub const ALL: Self = Self { owner: true, time: true, early: false };

    /// The value of [`IMPLICIT_XATTR`]: the letters o, t, e for what is set.
    pub fn to_bytes(self) -> Vec<u8> {
        let letters = [(self.owner, b'o'), (self.time, b't'), (self.early, b'e')];
        letters.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect()
    }

    /// Reads [`Inherits::to_bytes`]; other letters are ignored.
    pub fn from_bytes(value: &[u8]) -> Self {
        let [owner, time, early] = [b'o', b't', b'e'].map(|letter| value.contains(&letter));
        Self { owner, time, early }
    }
}

impl Tree {
    /// A tree with nothing but an implicit root.
    pub fn empty() -> Self {
        let mut root = Inode::empty_directory();
        root.set_inherits(Inherits::ALL);
        Self { inodes: vec![root], device_sizes: Vec::new() }
    }

    /// The inode `id`.
    ///
    /// # Panics
    /// If `id` isn't of this tree.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id]
    }

    /// The entries of directory `id`; `None` if it isn't one.
    pub fn entries(&self, id: InodeId) -> Option<&Directory> {
        match &self.inodes[id].content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The inode at `path`, components joined by `/`, no symlink followed; the empty path is the root.
    pub fn lookup(&self, path: &[u8]) -> Option<InodeId> {
        path.split(|b| *b == b'/').filter(|c| !c.is_empty()).try_fold(ROOT, |dir, name| self.entries(dir)?.get(name))
    }

    /// Drops inodes that no name leads to and renumbers the rest; does nothing if there are none.
    ///
    /// Names that lead to no inode, which only a broken tree has, are dropped too.
    pub fn compact(&mut self) {
        const UNSEEN: InodeId = InodeId::MAX;
        let mut numbers = vec![UNSEEN; self.inodes.len()];
        let mut todo = vec![ROOT];
        let mut seen = 0;
        while let Some(id) = todo.pop() {
            match numbers.get_mut(id) {
                Some(number) if *number == UNSEEN => *number = 0,
                _ => continue,
            }
            seen += 1;
            if let Some(entries) = self.entries(id) {
                todo.extend(entries.ids());
            }
        }
        if seen == self.inodes.len() {
            return;
        }
        // In the old order, so that equal trees stay equal.
        let live = numbers.iter_mut().filter(|number| **number != UNSEEN);
        live.enumerate().for_each(|(new, number)| *number = new);
        let mut number = numbers.iter();
        self.inodes.retain_mut(|inode| {
            if let Content::Directory(entries) = &mut inode.content {
                entries.renumber(|id| numbers.get(id).copied().filter(|number| *number != UNSEEN));
            }
            number.next().is_some_and(|number| *number != UNSEEN)
        });
    }
}
