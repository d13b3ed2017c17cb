//! What can be wrong with a layer's tar, and where.
use std::fmt;

/// A tar that can't be walked: what is wrong, with which entry, at which byte of the uncompressed layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct TarError {
    /// The entry's name as the archive has it; `None` if it isn't known.
    pub path: Option<Vec<u8>>,
    /// Where the entry's header starts in the uncompressed layer.
    pub offset: u64,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "tar entry \"{}\" at byte {}", path.escape_ascii(), self.offset)?,
            None => write!(f, "tar header at byte {}", self.offset)?,
        }
        write!(f, ": {}", self.problem)
    }
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The block isn't a tar header.
    #[error("not a tar header: its checksum is wrong")]
    Checksum,
    /// A numeric field is no number, or out of range.
    #[error("its {0} is not a number in range")]
    Number(&'static str),
    /// One zero block, then something else.
    #[error("a single zero block inside the archive")]
    LoneZeroBlock,
    /// The stream ends inside an entry.
    #[error("the archive ends inside this entry, {0} bytes short")]
    Truncated(u64),
    /// A PAX extended header isn't a sequence of records.
    #[error("malformed PAX extended header")]
    Pax,
    /// A sparse file's map is malformed or doesn't fit its data.
    #[error("malformed sparse file: {0}")]
    Sparse(&'static str),
    /// A limit that protects the machine was hit.
    #[error("more than {limit} {what}; nothing like a container image layer")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The most that is allowed.
        limit: u64,
    },
    /// A component of the path isn't a directory.
    #[error("\"{}\" on its way is not a directory", .0.escape_ascii())]
    NotADirectory(Vec<u8>),
    /// Symbolic links without end.
    #[error("too many symbolic links on its way")]
    TooManyLinks,
    /// A name that no Linux filesystem can hold.
    #[error("its name can't exist on Linux: {0}")]
    Name(&'static str),
    /// `.wh.` with nothing, `.` or `..` after it.
    #[error("invalid whiteout name")]
    Whiteout,
    /// A symbolic link's target is empty, too long, or has a NUL.
    #[error("a symbolic link whose target is empty, longer than 4095 bytes or holds a NUL")]
    SymlinkTarget,
    /// A hard link to what isn't in this layer.
    #[error("a hard link to \"{}\", which this layer doesn't hold at that point", .0.escape_ascii())]
    LinkTarget(Vec<u8>),
    /// A hard link to a directory.
    #[error("a hard link to \"{}\", which is a directory", .0.escape_ascii())]
    LinkToDirectory(Vec<u8>),
    /// An extended attribute that Linux refuses.
    #[error("extended attribute \"{}\" is not one that Linux accepts: {reason}", .name.escape_ascii())]
    Xattr {
        /// The attribute's name.
        name: Vec<u8>,
        /// Why not.
        reason: &'static str,
    },
}

/// Something in a layer that containerd or Linux would drop, and so the walker did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The entry's name as the archive has it.
    pub path: Vec<u8>,
    /// What was dropped.
    pub dropped: Dropped,
}

/// What a [`Warning`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dropped {
    /// A whole entry, because of its type flag.
    Entry(u8),
    /// An extended attribute that can't be set on this type of file, or by an image at all.
    Xattr(Vec<u8>),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        match &self.dropped {
            Dropped::Entry(kind) => write!(f, "\"{path}\": skipped, unknown tar type '{}'", kind.escape_ascii()),
            Dropped::Xattr(name) => write!(f, "\"{path}\": ignored extended attribute {}", name.escape_ascii()),
        }
    }
}
