//! A directory that an image is mounted on: known by the number of the mounted filesystem, and unmounted again.
use crate::MountError;
use rustix::{
    fs::{AtFlags, StatxFlags},
    io::Errno,
    mount::UnmountFlags,
};
use std::{
    collections::HashSet,
    ffi::OsString,
    fmt, fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A directory that a filesystem of ours is mounted on.
pub(crate) struct MountPoint {
    dir: PathBuf,
    device: Device,
}

/// Major and minor number of a mounted filesystem, as `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Device(u32, u32);

/// What is mounted where, as this process sees it at some moment.
pub(crate) struct Attached(HashSet<(Device, PathBuf)>);

impl MountPoint {
    /// What is mounted on `dir` now; asks the filesystem, which must answer by now.
    pub(crate) fn of(dir: PathBuf) -> Result<Self, MountError> {
        match Device::of(&dir) {
            Ok(device) => Ok(Self { dir, device }),
            Err(error) => Err(MountError::Kernel { dir, doing: "looking at the new mount", source: error.into() }),
        }
    }

    /// A filesystem that another process mounted; doesn't ask it, as it may not answer yet.
    pub(crate) fn known(dir: PathBuf, device: Device) -> Self {
        Self { dir, device }
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// `source` said of this directory while a connection was taken over.
    pub(crate) fn refused(&self, source: io::Error) -> MountError {
        MountError::Kernel { dir: self.dir.clone(), doing: "taking its connection over", source }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the kernel read `kib` KiB ahead on a FUSE filesystem, whose handshake can't ask for more than 128.
    pub(crate) fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", self.device), kib.to_string())
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
        let device = self.device.to_string();
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

/// What is mounted now (proc(5), `/proc/self/mountinfo`). Asks no filesystem.
pub(crate) fn attached() -> Attached {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let device = fields.next()?.parse().ok()?;
        Some((device, unescaped(fields.nth(1)?)))
    };
    Attached(mounts.lines().filter_map(mount).collect())
}

/// A path of mountinfo, in which spaces, tabs, line breaks and backslashes are written as three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

impl Attached {
    /// Whether the filesystem is on its directory.
    pub(crate) fn has(&self, place: &MountPoint) -> bool {
        self.0.contains(&(place.device, place.dir.clone()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

impl FromStr for Device {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self(major.parse().map_err(drop)?, minor.parse().map_err(drop)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_known_by_number_and_directory() {
        let proc = MountPoint::of("/proc".into()).unwrap();
        assert!(attached().has(&proc));
        assert!(!attached().has(&MountPoint::known("/proc/self".into(), proc.device())));
        assert_eq!(proc.device().to_string().parse(), Ok(proc.device()));
        assert_eq!(unescaped("/a\\040b\\134c\\"), PathBuf::from("/a b\\c\\"));
    }
}
