//! Caps on what a layer may make the walker hold.

/// The most that a layer may hold, so that a hostile one ends in an error rather than in the machine's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the archive, counted by headers.
    pub entries: u64,
    /// Bytes of one PAX header or GNU long name. Go's archive/tar allows 1 MiB.
    pub special: u64,
    /// Bytes of a path, symlinks resolved; Linux's `PATH_MAX` is 4096 with the NUL.
    pub path: usize,
    /// Bytes of one sparse file's map.
    pub sparse_map: u64,
    /// Bytes of sparse files' data that can't be addressed in 512-byte blocks and is kept in the tree, per layer.
    pub inline: u64,
    /// Rough bytes of memory that the whole tree may take.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            special: 1 << 20,
            path: 4095,
            sparse_map: 4 << 20,
            inline: 16 << 20,
            memory: 1 << 30,
        }
    }
}
