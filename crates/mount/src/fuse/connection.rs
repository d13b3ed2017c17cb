//! The kernel's side of FUSE: filesystems attached to a directory or to nothing, without any helper program.
use crate::MountError;
use rustix::{
    fs::{Mode, OFlags},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags},
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// Most bytes of a read request; more than the kernel's default limit of 256 pages would need a sysctl.
pub(crate) const MAX_READ: u32 = 1 << 20;

/// Mounts on `dir` and gives the descriptor that requests come from; the filesystem answers nothing before the
/// handshake on it. `root_mode` is the mode of the root directory.
pub(super) fn attach(dir: &Path, root_mode: u32) -> Result<(PathBuf, OwnedFd), MountError> {
    let refused = |doing| move |source: io::Error| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let real = fs::canonicalize(dir).map_err(refused("looking for the directory to mount on"))?;
    let connection = open().map_err(refused("opening /dev/fuse (is the fuse module loaded?)"))?;
    // allow_other and default_permissions: the kernel checks modes as on any filesystem, for everybody.
    let options = format!(
        "fd={},rootmode={root_mode:o},user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_READ}",
        connection.as_raw_fd()
    );
    let options = CString::new(options).map_err(|error| refused("mounting")(error.into()))?;
    // Neither nosuid nor nodev: set-user-ID programs and device nodes of an image must work in its containers.
    rustix::mount::mount("clipper", &real, "fuse.clipper", MountFlags::RDONLY, options.as_c_str())
        .map_err(|error| refused("mounting (needs root)")(error.into()))?;
    Ok((real, connection))
}

/// A filesystem that is mounted nowhere: its root can only be reached through the first descriptor, and nothing of it is
/// left once that and all files in it are closed, by whatever end of the process. Requests come from the second; reads
/// are of at most `max_read` bytes.
pub(crate) fn detached(max_read: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let connection = open()?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", "clipper")?;
    set("subtype", "clipper-devices")?;
    set("fd", &connection.as_raw_fd().to_string())?;
    set("rootmode", "40500")?;
    set("user_id", "0")?;
    set("group_id", "0")?;
    set("max_read", &max_read.to_string())?;
    // Files are opened by root and then read on behalf of any process.
    rustix::mount::fsconfig_set_flag(&context, "allow_other")?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    Ok((root, connection))
}

fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}
