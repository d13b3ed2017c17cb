//! Inode numbers and attributes as FUSE wants them.
use clipper_format::{
    erofs::{FileKind, ImageInode, Nid},
    tree::DeviceNumber,
};
use fuser::{FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime};

/// Layers never change: what the kernel once knows it may know for ever. (136 years; the kernel bounds it.)
pub(crate) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The block size that files prefer, and of `statfs`.
pub(super) const BLOCK: u32 = 4096;

/// Node numbers and inode numbers, one to one and without a table: they are the same, except that FUSE wants 1 for the
/// root, so that the root and whatever has node number 1 swap theirs.
#[derive(Clone, Copy)]
pub(super) struct InodeNumbers {
    root: Nid,
}

impl InodeNumbers {
    pub(super) fn new(root: Nid) -> Self {
        Self { root }
    }

    pub(super) fn of(self, nid: Nid) -> INodeNo {
        INodeNo(self.swap(nid.0))
    }

    pub(super) fn nid(self, ino: INodeNo) -> Nid {
        Nid(self.swap(ino.0))
    }

    fn swap(self, number: u64) -> u64 {
        match number {
            _ if number == self.root.0 => INodeNo::ROOT.0,
            _ if number == INodeNo::ROOT.0 => self.root.0,
            _ => number,
        }
    }
}

/// The attributes of `inode`. Change and access times are the modification time: layers record no other.
pub(super) fn attributes(ino: INodeNo, inode: &ImageInode) -> FileAttr {
    let time = time(inode.mtime, inode.mtime_nsec);
    FileAttr {
        ino,
        size: inode.size,
        blocks: inode.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(inode.kind),
        perm: (inode.mode & 0o7777) as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: device_number(inode.rdev),
        blksize: BLOCK,
        flags: 0,
    }
}

/// Attributes of a name that doesn't exist: inode number 0 lets the kernel remember that.
pub(super) fn negative() -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// A time with `seconds` of either sign; one that the system can't express becomes the epoch.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let whole = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    whole.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(epoch)
}

/// The kernel's `new_encode_dev` (`include/linux/kdev_t.h`): 12 bits of major, 20 of minor.
fn device_number(DeviceNumber { major, minor }: DeviceNumber) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_are_one_to_one_and_the_root_has_one() {
        for root in [36, 1, 2] {
            let numbers = InodeNumbers::new(Nid(root));
            assert_eq!(numbers.of(Nid(root)), INodeNo::ROOT);
            let all: std::collections::BTreeSet<u64> = (1..100).map(|nid| numbers.of(Nid(nid)).0).collect();
            assert_eq!(all.len(), 99);
            assert!((1..100).all(|nid| numbers.nid(numbers.of(Nid(nid))) == Nid(nid)));
        }
    }

    #[test]
    fn times_before_the_epoch_count_nanoseconds_upwards() {
        let before = SystemTime::UNIX_EPOCH.duration_since(time(-2, 800_000_000)).unwrap();
        assert_eq!(before, Duration::new(1, 200_000_000));
        assert_eq!(time(i64::MAX, 999_999_999).duration_since(time(i64::MAX, 0)).unwrap().as_nanos(), 999_999_999);
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_unpacks_them() {
        assert_eq!(device_number(DeviceNumber { major: 8, minor: 1 }), 0x801);
        assert_eq!(device_number(DeviceNumber { major: 0xabc, minor: 0x12345 }), 0x123a_bc45);
    }
}
