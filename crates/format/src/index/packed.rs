//! A layer's tree as the index stores it.
use super::pack::{self, Room};
use super::unpack;
use super::wire::Malformed;
use crate::erofs::{self, ErofsError};
use crate::tree::Tree;
use std::{fmt, sync::Arc};

/// A tree in columns, compressed: a few bytes for each file, in memory as in the index. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct PackedTree {
    bytes: Arc<[u8]>,
    inodes: u64,
    device_sizes: Vec<u64>,
    memory: u64,
}

/// Why a tree can't be packed or unpacked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// The tree is none that EROFS could hold.
    #[error(transparent)]
    Tree(#[from] ErofsError),
    /// The packed tree is damaged, or larger than it may be.
    #[error("corrupt tree: {0}")]
    Corrupt(&'static str),
}

impl From<Malformed> for PackError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::Corrupt(what)
    }
}

impl PackedTree {
    /// Packs `tree`, without the inodes that no name leads to. Equal trees, however numbered, give equal bytes.
    ///
    /// # Errors
    /// Whatever [`erofs::check`] refuses, so that a tree that is packed can also be mounted; or a tree of more than
    /// 1 GiB in memory.
    pub fn pack(tree: &Tree) -> Result<Self, PackError> {
        erofs::check(tree)?;
        let mut room = Room::WHOLE;
        let bytes = pack::pack(tree, &mut room).map_err(|what| ErofsError::Tree(what.to_owned()))?;
        Self::of_checked(&bytes, room)
    }

    /// The tree, its inodes numbered in the order of a walk through the names.
    ///
    /// # Errors
    /// None, but for a tree beyond the limits of this machine's memory: the bytes were checked when they were read.
    pub fn unpack(&self) -> Result<Tree, PackError> {
        let mut room = Room::WHOLE;
        unpack::unpack(&self.bytes, &mut room)
    }

    /// Reads and checks packed bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, PackError> {
        let mut room = Room::WHOLE;
        unpack::unpack(bytes, &mut room)?;
        Self::of_checked(bytes, room)
    }

    fn of_checked(bytes: &[u8], room: Room) -> Result<Self, PackError> {
        let (inodes, device_sizes) = unpack::head(bytes)?;
        Ok(Self { bytes: bytes.into(), inodes, device_sizes, memory: room.taken() })
    }

    /// Bytes of memory that the tree takes, roughly.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    /// The packed bytes.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the packed tree.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing; never so.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Inodes of the tree.
    pub fn inode_count(&self) -> u64 {
        self.inodes
    }

    /// Bytes of the devices that the tree's files lie in.
    pub fn device_sizes(&self) -> &[u64] {
        &self.device_sizes
    }
}

impl fmt::Debug for PackedTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedTree({} inodes in {} bytes)", self.inodes, self.bytes.len())
    }
}
