//! A directory shown once more with other owners: an idmapped mount, for containers in user namespaces.
mod ranges;
mod user_namespace;

pub use ranges::{BadIdMap, IdMap};

use rustix::{
    fs::{AtFlags, CWD, StatxFlags},
    mount::{FsOpenFlags, MoveMountFlags, OpenTreeFlags},
};
use std::{fs::File, io, os::fd::OwnedFd, path::Path};

/// Most bytes of a text that a filesystem context takes, without the zero behind it (fsconfig(2)).
const TEXT_MAX: usize = 255;

/// Why a directory can't be shown with other owners.
#[derive(Debug, thiserror::Error)]
pub enum NoIdMap {
    /// There is no user namespace to take the IDs from.
    #[error("no user namespace can be made on Linux {kernel} (is user.max_user_namespaces 0?)")]
    Namespace {
        /// The kernel's release.
        kernel: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel or the filesystem refuses.
    #[error("{filesystem} can't be mounted with the IDs of a user namespace on Linux {kernel} ({needs}): {step}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// The filesystem of the directory, and the driver if it is one of ours.
        filesystem: String,
        /// The kernel's release.
        kernel: String,
        /// What it would take.
        needs: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Mounts the directory `source`, without what is mounted below it, read-only on the directory `target`: whoever owns a
/// file there is who `map` says. Overlayfs can take `target` as a lower directory then. Blocks.
///
/// # Errors
/// If the kernel or the filesystem of `source` doesn't support it; needs root.
pub fn mount_idmapped(source: &Path, target: &Path, map: &IdMap) -> Result<(), NoIdMap> {
    let kernel = || rustix::system::uname().release().to_string_lossy().into_owned();
    let namespace = user_namespace::with(map).map_err(|source| NoIdMap::Namespace { kernel: kernel(), source })?;
    let refused = |step| {
        move |error| {
            let (filesystem, needs) = filesystem(source);
            NoIdMap::Refused { step, filesystem, kernel: kernel(), needs, source: error }
        }
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone =
        rustix::mount::open_tree(CWD, source, flags).map_err(|error| refused("cloning a mount")(error.into()))?;
    user_namespace::apply(&clone, &namespace).map_err(refused("mapping IDs"))?;
    rustix::mount::move_mount(&clone, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| refused("mounting")(error.into()))?;
    let overlaid = target.parent().map_or(Ok(()), |other| try_overlay(target, other));
    overlaid.map_err(|error| {
        // Nothing is lost if this fails: what is mounted there is looked at before it is used.
        let _ = crate::detach_stale(target);
        refused("laying an overlay on it")(error)
    })
}

/// Whether `clone` shows the directory `source`: whether it has been mounted on, and with what is at `source` now.
pub fn shows(clone: &Path, source: &Path) -> bool {
    let identity = |path: &Path| {
        // No filesystem is asked: one that answers no more mustn't hold anybody up.
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
        let status = rustix::fs::statx(CWD, path, flags, StatxFlags::INO).ok()?;
        Some((status.stx_dev_major, status.stx_dev_minor, status.stx_ino))
    };
    identity(clone).is_some_and(|found| Some(found) == identity(source))
}

/// Whether overlayfs takes `lower` as a lower directory: Linux before 5.19 refuses mapped ones. Nothing stays mounted.
fn try_overlay(lower: &Path, other: &Path) -> io::Result<()> {
    let lowers = format!("{}:{}", lower.display(), other.display());
    if lowers.len() > TEXT_MAX {
        return Ok(());
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "lowerdir", lowers)?;
    Ok(rustix::mount::fsconfig_create(&context)?)
}

/// The name of the filesystem of `path`, and what it takes to map its IDs.
fn filesystem(path: &Path) -> (String, &'static str) {
    // Magic numbers of statfs(2).
    let (name, needs) = match rustix::fs::statfs(path).map(|status| status.f_type as u32) {
        Ok(0xe0f5_e1e2) => ("EROFS (driver erofs)", "Linux 5.19 is needed"),
        Ok(0x6573_5546) => ("FUSE (driver fuse)", "Linux 6.12 is needed, or the driver erofs"),
        Ok(0xef53) => ("ext4", "Linux 5.19 is needed"),
        Ok(0x5846_5342) => ("XFS", "Linux 5.19 is needed"),
        Ok(0x9123_683e) => ("Btrfs", "Linux 5.19 is needed"),
        Ok(0x0102_1994) => ("tmpfs", "Linux 6.3 is needed"),
        Ok(0x794c_7630) => ("overlayfs", "keep the root of the snapshotter on ext4, XFS or Btrfs"),
        Ok(other) => return (format!("a file system of type {other:#x}"), "ext4, XFS and Btrfs can since Linux 5.19"),
        Err(_) => ("a file system", "Linux 5.19 is needed"),
    };
    (name.to_owned(), needs)
}

/// Opens what a user namespace of process `pid` is known by.
fn namespace_of(pid: i32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}
