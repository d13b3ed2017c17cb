//! User namespaces that hold nothing but a mapping of IDs, and mounts that take it. The kernel gives a namespace only to a
//! process, so there is one for a moment, which does nothing at all.
#![allow(unsafe_code, reason = "rustix has neither clone nor mount_setattr")]
use super::{IdMap, namespace_of};
use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// A process in a user namespace of its own; ended and reaped when dropped.
struct Holder(libc::pid_t);

/// A user namespace with the IDs of `map`.
pub(super) fn with(map: &IdMap) -> io::Result<OwnedFd> {
    let holder = Holder::start()?;
    let told = |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    fs::write(format!("/proc/{}/uid_map", holder.0), map.users()).map_err(|error| told("uid_map", error))?;
    fs::write(format!("/proc/{}/gid_map", holder.0), map.groups()).map_err(|error| told("gid_map", error))?;
    namespace_of(holder.0)
}

/// Makes the detached mount `mount` read-only, with the IDs of `namespace`.
pub(super) fn apply(mount: &OwnedFd, namespace: &OwnedFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: both descriptors are open, the path is a text that ends in a zero, and the structure is as long as is said;
    // the kernel only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Holder {
    fn start() -> io::Result<Self> {
        let this = std::process::id() as libc::pid_t;
        // One table of descriptors: a copy would keep open, for a moment, what is closed meanwhile.
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD);
        // Without a stack of its own it goes on with a copy of this one. (clone(2): where the flags stand.)
        let (first, second) = if cfg!(target_arch = "s390x") { (0, flags) } else { (flags, 0) };
        // SAFETY: the sets of signals are made before they are used. What clone starts shares no memory with this process
        // and goes on from here with one thread, of which other threads' locks may be held for ever: it makes only
        // system calls that take none, until it is killed.
        unsafe {
            let (mut all, mut before) = (mem::zeroed(), mem::zeroed());
            libc::sigfillset(&raw mut all);
            // No handler of this process may run in the other.
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let result = libc::syscall(libc::SYS_clone, first, second, 0_usize, 0_usize, 0_usize);
            if result == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // It may have come too late for that.
                while libc::getppid() == this {
                    libc::pause();
                }
                libc::_exit(0);
            }
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            libc::pid_t::try_from(result).ok().filter(|pid| *pid > 0).map(Self).ok_or(error)
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the process is a child of this one that nobody else waits for, so its number is still its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            while libc::waitpid(self.0, std::ptr::null_mut(), 0) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}
