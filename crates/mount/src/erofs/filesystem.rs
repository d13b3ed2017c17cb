//! The filesystem whose files are devices. The kernel's EROFS opens them when an image is mounted, and reads them.
use super::open_files::{DeviceFile, FileId, OpenFiles};
use crate::{
    LazyError,
    fuse::{Agreement, Bytes, FOREVER, MAX_READ, Reads},
    session::Life,
};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use std::{
    ffi::OsStr,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::runtime::Handle;

/// EROFS reads whole blocks, also the one that a device ends in: behind its end are zeros.
const BLOCK: u64 = 512;

/// Reads that may be under way for all images of the node together. Those that wait for the network must not keep others
/// from being asked for.
const MAX_BACKGROUND: u16 = 4096;

/// Serves the devices of all mounts.
pub(super) struct DeviceFilesystem {
    files: Arc<OpenFiles>,
    reads: Reads,
    agreement: Agreement,
}

/// A device with zeros behind its end, up to a whole block.
struct Padded(DeviceFile);

impl DeviceFilesystem {
    /// A filesystem with `threads` threads; what must be fetched is fetched on `runtime`.
    pub(super) fn new(files: Arc<OpenFiles>, runtime: Handle, threads: usize) -> Self {
        Self { files, reads: Reads::new(runtime, threads), agreement: Agreement::default() }
    }

    /// What the handshake with the kernel is going to agree on.
    pub(super) fn agreement(&self) -> Agreement {
        self.agreement.clone()
    }

    fn file(&self, ino: INodeNo) -> Option<Padded> {
        self.files.device(FileId::of(ino)).map(Padded)
    }
}

impl Padded {
    fn size(&self) -> u64 {
        self.0.device.device.size().next_multiple_of(BLOCK)
    }

    /// The part of `buffer` that the device fills; the rest is zeroed.
    fn within<'b>(&self, offset: u64, buffer: &'b mut [u8]) -> &'b mut [u8] {
        let len = self.0.device.device.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (within, behind) = buffer.split_at_mut(len);
        behind.fill(0);
        within
    }
}

impl Bytes for Padded {
    fn image(&self) -> &str {
        self.0.notes.image()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, LazyError> {
        match self.within(offset, buffer) {
            [] => Ok(true),
            within => {
                let DeviceFile { device, number, notes } = &self.0;
                notes.try_read(*number, device, offset, within)
            }
        }
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), LazyError> {
        match self.within(offset, buffer) {
            [] => Ok(()),
            within => {
                let DeviceFile { device, number, notes } = &self.0;
                notes.read(*number, device, offset, within).await
            }
        }
    }
}

/// Takes from the kernel what device files need. Fails without asynchronous direct reads: only of these the kernel says
/// that all failed if a part did. Else what came before would be a short read, and it is EROFS's choice, other in other
/// kernels, whether that is an error or is filled up with zeros.
pub(super) fn negotiate(config: &mut KernelConfig) -> io::Result<()> {
    let asynchronous = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
    asynchronous.map_err(|_| io::Error::other("the kernel has no asynchronous direct reads in FUSE"))?;
    // Bounds read requests too: fuser derives the number of pages of a request from it.
    config.set_max_write(MAX_READ).map_err(|_| io::Error::other("the kernel's bounds are out of the ordinary"))?;
    config.set_max_background(MAX_BACKGROUND).map_err(|_| io::Error::other("no background requests"))?;
    Ok(())
}

/// The attributes of a file of `size` bytes, or of the root.
pub(super) fn attributes(ino: INodeNo, size: u64) -> FileAttr {
    let (kind, perm) = match ino {
        INodeNo::ROOT => (FileType::Directory, 0o500),
        _ => (FileType::RegularFile, 0o400),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for DeviceFilesystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.agreement.settle(config.capabilities(), InitFlags::FUSE_ASYNC_DIO);
        negotiate(config)
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = FileId::named(name).and_then(|id| Some((id.ino(), self.files.device(id).map(Padded)?)));
        match found {
            // A name is looked up once, so the kernel needn't remember it.
            Some((ino, file)) => reply.entry(&Duration::ZERO, &attributes(ino, file.size()), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let size = if ino == INodeNo::ROOT { Some(0) } else { self.file(ino).map(|file| file.size()) };
        match size {
            Some(size) => reply.attr(&FOREVER, &attributes(ino, size)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.files.has(FileId::of(ino)) {
            // EROFS caches what it reads; a second copy in the page cache would only cost memory.
            reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // Who keeps the mount for another process hears of its end before the kernel hears that we did.
        let ended = self.files.close(FileId::of(ino));
        reply.ok();
        if let Some(ended) = ended {
            ended.end(Life::Unmounted);
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
        match self.file(ino) {
            Some(file) => {
                // Never less than asked for, but at the end of the file: EROFS might fill up with zeros.
                let len = file.size().saturating_sub(offset).min(size.into()) as usize;
                self.reads.answer(ino, file, offset, len, reply);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // The kernel doesn't ask again.
        reply.error(Errno::ENOSYS);
    }
}
