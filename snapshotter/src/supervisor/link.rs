//! The socket between supervisor and daemon: each packet is a message, and has the descriptors that go with it.
use super::protocol::Message;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt::Timeout,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

/// Most bytes of a message.
const MESSAGE_MAX: usize = 4096;
/// Most descriptors beside one.
const DESCRIPTORS_MAX: usize = 8;
/// Bytes that may wait in the socket: all that is handed over at once does. The kernel counts about 1 KB for each.
const WAITING_MAX: usize = 32 << 20;

/// How long somebody who should read may not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Until it can be done.
    Long,
    /// Not at all: [`io::ErrorKind::WouldBlock`].
    Never,
}

/// One end of the socket.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (own, other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Without the privilege (CAP_NET_ADMIN) there is room for some 200 mounts until somebody reads.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&own, WAITING_MAX);
        rustix::net::sockopt::set_socket_timeout(&own, Timeout::Send, Some(PATIENCE))?;
        Ok((Self(own), other))
    }

    /// The end that this process has got as its standard input, which is empty from now on.
    pub fn from_stdin() -> io::Result<Self> {
        let own = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self(own))
    }

    /// Sends a message.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>], waiting: Waiting) -> io::Result<()> {
        let bytes = message.to_bytes();
        if bytes.len() > MESSAGE_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::other("the message is too long"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("there are too many descriptors"));
        }
        let flags = match waiting {
            Waiting::Long => SendFlags::NOSIGNAL,
            Waiting::Never => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        };
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                sent => return sent.map(drop).map_err(Into::into),
            }
        }
    }

    /// The next message; `None` if the other end is closed.
    pub fn receive(&self, waiting: Waiting) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = [0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = match waiting {
            Waiting::Long => RecvFlags::CMSG_CLOEXEC,
            Waiting::Never => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        };
        let received = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                // What it had sent before it went was received before.
                Err(Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let whole = !received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let message = bytes.get(..received.bytes).filter(|_| whole).and_then(Message::parse);
        let message = message.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a message makes no sense"))?;
        Ok(Some((message, descriptors)))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Link {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
    };

    #[test]
    fn messages_arrive_in_order_with_their_descriptors_and_outlive_the_sender() {
        let (sender, receiver) = Link::pair().unwrap();
        let receiver = Link::from(receiver);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"kept").unwrap();
        assert_eq!(receiver.receive(Waiting::Never).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        sender.send(&Message::Keep("a".into()), &[file.as_fd(), file.as_fd()], Waiting::Never).unwrap();
        sender.send(&Message::Serving, &[], Waiting::Long).unwrap();
        drop((sender, file));
        let (message, descriptors) = receiver.receive(Waiting::Long).unwrap().unwrap();
        assert_eq!((message, descriptors.len()), (Message::Keep("a".into()), 2));
        let mut file = File::from(descriptors.into_iter().next().unwrap());
        file.rewind().unwrap();
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "kept");
        assert_eq!(receiver.receive(Waiting::Long).unwrap().unwrap().0, Message::Serving);
        assert!(receiver.receive(Waiting::Long).unwrap().is_none());
    }

    #[test]
    fn a_thousand_kept_mounts_wait_in_the_socket() {
        let (sender, receiver) = Link::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        for number in 0..1000 {
            let message = Message::Keep(format!("image-18c0d1e2f3a-{number}"));
            sender.send(&message, &[file.as_fd(), file.as_fd()], Waiting::Never).unwrap();
        }
        drop(sender);
        let receiver = Link::from(receiver);
        let all = std::iter::from_fn(|| receiver.receive(Waiting::Never).unwrap());
        assert_eq!(all.map(|(_, descriptors)| descriptors.len()).sum::<usize>(), 2000);
    }
}
