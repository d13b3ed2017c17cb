//! What supervisor and daemon tell each other, as bytes. Descriptors travel beside the messages.
//!
//! A message is one byte for its kind, and text or numbers behind it (little-endian):
//!
//! ```text
//! K name              descriptors that are kept under a name: by the daemon for its successor, or for this daemon
//! R name              they needn't be kept any more
//! T thread            4 bytes: a thread of the daemon that never waits for what the daemon serves
//! S                   the daemon serves
//! B restarts upgrades last     3 times 8 bytes: that was all that is kept; what happened so far
//! L                   stop serving, and leave everything mounted: another daemon takes over
//! ```

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The descriptors beside it are kept under this name.
    Keep(String),
    /// What is kept under this name is let go.
    Release(String),
    /// The thread whose end is the daemon's: others may wait for what the daemon itself serves, and can't end then.
    Thread(u32),
    /// The daemon serves.
    Serving,
    /// All that is kept was told before.
    Begin(History),
    /// The daemon is to end, and to leave its mounts to the next one.
    Leave,
}

/// How often daemons were replaced since the supervisor started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Daemons that took over from one that had died.
    pub takeovers: u64,
    /// Daemons that took over because of an upgrade.
    pub upgrades: u64,
    /// When the last of these began: seconds since 1970, or 0.
    pub last: u64,
}

impl Message {
    /// The bytes of the message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let with = |kind: u8, rest: &[u8]| [&[kind], rest].concat();
        match self {
            Self::Keep(name) => with(b'K', name.as_bytes()),
            Self::Release(name) => with(b'R', name.as_bytes()),
            Self::Thread(thread) => with(b'T', &thread.to_le_bytes()),
            Self::Serving => with(b'S', &[]),
            Self::Begin(History { takeovers, upgrades, last }) => {
                with(b'B', &[takeovers, upgrades, last].map(|number| number.to_le_bytes()).concat())
            }
            Self::Leave => with(b'L', &[]),
        }
    }

    /// The message of these bytes; `None` if there is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let name = || String::from_utf8(rest.to_vec()).ok().filter(|name| !name.is_empty());
        Some(match kind {
            b'K' => Self::Keep(name()?),
            b'R' => Self::Release(name()?),
            b'T' => Self::Thread(u32::from_le_bytes(rest.try_into().ok()?)),
            b'S' if rest.is_empty() => Self::Serving,
            b'B' => {
                let (numbers, []) = rest.as_chunks::<8>() else { return None };
                let [takeovers, upgrades, last] = <[[u8; 8]; 3]>::try_from(numbers).ok()?.map(u64::from_le_bytes);
                Self::Begin(History { takeovers, upgrades, last })
            }
            b'L' if rest.is_empty() => Self::Leave,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_from_their_bytes_and_others_are_refused() {
        let messages = [
            Message::Keep("tree-18-0".into()),
            Message::Release("tree-18-0".into()),
            Message::Thread(u32::MAX),
            Message::Serving,
            Message::Begin(History { takeovers: 3, upgrades: 1 << 40, last: 1_800_000_000 }),
            Message::Leave,
        ];
        for message in messages {
            let bytes = message.to_bytes();
            assert_eq!(Message::parse(&bytes).as_ref(), Some(&message));
            if !matches!(message, Message::Keep(_) | Message::Release(_)) {
                assert_eq!(Message::parse(&[&bytes[..], b"x"].concat()), None, "{message:?}");
            }
        }
        for bytes in [&b""[..], b"K", b"R", b"T", b"Tx", b"B12345678", b"X", b"K\xff"] {
            assert_eq!(Message::parse(bytes), None, "{bytes:?}");
        }
    }
}
