//! A directory that an image is mounted on: known by the number of the mounted filesystem, and unmounted again.
use crate::MountError;
use rustix::{
    fs::{AtFlags, StatxFlags},
    io::Errno,
    mount::UnmountFlags,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A directory that a filesystem of ours is mounted on.
pub(crate) struct MountPoint {
    dir: PathBuf,
    device: Device,
}

/// Major and minor number of a mounted filesystem, as `stat` tells.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Device(u32, u32);

impl MountPoint {
    /// What is mounted on `dir` now; asks the filesystem, which must answer by now.
    pub(crate) fn of(dir: PathBuf) -> Result<Self, MountError> {
        match Device::of(&dir) {
            Ok(device) => Ok(Self { dir, device }),
            Err(error) => Err(MountError::Kernel { dir, doing: "looking at the new mount", source: error.into() }),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the kernel read `kib` KiB ahead on a FUSE filesystem, whose handshake can't ask for more than 128.
    pub(crate) fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let Device(major, minor) = self.device;
        fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Unmounts, lazily if files are open; nothing happens if the filesystem isn't mounted here any more.
    pub(crate) fn detach(&self) -> Result<(), MountError> {
        let refused =
            |error: Errno| MountError::Kernel { dir: self.dir.clone(), doing: "unmounting", source: error.into() };
        match Device::of(&self.dir) {
            Ok(device) if device == self.device => {}
            // Dead: an aborted FUSE connection says so, and is ours as nothing else here is FUSE.
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
