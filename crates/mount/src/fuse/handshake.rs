//! What a handshake with the kernel agreed on, and one that is played to fuser when a process takes a connection over: the
//! kernel shakes hands only once.
use fuser::InitFlags;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The version of the protocol that is played: any that has all the fields which are looked at.
const VERSION: (u32, u32) = (7, 40);
/// The request for a handshake, and the bytes of its content (`FUSE_INIT`, `struct fuse_init_in`).
const INIT: u32 = 26;
const INIT_LEN: usize = 64;
const HEADER: usize = 40;
/// The kernel's own offer of bytes to read ahead, which nobody looks at.
const READ_AHEAD: u32 = 128 << 10;
/// The note to the kernel that it should ask again what was asked of another process (`FUSE_NOTIFY_RESEND`).
const NOTIFY_RESEND: u32 = 7;

/// What was agreed on in the handshake. A process that takes the connection over must expect no more.
#[derive(Clone, Default)]
pub(crate) struct Agreement(Arc<AtomicU64>);

impl Agreement {
    /// Notes what the kernel has `offered` and was `wanted`.
    pub(crate) fn settle(&self, offered: InitFlags, wanted: InitFlags) {
        // Nobody asks for this one: the kernel says that it can.
        let agreed = offered & (wanted | InitFlags::FUSE_HAS_RESEND);
        self.0.store(agreed.bits(), Ordering::Release);
    }

    /// The flags, if another process can go on: if the kernel can ask again what was asked and not answered.
    pub(crate) fn lasting(&self) -> Option<u64> {
        let flags = self.0.load(Ordering::Acquire);
        InitFlags::from_bits_retain(flags).contains(InitFlags::FUSE_HAS_RESEND).then_some(flags)
    }
}

/// A socket on which a handshake that offers `flags` waits, and its other end, which takes the answer.
pub(super) fn played(flags: u64) -> io::Result<(OwnedFd, OwnedFd)> {
    let (kernel, session) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&kernel, &request(flags), SendFlags::NOSIGNAL)?;
    Ok((session, kernel))
}

fn request(flags: u64) -> Vec<u8> {
    let flags = flags | InitFlags::FUSE_INIT_EXT.bits();
    let mut bytes = Vec::with_capacity(HEADER + INIT_LEN);
    let mut put = |value: u32| bytes.extend_from_slice(&value.to_ne_bytes());
    put((HEADER + INIT_LEN) as u32);
    put(INIT);
    // The request's number, of 64 bits and not zero; and no node, no user, no group, no process.
    put(1);
    (0..7).for_each(|_| put(0));
    for value in [VERSION.0, VERSION.1, READ_AHEAD, flags as u32, (flags >> 32) as u32] {
        put(value);
    }
    bytes.resize(HEADER + INIT_LEN, 0);
    bytes
}

/// Makes the kernel ask again what was asked through `connection` and not answered.
pub(crate) fn resend(connection: impl AsFd) -> io::Result<()> {
    let mut note = [0; 16];
    note[..4].copy_from_slice(&16u32.to_ne_bytes());
    note[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    rustix::io::write(connection, &note)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_wanted_and_offered_is_agreed_on_and_lasts_if_the_kernel_can_ask_again() {
        let agreement = Agreement::default();
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_POSIX_ACL;
        agreement.settle(InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_ASYNC_READ, wanted);
        assert_eq!(agreement.lasting(), None);
        agreement.settle(InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_HAS_RESEND, wanted);
        let lasting = (InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_HAS_RESEND).bits();
        assert_eq!(agreement.lasting(), Some(lasting));
    }
}
