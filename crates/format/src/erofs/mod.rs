//! EROFS images that hold a tree and no file data: writer and reader.
//!
//! The image is metadata only: a regular file's bytes are named by chunk indexes, `(device, block)`, into the
//! uncompressed tar streams of the layers. Blocks are 512 bytes, so that whatever tar puts on a 512-byte boundary can
//! be addressed where it lies. The on-disk format is the kernel's, `fs/erofs/erofs_fs.h` and
//! `Documentation/filesystems/erofs.rst`, without any feature newer than Linux 6.4, so that the images mount with
//! every kernel that can mount an image from a file (6.12).
mod dirs;
mod error;
mod extents;
mod image;
mod inode;
mod ondisk;
mod tree;
mod write;
mod xattrs;

pub use dirs::{Entries, Entry};
pub use error::ErofsError;
pub use extents::{ImageExtent, ImageSource};
pub use image::{Image, ImageDevice, Nid};
pub use inode::{FileKind, ImageInode};
pub use write::{check, write};
pub use xattrs::Xattr;

/// Bytes of a block: the unit in which images address file data.
pub const BLOCK_SIZE: u64 = ondisk::BLOCK;

/// Directories deeper than this below the root are refused by the writer and by [`Image::to_tree`].
/// Linux can't name a path of more than 4096 bytes, so no deeper directory can be unpacked by its path either.
pub const MAX_DEPTH: usize = 2048;
