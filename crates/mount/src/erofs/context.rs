//! Making an EROFS filesystem of a tree's file and its devices, piece by piece: options in one text, as mount(2) takes
//! them, have to fit a page, which a hundred devices don't; and mount(8) would put a block device in between.
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};
use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// Most bytes of a text that a filesystem context takes, without the zero behind it (fsconfig(2)).
const TEXT_MAX: usize = 255;

/// What was being done when the kernel refused, and why.
pub(super) type Refusal = (&'static str, io::Error);

/// A mount of the tree that begins `tree`, with its devices read from the files `devices`, attached to nothing yet.
pub(super) fn make(tree: &Path, devices: &[PathBuf]) -> Result<OwnedFd, Refusal> {
    let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| ("asking the kernel for EROFS (needs root)", error.into()))?;
    let refused = |doing| {
        let context = &context;
        move |error: Errno| (doing, told(error, context))
    };
    // The kernel shows the path as what is mounted, so the true one is better than a descriptor's.
    let held;
    let source = if tree.as_os_str().len() <= TEXT_MAX {
        tree.to_owned()
    } else {
        let opened = rustix::fs::open(tree, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        held = opened.map_err(|error| ("opening the tree", error.into()))?;
        path_of(&held)
    };
    rustix::mount::fsconfig_set_string(&context, "source", &source).map_err(refused("naming the tree to EROFS"))?;
    for device in devices {
        let named = rustix::mount::fsconfig_set_string(&context, "device", device);
        named.map_err(refused("naming the devices to EROFS"))?;
    }
    rustix::mount::fsconfig_set_flag(&context, "ro").map_err(refused("making EROFS read-only"))?;
    rustix::mount::fsconfig_create(&context).map_err(refused("opening the tree with EROFS"))?;
    // Neither nosuid nor nodev: set-user-ID programs and device nodes of an image must work in its containers.
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(refused("mounting EROFS"))
}

/// A path that leads to what `descriptor` is open for, in this process.
pub(super) fn path_of(descriptor: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd()).into()
}

/// `error` and what the kernel has to say about it in `context`, where each read gives one message.
fn told(error: Errno, context: &OwnedFd) -> io::Error {
    let error = io::Error::from(error);
    let mut message = [0; 512];
    match rustix::io::read(context, &mut message) {
        Ok(len) if len > 0 => {
            let message = String::from_utf8_lossy(&message[..len]);
            io::Error::new(error.kind(), format!("{error}: {}", message.trim_end()))
        }
        _ => error,
    }
}
