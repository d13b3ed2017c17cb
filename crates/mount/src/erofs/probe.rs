//! Whether this kernel's EROFS can be relied on here: tried out on a tiny tree, not guessed from version numbers.
use super::{
    context::{self, path_of},
    filesystem::{attributes, negotiate},
    mount::put,
};
use crate::fuse::{self, FOREVER};
use clipper_format::{
    erofs,
    tree::{Content, Directory, Extent, ExtentSource, FileData, Inode, Tree},
};
use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyEntry, ReplyOpen, Request,
};
use rustix::fs::{Mode, OFlags};
use std::{ffi::OsStr, fs::File, io, os::unix::fs::FileExt as _, path::Path, time::Duration};

/// Bytes of the device that can be read, from its start.
const GOOD: usize = 8192;
/// Bytes of the device. Those behind [`GOOD`] can't be had.
const SIZE: usize = 32 << 10;
/// Bytes of a request: each read of more than one page is several.
const MAX_READ: u32 = 4096;

/// Why the driver `erofs` can't be used.
#[derive(Debug, thiserror::Error)]
#[error("EROFS can't be used here: {step}")]
pub struct NoErofs {
    step: &'static str,
    source: io::Error,
}

/// Mounts a tree in `dir`, attached to nothing, over a device that ends in bytes that can't be had. What can be read must
/// be right, and what can't must be an error even if it is asked for together with what can. Blocks.
pub(crate) fn probe(dir: &Path) -> Result<(), NoErofs> {
    let failed = |step| move |source: io::Error| NoErofs { step, source };
    let (root, connection) = fuse::detached(MAX_READ).map_err(failed("mounting a FUSE filesystem"))?;
    fuse::serve(ProbeFilesystem, connection, 1, "probe".into(), |_| ()).map_err(failed("talking with FUSE"))?;
    let tree = tree().map_err(failed("writing a tree"))?;
    let tree = put(&tree, dir).map_err(failed("writing a tree"))?;
    let mounted = context::make(&path_of(&tree), &[path_of(&root).join(NAME)]);
    let mounted = mounted.map_err(|(step, source)| NoErofs { step, source })?;
    let open = rustix::fs::openat(&mounted, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let file = File::from(open.map_err(|error| failed("opening a file in EROFS")(error.into()))?);
    let mut page = [0; 4096];
    for at in (0..SIZE).step_by(page.len()) {
        match file.read_exact_at(&mut page, at as u64) {
            Ok(()) if at >= GOOD => {
                let error = io::Error::other("the kernel makes up bytes that can't be read");
                return Err(failed("reading bytes that can't be had through EROFS")(error));
            }
            Ok(()) if page != content()[at..at + page.len()] => {
                return Err(failed("reading through EROFS")(io::Error::other("the bytes are wrong")));
            }
            Err(error) if at < GOOD => return Err(failed("reading through EROFS")(error)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The name of both the device and the one file in the tree, which has the device's bytes.
const NAME: &str = "probe";

fn tree() -> io::Result<Vec<u8>> {
    let source = ExtentSource::Device { device: 1, offset: 0 };
    let extent = Extent { file_offset: 0, len: SIZE as u64, source };
    let file = Inode {
        perm: 0o400,
        content: Content::File(FileData::new(SIZE as u64, vec![extent])),
        ..Inode::empty_directory()
    };
    let mut names = Directory::default();
    names.insert(NAME.as_bytes(), 1);
    let root = Inode { content: Content::Directory(names), ..Inode::empty_directory() };
    erofs::write(&Tree { inodes: vec![root, file], device_sizes: vec![SIZE as u64] }).map_err(io::Error::other)
}

fn content() -> [u8; GOOD] {
    std::array::from_fn(|at| (at % 251) as u8 + 1)
}

/// Serves the device.
struct ProbeFilesystem;

const DEVICE: INodeNo = INodeNo(2);

impl Filesystem for ProbeFilesystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config)
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&Duration::ZERO, &attributes(DEVICE, SIZE as u64), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &attributes(ino, if ino == DEVICE { SIZE as u64 } else { 0 }));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(size as usize)?));
        match bytes.and_then(|bytes| content().get(bytes).map(<[u8]>::to_vec)) {
            Some(bytes) => reply.data(&bytes),
            None => reply.error(Errno::EIO),
        }
    }
}
