//! The kernel's side: mount(2) and umount(2) of a FUSE filesystem, without any helper program.
use crate::MountError;
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// Most bytes of a read request; more than the kernel's default limit of 256 pages would need a sysctl.
pub(super) const MAX_READ: u32 = 1 << 20;

/// A directory that a FUSE filesystem of ours is mounted on.
pub(super) struct MountPoint {
    dir: PathBuf,
    device: Device,
}

/// Major and minor number of a mounted filesystem, as `stat` tells.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Device(u32, u32);

/// Mounts on `dir` and gives the descriptor that requests come from; the filesystem answers nothing before the
/// handshake on it. `root_mode` is the mode of the root directory.
pub(super) fn attach(dir: &Path, root_mode: u32) -> Result<(PathBuf, OwnedFd), MountError> {
    let refused = |doing| move |source: io::Error| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let real = fs::canonicalize(dir).map_err(refused("looking for the directory to mount on"))?;
    let connection = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let connection =
        connection.map_err(|error| refused("opening /dev/fuse (is the fuse module loaded?)")(error.into()))?;
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

impl MountPoint {
    /// What is mounted on `dir` now; asks the filesystem, which must answer by now.
    pub(super) fn of(dir: PathBuf) -> Result<Self, MountError> {
        match Device::of(&dir) {
            Ok(device) => Ok(Self { dir, device }),
            Err(error) => Err(MountError::Kernel { dir, doing: "looking at the new mount", source: error.into() }),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the kernel read `kib` KiB ahead. FUSE's handshake can't ask for more than 128.
    pub(super) fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let Device(major, minor) = self.device;
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Unmounts, lazily if files are open; nothing happens if the filesystem isn't mounted here any more.
    pub(super) fn detach(&self) -> Result<(), MountError> {
        let refused =
            |error: Errno| MountError::Kernel { dir: self.dir.clone(), doing: "unmounting", source: error.into() };
        match Device::of(&self.dir) {
            Ok(device) if device == self.device => {}
            // Not there any more, or dead: an aborted connection says so, and is ours as nothing else here is FUSE.
            Err(Errno::NOTCONN) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(refused(error)),
            Ok(_) if self.is_listed() => return Err(MountError::Covered { dir: self.dir.clone() }),
            Ok(_) => return Ok(()),
        }
        match rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {}
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(refused(error)),
        }
        match rustix::mount::unmount(&self.dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(refused(error)),
        }
    }

    /// Whether the filesystem is mounted anywhere, as this process sees it (proc(5), `/proc/self/mountinfo`).
    fn is_listed(&self) -> bool {
        let Device(major, minor) = self.device;
        let device = format!("{major}:{minor}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        mounts.lines().any(|line| line.split(' ').nth(2) == Some(&device))
    }
}

/// Lazily unmounts everything that is mounted on `dir`; tells whether anything was.
pub(crate) fn detach_all(dir: &Path) -> Result<bool, MountError> {
    let mut found = false;
    loop {
        match rustix::mount::unmount(dir, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
            Ok(()) => found = true,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(found),
            Err(error) => {
                return Err(MountError::Kernel { dir: dir.to_owned(), doing: "unmounting", source: error.into() });
            }
        }
    }
}

impl Device {
    /// The filesystem that `dir` is in, without asking a server for fresh attributes.
    fn of(dir: &Path) -> Result<Self, Errno> {
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let status = rustix::fs::statx(rustix::fs::CWD, dir, flags, StatxFlags::TYPE)?;
        Ok(Self(status.stx_dev_major, status.stx_dev_minor))
    }
}
