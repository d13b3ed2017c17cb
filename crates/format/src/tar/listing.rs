//! The entries of an archive as they stand in it, for tables of contents.
use std::ops::Range;

/// An entry with everything that extended headers say folded in, before anything is made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The type flag (POSIX ustar, `typeflag`); `0` for every regular file, `5` for every directory.
    pub kind: u8,
    /// Its path as it is written.
    pub name: Vec<u8>,
    /// A link's target as it is written.
    pub link: Vec<u8>,
    /// Its mode.
    pub mode: i64,
    /// Its owner.
    pub uid: i64,
    /// Its group.
    pub gid: i64,
    /// Its time of modification: seconds since 1970, nanoseconds.
    pub mtime: (i64, u32),
    /// A device's major number.
    pub major: i64,
    /// A device's minor number.
    pub minor: i64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where its data lie in the device; empty if it has none.
    pub data: Range<u64>,
    /// Whether the data aren't the file's bytes one after the other.
    pub sparse: bool,
}
