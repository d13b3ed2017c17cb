//! An image mounted with EROFS.
use super::{
    DeviceFiles,
    context::{self, path_of},
    read_ahead::Before,
};
use crate::{
    LazyImage, MountError,
    handover::MountNote,
    mount_point::{self, MountPoint},
    session::Session,
};
use rustix::{
    fs::{CWD, Mode, OFlags},
    mount::MoveMountFlags,
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

/// Mounts `image`, which must have a device, on `dir`, with its devices served by `files`. A tree that isn't in a file yet
/// is put in one without a name in directory `scratch`. The kernel reads `read_ahead_kib` KiB ahead. Blocks.
pub(crate) fn mount(
    image: &LazyImage,
    dir: &Path,
    files: &DeviceFiles,
    scratch: &Path,
    read_ahead_kib: u32,
) -> Result<Session, MountError> {
    let refused = |(doing, source)| MountError::Kernel { dir: dir.to_owned(), doing, source };
    let real = fs::canonicalize(dir).map_err(|error| refused(("looking for the directory to mount on", error)))?;
    if image.devices().is_empty() {
        // Nothing would tell when the kernel lets go of the mount.
        let error = io::Error::new(io::ErrorKind::Unsupported, "the image has no device");
        return Err(refused(("mounting with EROFS", error)));
    }
    let unnamed;
    let tree = match image.tree_file() {
        Some(tree) => tree.to_owned(),
        None => {
            unnamed = put(image.tree().bytes(), scratch).map_err(|error| refused(("writing the tree", error)))?;
            path_of(&unnamed)
        }
    };
    let devices = files.add(image);
    let made = {
        let _alone = files.alone();
        let before = Before::now();
        let made = context::make(&tree, &devices.paths).map_err(refused)?;
        if let Err(error) = before.and_then(|before| before.set(read_ahead_kib)) {
            tracing::warn!(dir = %real.display(), %error, "read-ahead stays at the kernel's default");
        }
        made
    };
    rustix::mount::move_mount(&made, "", CWD, &real, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| refused(("mounting", error.into())))?;
    let mount_point = MountPoint::of(real.clone()).inspect_err(|_| {
        if let Err(error) = mount_point::detach_all(&real) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a failed mount can't be undone");
        }
    })?;
    let origin = image.origin().cloned();
    let note = origin.map(|origin| MountNote { dir: real, device: mount_point.device(), origin });
    Ok(Session { life: files.keep(devices, note), mount_point })
}

/// A file without a name in `dir`, with these bytes.
pub(super) fn put(bytes: &[u8], dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(bytes)?;
    Ok(file.into())
}
