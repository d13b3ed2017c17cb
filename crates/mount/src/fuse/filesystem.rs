//! The filesystem that the kernel asks: stateless, its inode numbers are the tree's node numbers.
use super::{
    attributes::{BLOCK, FOREVER, InodeNumbers, attributes, file_type, negative},
    connection::MAX_READ,
    handshake::Agreement,
    reads::{Bytes, Reads, failed},
};
use crate::{LazyError, LazyImage};
use clipper_format::erofs::{ErofsError, FileKind, ImageInode};
use fuser::{
    AccessFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt as _};
use tokio::runtime::Handle;

/// Node numbers are never used again, so there is one generation.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have waiting without a process that sleeps for each: read-ahead and page faults.
const MAX_BACKGROUND: u16 = 64;

/// Serves one image.
pub(super) struct TreeFilesystem {
    image: LazyImage,
    numbers: InodeNumbers,
    reads: Reads,
    agreement: Agreement,
    /// Whether the kernel takes ENOSYS for an answer that holds for all opens.
    no_open: bool,
    no_opendir: bool,
}

/// A regular file of an image.
struct TreeFile {
    image: LazyImage,
    file: ImageInode,
}

impl TreeFilesystem {
    /// A filesystem with `threads` threads that shows `image`; what must be fetched is fetched on `runtime`.
    pub(super) fn new(image: LazyImage, runtime: Handle, threads: usize) -> Result<Self, ErofsError> {
        let root = image.tree().root();
        image.tree().inode(root)?;
        let (numbers, reads) = (InodeNumbers::new(root), Reads::new(runtime, threads));
        let agreement = Agreement::default();
        Ok(Self { image, numbers, reads, agreement, no_open: false, no_opendir: false })
    }

    /// What the handshake with the kernel is going to agree on.
    pub(super) fn agreement(&self) -> Agreement {
        self.agreement.clone()
    }

    pub(super) fn root_mode(&self) -> u32 {
        let tree = self.image.tree();
        tree.inode(tree.root()).map_or(0o40755, |root| root.mode)
    }

    fn inode(&self, ino: INodeNo) -> Result<ImageInode, Errno> {
        let inode = self.image.tree().inode(self.numbers.nid(ino));
        inode.map_err(|error| damaged(ino, &error))
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Option<ImageInode>, Errno> {
        let parent_inode = self.inode(parent)?;
        if name == "." {
            // So the kernel asks for an inode of which it knows only the number, whatever its type: file handles.
            return Ok(Some(parent_inode));
        }
        if parent_inode.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let tree = self.image.tree();
        let found = tree.lookup(&parent_inode, name.as_bytes()).map_err(|error| damaged(parent, &error))?;
        found.map(|nid| tree.inode(nid)).transpose().map_err(|error| damaged(parent, &error))
    }

    fn list(&self, ino: INodeNo, offset: u64, reply: &mut ReplyDirectory) -> Result<(), Errno> {
        let directory = self.inode(ino)?;
        let entries = self.image.tree().entries(&directory, offset);
        for entry in entries.map_err(|error| damaged(ino, &error))? {
            let entry = entry.map_err(|error| damaged(ino, &error))?;
            let number = self.numbers.of(entry.nid);
            if reply.add(number, entry.next_cookie, file_type(entry.kind), OsStr::from_bytes(entry.name)) {
                break;
            }
        }
        Ok(())
    }

    fn list_with_attributes(&self, ino: INodeNo, offset: u64, reply: &mut ReplyDirectoryPlus) -> Result<(), Errno> {
        let directory = self.inode(ino)?;
        let tree = self.image.tree();
        for entry in tree.entries(&directory, offset).map_err(|error| damaged(ino, &error))? {
            let entry = entry.map_err(|error| damaged(ino, &error))?;
            let number = self.numbers.of(entry.nid);
            let inode = tree.inode(entry.nid).map_err(|error| damaged(number, &error))?;
            let (name, attributes) = (OsStr::from_bytes(entry.name), attributes(number, &inode));
            if reply.add(number, entry.next_cookie, name, &FOREVER, &attributes, GENERATION) {
                break;
            }
        }
        Ok(())
    }

    /// Whether `value`, which a reader offers `size` bytes for, fits; 0 asks how large it is.
    fn reply_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
        match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(value),
            _ => reply.error(Errno::ERANGE),
        }
    }

    /// The next byte from `offset` that is data, or that is a hole (lseek(2), `SEEK_DATA` and `SEEK_HOLE`). The end of
    /// the file counts as a hole.
    fn seek(&self, ino: INodeNo, offset: i64, whence: i32) -> Result<i64, Errno> {
        let file = self.inode(ino)?;
        let from = u64::try_from(offset).ok().filter(|from| *from < file.size).ok_or(Errno::ENXIO)?;
        let wants_hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        let image = &self.image;
        let found =
            image.next_hole_or_data(&file, from, wants_hole).map_err(|error| failed(ino, image.name(), &error))?;
        found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
    }
}

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

impl Bytes for TreeFile {
    fn image(&self) -> &str {
        self.image.name()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, LazyError> {
        self.image.try_read(&self.file, offset, buffer)
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), LazyError> {
        self.image.read(&self.file, offset, buffer).await
    }
}

/// What the kernel is told about a damaged tree; the log is told more.
fn damaged(ino: INodeNo, error: &ErofsError) -> Errno {
    tracing::error!(inode = ino.0, %error, "an image's tree is damaged");
    Errno::EIO
}

impl Filesystem for TreeFilesystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_EXPORT_SUPPORT
            | InitFlags::FUSE_POSIX_ACL
            | InitFlags::FUSE_ABORT_ERROR
            | InitFlags::FUSE_ALLOW_IDMAP
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.no_open = offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        self.agreement.settle(offered, wanted);
        // An older kernel that lacks one of these is slower or caches less, no more.
        let _ = config.add_capabilities(offered & wanted);
        let bound = |_| io::Error::other("the kernel's bounds are out of the ordinary");
        // Bounds read requests too: fuser derives the number of pages of a request from it.
        config.set_max_write(MAX_READ).map_err(bound)?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| io::Error::other("no background requests"))?;
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(Some(inode)) => {
                let attributes = attributes(self.numbers.of(inode.nid), &inode);
                reply.entry(&FOREVER, &attributes, GENERATION);
            }
            Ok(None) => reply.entry(&FOREVER, &negative(), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.inode(ino) {
            Ok(inode) => reply.attr(&FOREVER, &attributes(ino, &inode)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let target =
            self.inode(ino).and_then(|inode| self.image.tree().symlink(&inode).map_err(|error| damaged(ino, &error)));
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_open {
            // All opens from now on happen in the kernel, as if each had been answered as below.
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.inode(ino) {
            Ok(file) => file,
            Err(errno) => return reply.error(errno),
        };
        let len = file.size.saturating_sub(offset).min(size.min(MAX_READ).into()) as usize;
        self.reads.answer(ino, TreeFile { image: self.image.clone(), file }, offset, len, reply);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // As for open: the kernel doesn't ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.no_opendir {
            reply.error(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
        }
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.list(ino, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.list_with_attributes(ino, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsyncdir(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let tree = self.image.tree();
        let bytes = tree.devices().iter().fold(0u64, |sum, device| sum.saturating_add(device.size));
        reply.statfs(bytes.div_ceil(BLOCK.into()), 0, 0, tree.inode_count(), 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self
            .inode(ino)
            .and_then(|inode| self.image.tree().xattr(&inode, name.as_bytes()).map_err(|error| damaged(ino, &error)));
        match value {
            Ok(Some(value)) => Self::reply_xattr(value, size, reply),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let xattrs =
            self.inode(ino).and_then(|inode| self.image.tree().xattrs(&inode).map_err(|error| damaged(ino, &error)));
        match xattrs {
            Ok(xattrs) => {
                let mut names = Vec::new();
                for (name, _) in xattrs {
                    names.extend_from_slice(&name);
                    names.push(0);
                }
                Self::reply_xattr(&names, size, reply);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(ino, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }
}
