//! An inode of an image: its attributes and where its data hangs.
use super::ErofsError;
use super::image::{Image, Nid};
use super::ondisk::{
    BLOCK_BITS, CHUNK_BITS, CHUNK_INDEXES, XATTR_HEADER, decode_device, layout, mode, u16_at, u32_at, u64_at,
};
use crate::tree::{Content, DeviceNumber};

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// FIFO.
    Fifo,
    /// Unix socket.
    Socket,
}

/// An inode's attributes, read from an [`Image`]; small, and good for as long as the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageInode {
    /// Node number; a good `st_ino`.
    pub nid: Nid,
    /// Type.
    pub kind: FileKind,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds of it.
    pub mtime_nsec: u32,
    /// Link count: names, or for a directory 2 and one for each subdirectory.
    pub nlink: u32,
    /// Bytes: of a file, of a symlink's target, of a directory's entries.
    pub size: u64,
    /// Device number of a device, else 0:0.
    pub rdev: DeviceNumber,
    /// Bytes from the image's start to the inode's xattr area.
    pub(super) xattrs: usize,
    /// Bytes of the xattr area; 0 or more than its header.
    pub(super) xattrs_len: usize,
    /// Where the data is.
    pub(super) data: Data,
}

/// Where an inode's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// `size` bytes from this byte of the image on.
    Plain(u64),
    /// As `Plain` for whole blocks; the rest, less than a block, right behind the inode.
    Inline(u64),
    /// Chunk indexes behind the inode, for chunks of `1 << bits` bytes.
    Chunks(u32),
    /// Devices and the like have none.
    None,
}

impl ImageInode {
    /// Byte of the image at which the inode ends: its tail or its chunk indexes follow.
    pub(super) fn end(&self) -> usize {
        self.xattrs + self.xattrs_len
    }

    /// How many indexes or runs name the data.
    pub(super) fn chunks(&self) -> u64 {
        match self.data {
            Data::Chunks(bits) => self.size.div_ceil(1 << bits),
            _ => 1,
        }
    }
}

impl FileKind {
    /// The type in a mode.
    pub(super) fn of(mode: u16) -> Option<Self> {
        Some(match mode & mode::TYPE {
            mode::FILE => Self::File,
            mode::DIRECTORY => Self::Directory,
            mode::SYMLINK => Self::Symlink,
            mode::CHAR => Self::CharDevice,
            mode::BLOCK => Self::BlockDevice,
            mode::FIFO => Self::Fifo,
            mode::SOCKET => Self::Socket,
            _ => return None,
        })
    }

    /// The type of an inode of a [`Tree`](crate::tree::Tree).
    pub(super) fn of_content(content: &Content) -> Self {
        match content {
            Content::Directory(_) => Self::Directory,
            Content::File(_) => Self::File,
            Content::Symlink(_) => Self::Symlink,
            Content::CharDevice(_) => Self::CharDevice,
            Content::BlockDevice(_) => Self::BlockDevice,
            Content::Fifo => Self::Fifo,
            Content::Socket => Self::Socket,
        }
    }

    /// The type in a directory entry.
    pub(super) fn of_dirent(number: u8) -> Option<Self> {
        [Self::File, Self::Directory, Self::CharDevice, Self::BlockDevice, Self::Fifo, Self::Socket, Self::Symlink]
            .into_iter()
            .find(|kind| kind.dirent() == number)
    }

    /// The number of this type in a directory entry (kernel, `FT_*` of `fs_types.h`).
    pub(super) fn dirent(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }

    /// The type's bits in a mode.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::File => mode::FILE,
            Self::Directory => mode::DIRECTORY,
            Self::Symlink => mode::SYMLINK,
            Self::CharDevice => mode::CHAR,
            Self::BlockDevice => mode::BLOCK,
            Self::Fifo => mode::FIFO,
            Self::Socket => mode::SOCKET,
        }
    }
}

impl Image {
    /// Reads the inode `nid`.
    ///
    /// # Errors
    /// The number leads nowhere, or to something that isn't an inode of a layout that Clipper writes.
    pub fn inode(&self, nid: Nid) -> Result<ImageInode, ErofsError> {
        let corrupt = |what| ErofsError::Corrupt { nid: nid.0, what };
        let start = self.inode_offset(nid).ok_or(corrupt("lies outside the image"))?;
        let outside = || corrupt("ends outside the image");
        let bytes = self.bytes().get(start..).unwrap_or_default();
        let format = u16_at(bytes, 0).ok_or_else(outside)?;
        let extended = format & 1 == 1;
        let fixed = bytes.get(..if extended { 64 } else { 32 }).ok_or_else(outside)?;
        let u16s = |at| u16_at(fixed, at).unwrap_or_default();
        let u32s = |at| u32_at(fixed, at).unwrap_or_default();
        let u64s = |at| u64_at(fixed, at).unwrap_or_default();
        let kind = FileKind::of(u16s(4)).ok_or(corrupt("unknown file type"))?;
        let (size, uid, gid, mtime, mtime_nsec, nlink) = if extended {
            (u64s(8), u32s(24), u32s(28), u64s(32) as i64, u32s(40), u32s(44))
        } else {
            if u32s(12) != 0 {
                return Err(ErofsError::Unsupported(format!("inode {nid} has a relative time")));
            }
            let (time, nsec) = self.time();
            (u64::from(u32s(8)), u16s(24).into(), u16s(26).into(), time, nsec, u16s(6).into())
        };
        if extended && u16s(6) != 0 {
            return Err(ErofsError::Unsupported(format!("inode {nid} has 48-bit addresses")));
        }
        if mtime_nsec >= 1_000_000_000 {
            return Err(corrupt("nanoseconds of more than a second"));
        }
        if i64::try_from(size).is_err() {
            return Err(corrupt("larger than Linux's largest file"));
        }
        let value = u32s(16);
        let has_data = matches!(kind, FileKind::File | FileKind::Directory | FileKind::Symlink);
        let block = u64::from(value) << BLOCK_BITS;
        let data = match format >> 1 {
            layout::PLAIN | layout::INLINE if !has_data => Data::None,
            layout::PLAIN => Data::Plain(block),
            layout::INLINE => Data::Inline(block),
            layout::CHUNKS if kind == FileKind::File => {
                let chunks = value as u16;
                if chunks & !CHUNK_BITS != CHUNK_INDEXES {
                    return Err(ErofsError::Unsupported(format!("inode {nid} has chunks of format {chunks:#x}")));
                }
                Data::Chunks(u32::from(chunks & CHUNK_BITS) + BLOCK_BITS)
            }
            other => return Err(ErofsError::Unsupported(format!("inode {nid} has data layout {other}"))),
        };
        let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
        let xattrs = start + fixed.len();
        let xattrs_len = match usize::from(u16s(2)) {
            0 => 0,
            1 => return Err(corrupt("an xattr area without xattrs")),
            count => XATTR_HEADER + 4 * (count - 1),
        };
        if xattrs + xattrs_len > self.bytes().len() {
            return Err(outside());
        }
        let rdev = if is_device { decode_device(value) } else { DeviceNumber::default() };
        let mode = u32::from(u16s(4));
        Ok(ImageInode { nid, kind, mode, uid, gid, mtime, mtime_nsec, nlink, size, rdev, xattrs, xattrs_len, data })
    }
}
