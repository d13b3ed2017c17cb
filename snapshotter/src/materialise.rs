//! A layer's tree as files in a directory, such as overlayfs wants for a lower one.
//!
//! Everything is made relative to descriptors of directories that were made here, so no symlink is ever followed.
use clipper_format::tree::{
    self, Content, Directory, ExtentSource, FileData, Inode, InodeId, OPAQUE_XATTR, ROOT, Tree,
};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

/// Bytes copied at a time where the kernel can't do it alone.
const CHUNK: usize = 256 << 10;
/// What nobody else may see before it has its owner and mode.
const PRIVATE: Mode = Mode::RWXU;

/// Why a tree isn't a directory now.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path:?} in the layer")]
pub struct MaterialiseError {
    /// What was tried, such as `make the file`.
    doing: &'static str,
    /// On what, in the layer.
    path: String,
    /// Why it failed.
    source: io::Error,
}

type Result<T> = std::result::Result<T, MaterialiseError>;

/// Makes the files of `tree`, which a merge gave, in the directory `dir`, which is empty. `tar` is the tree's only device.
///
/// Trusted attributes other than overlayfs's mark of opaque directories are left out: they mean something to Clipper
/// alone.
///
/// # Errors
/// If the filesystem refuses anything at all; `dir` then holds a part of the files.
pub fn materialise(tree: &Tree, tar: &File, dir: &Path) -> Result<()> {
    let mut path = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(dir, flags, Mode::empty());
    let root = root.and_then(|root| Ok((rustix::io::fcntl_dupfd_cloexec(&root, 0)?, root)));
    let (copy, root) = root.map_err(|error| failed("open", &path, error))?;
    let mut writer = Writer { tree, tar, root: copy, names: count_names(tree), first: HashMap::new() };
    let entries = |id| tree.entries(id).map(Directory::iter).unwrap_or_default();
    let mut open = vec![Open { id: ROOT, directory: root, entries: entries(ROOT), path_len: 0 }];
    while let Some(top) = open.last_mut() {
        let Some((name, id)) = top.entries.next() else {
            // Only now that nothing is made in it any more: its default ACL isn't for its files, nor is their time for it.
            describe(&top.directory, tree.inode(top.id), &path)?;
            path.truncate(top.path_len);
            open.pop();
            continue;
        };
        let path_len = path.len();
        if path_len > 0 {
            path.push(b'/');
        }
        path.extend(name);
        if matches!(tree.inode(id).content, Content::Directory(_)) {
            let made = rustix::fs::mkdirat(&top.directory, name, PRIVATE)
                .and_then(|()| rustix::fs::openat(&top.directory, name, flags, Mode::empty()));
            let directory = made.map_err(|error| failed("make the directory", &path, error))?;
            open.push(Open { id, directory, entries: entries(id), path_len });
        } else {
            writer.leaf(&top.directory, name, id, &path)?;
            path.truncate(path_len);
        }
    }
    Ok(())
}

/// A directory that is being filled.
struct Open<'a> {
    id: InodeId,
    directory: OwnedFd,
    entries: tree::Iter<'a>,
    /// Bytes of the path of the directory that it is in.
    path_len: usize,
}

struct Writer<'a> {
    tree: &'a Tree,
    tar: &'a File,
    root: OwnedFd,
    /// How many names lead to each inode.
    names: Vec<u32>,
    /// The first name of each inode that has several, once it is made.
    first: HashMap<InodeId, Vec<u8>>,
}

impl Writer<'_> {
    /// Makes whatever isn't a directory.
    fn leaf(&mut self, dir: &OwnedFd, name: &[u8], id: InodeId, path: &[u8]) -> Result<()> {
        if let Some(first) = self.first.get(&id) {
            return self.link(first, dir, name).map_err(|error| failed("make the hard link", path, error));
        }
        let inode = self.tree.inode(id);
        match &inode.content {
            Content::File(data) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(dir, name, flags, PRIVATE);
                let file = File::from(made.map_err(|error| failed("make the file", path, error))?);
                self.copy(data, &file).map_err(|error| failed("write", path, error))?;
                describe(&file, inode, path)?;
            }
            Content::Symlink(target) => {
                let made = rustix::fs::symlinkat(&target[..], dir, name);
                made.map_err(|error| failed("make the symlink", path, error))?;
                describe_unopened(dir, name, inode, path)?;
            }
            special => {
                let (kind, device) = match special {
                    Content::CharDevice(device) => (FileType::CharacterDevice, *device),
                    Content::BlockDevice(device) => (FileType::BlockDevice, *device),
                    Content::Socket => (FileType::Socket, Default::default()),
                    _ => (FileType::Fifo, Default::default()),
                };
                let device = rustix::fs::makedev(device.major, device.minor);
                let made = rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device);
                made.map_err(|error| failed("make the special file", path, error))?;
                describe_unopened(dir, name, inode, path)?;
            }
        }
        if self.names.get(id).is_some_and(|names| *names > 1) {
            self.first.insert(id, path.to_vec());
        }
        Ok(())
    }

    /// Another name for what was made at the path `first`.
    fn link(&self, first: &[u8], dir: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        let Some(slash) = first.iter().rposition(|byte| *byte == b'/') else {
            return rustix::fs::linkat(&self.root, first, dir, name, AtFlags::empty());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = rustix::fs::openat2(&self.root, &first[..slash], flags, Mode::empty(), resolve)?;
        rustix::fs::linkat(&parent, &first[slash + 1..], dir, name, AtFlags::empty())
    }

    /// Writes a file's data; what no extent covers stays a hole.
    fn copy(&self, data: &FileData, file: &File) -> io::Result<()> {
        for extent in data.extents() {
            match &extent.source {
                ExtentSource::Inline(bytes) => file.write_all_at(bytes, extent.file_offset)?,
                ExtentSource::Device { offset, .. } => {
                    copy_range(self.tar, *offset, file, extent.file_offset, extent.len)?;
                }
            }
        }
        file.set_len(data.size())
    }
}

/// How many names lead to each inode of `tree`.
fn count_names(tree: &Tree) -> Vec<u32> {
    let mut names = vec![0; tree.inodes.len()];
    for inode in &tree.inodes {
        if let Content::Directory(entries) = &inode.content {
            for id in entries.ids() {
                names[id] += 1;
            }
        }
    }
    names
}

/// Copies within one filesystem, which may share the blocks; by hand where the kernel doesn't do it.
fn copy_range(from: &File, mut offset: u64, to: &File, mut at: u64, len: u64) -> io::Result<()> {
    let end = at + len;
    while at < end {
        let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(from, Some(&mut offset), to, Some(&mut at), step) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                let mut buffer = vec![0; CHUNK.min(step)];
                while at < end {
                    let step = usize::try_from(end - at).unwrap_or(CHUNK).min(buffer.len());
                    from.read_exact_at(&mut buffer[..step], offset)?;
                    to.write_all_at(&buffer[..step], at)?;
                    (offset, at) = (offset + step as u64, at + step as u64);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives an open file or directory its owner, attributes, mode and times, in this order: a new owner takes
/// capabilities and setuid away, and an ACL changes the mode.
fn describe(file: &impl AsFd, inode: &Inode, path: &[u8]) -> Result<()> {
    let (owner, group) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
    rustix::fs::fchown(file, Some(owner), Some(group)).map_err(|error| failed("change the owner of", path, error))?;
    for (name, value) in xattrs(inode) {
        let set = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        set.map_err(|error| failed("set an attribute of", path, error))?;
    }
    let mode = Mode::from_raw_mode(inode.perm.into());
    rustix::fs::fchmod(file, mode).map_err(|error| failed("change the mode of", path, error))?;
    rustix::fs::futimens(file, &times(inode)).map_err(|error| failed("set the time of", path, error))
}

/// The same for what can't be opened, or mustn't be: symlinks, devices and FIFOs.
fn describe_unopened(dir: &OwnedFd, name: &[u8], inode: &Inode, path: &[u8]) -> Result<()> {
    let (owner, group) = (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid));
    let owned = rustix::fs::chownat(dir, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW);
    owned.map_err(|error| failed("change the owner of", path, error))?;
    for (key, value) in xattrs(inode) {
        // There is no call that takes a directory's descriptor. The last part of the path isn't followed.
        let at = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
        let set = rustix::fs::lsetxattr(&at[..], key, value, XattrFlags::empty());
        set.map_err(|error| failed("set an attribute of", path, error))?;
    }
    if !matches!(inode.content, Content::Symlink(_)) {
        let changed = rustix::fs::chmodat(dir, name, Mode::from_raw_mode(inode.perm.into()), AtFlags::empty());
        changed.map_err(|error| failed("change the mode of", path, error))?;
    }
    let timed = rustix::fs::utimensat(dir, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW);
    timed.map_err(|error| failed("set the time of", path, error))
}

/// The attributes that go to the disk.
fn xattrs(inode: &Inode) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = inode.xattrs.iter().map(|(name, value)| (&name[..], &value[..]));
    all.filter(|(name, _)| !name.starts_with(b"trusted.") || *name == OPAQUE_XATTR)
}

/// As containerd sets them: without a time of access in the archive, that is the time of modification.
fn times(inode: &Inode) -> Timestamps {
    let time = Timespec { tv_sec: inode.mtime, tv_nsec: inode.mtime_nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(doing: &'static str, path: &[u8], error: impl Into<io::Error>) -> MaterialiseError {
    let path = format!("/{}", String::from_utf8_lossy(path));
    MaterialiseError { doing, path, source: error.into() }
}
