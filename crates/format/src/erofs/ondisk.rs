//! Constants, the superblock and the device table of the on-disk format (kernel, `fs/erofs/erofs_fs.h`).
use crate::tree::DeviceNumber;

/// log2 of the block size.
pub const BLOCK_BITS: u32 = 9;
/// Bytes of a block.
pub const BLOCK: u64 = 1 << BLOCK_BITS;
/// Where the superblock starts.
pub const SUPER_OFFSET: usize = 1024;
/// Bytes of the superblock.
pub const SUPER_SIZE: usize = 128;
/// Bytes of a slot of the device table.
pub const DEVICE_SLOT: usize = 128;
/// log2 of the unit in which node numbers count bytes.
pub const NID_BITS: u32 = 5;
/// The address of a hole, and of nothing.
pub const NULL_BLOCK: u32 = u32::MAX;
/// Bytes of a directory entry before its name.
pub const DIRENT: usize = 12;
/// Bytes of a chunk index.
pub const CHUNK_INDEX: u64 = 8;
/// Bytes of the header of an inode's xattrs.
pub const XATTR_HEADER: usize = 12;
/// Longest file name.
pub const NAME_MAX: usize = 255;
/// Longest symlink target that Linux can follow (`PATH_MAX` without its NUL).
pub const SYMLINK_MAX: u64 = 4095;

/// Data layouts of an inode (`i_format`, bits 1 to 3).
pub mod layout {
    /// Whole blocks.
    pub const PLAIN: u16 = 0;
    /// Whole blocks, the last one right behind the inode.
    pub const INLINE: u16 = 2;
    /// Chunk indexes.
    pub const CHUNKS: u16 = 4;
}

/// Chunk format: 8-byte indexes with a device number.
pub const CHUNK_INDEXES: u16 = 0x20;
/// Chunk format: log2 of the chunk size in blocks.
pub const CHUNK_BITS: u16 = 0x1f;

/// File type bits of a mode.
pub mod mode {
    /// Mask of the type.
    pub const TYPE: u16 = 0o170000;
    /// FIFO.
    pub const FIFO: u16 = 0o010000;
    /// Character device.
    pub const CHAR: u16 = 0o020000;
    /// Directory.
    pub const DIRECTORY: u16 = 0o040000;
    /// Block device.
    pub const BLOCK: u16 = 0o060000;
    /// Regular file.
    pub const FILE: u16 = 0o100000;
    /// Symbolic link.
    pub const SYMLINK: u16 = 0o120000;
    /// Socket.
    pub const SOCKET: u16 = 0o140000;
}

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// What the superblock says, as far as our images vary in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Superblock {
    /// Node number of the root directory.
    pub root: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Modification time of compact inodes, seconds.
    pub time: i64,
    /// Modification time of compact inodes, nanoseconds.
    pub time_nsec: u32,
    /// Blocks of the image.
    pub blocks: u32,
    /// First block of the area that node numbers count from.
    pub meta_block: u32,
    /// First block of the shared xattrs.
    pub xattr_block: u32,
    /// Identifier.
    pub uuid: [u8; 16],
    /// Devices in the table.
    pub devices: u16,
    /// Where the table starts, in slots from the image's start.
    pub device_slot: u16,
}

impl Superblock {
    /// The 128 bytes, without a checksum.
    pub fn encode(&self) -> [u8; SUPER_SIZE] {
        let mut bytes = [0u8; SUPER_SIZE];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK_BITS as u8]);
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(24, &self.time.to_le_bytes());
        put(32, &self.time_nsec.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(44, &self.xattr_block.to_le_bytes());
        put(48, &self.uuid);
        let table = if self.devices == 0 { 0 } else { INCOMPAT_DEVICE_TABLE };
        put(80, &(INCOMPAT_CHUNKED_FILE | table).to_le_bytes());
        put(86, &self.devices.to_le_bytes());
        put(88, &self.device_slot.to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote. `bytes` is the block that starts with the superblock.
    pub fn decode(bytes: &[u8]) -> Result<Self, super::ErofsError> {
        use super::ErofsError::{Superblock as Bad, Unsupported};
        let block = bytes.get(..BLOCK as usize).ok_or(Bad("it ends before its superblock does"))?;
        if u32_at(block, 0) != Some(MAGIC) {
            return Err(Bad("no superblock"));
        }
        let u16s = |at| u16_at(block, at).unwrap_or_default();
        let u32s = |at| u32_at(block, at).unwrap_or_default();
        let u64s = |at| u64_at(block, at).unwrap_or_default();
        if u32s(8) != COMPAT_CHECKSUM | COMPAT_MTIME {
            return Err(Unsupported(format!("features {:#x}", u32s(8))));
        }
        if checksum(block) != u32s(4) {
            return Err(Bad("the superblock's checksum doesn't match"));
        }
        if u32::from(block[12]) != BLOCK_BITS || block[13] != 0 || block[90] != 0 {
            return Err(Unsupported("blocks of another size than 512 bytes, or a longer superblock".to_owned()));
        }
        let devices = u16s(86);
        let features = INCOMPAT_CHUNKED_FILE | if devices == 0 { 0 } else { INCOMPAT_DEVICE_TABLE };
        if u32s(80) != features || u16s(84) != 0 || block[91] != 0 || u64s(96) != 0 {
            return Err(Unsupported(format!("incompatible features {:#x}", u32s(80))));
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[48..64]);
        Ok(Self {
            root: u16s(14),
            inodes: u64s(16),
            time: u64s(24) as i64,
            time_nsec: u32s(32),
            blocks: u32s(36),
            meta_block: u32s(40),
            xattr_block: u32s(44),
            uuid,
            devices,
            device_slot: u16s(88),
        })
    }
}

/// The checksum of the block that starts with the superblock: CRC-32C, not inverted at the end, over the block with
/// the checksum itself as zeros (`erofs_superblock_csum_verify`).
pub fn checksum(block: &[u8]) -> u32 {
    let head = block.iter().take(4).chain(&[0; 4]);
    head.chain(block.iter().skip(8)).fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82F6_3B78 })
    })
}

/// A device's number as the kernel packs it (`new_encode_dev`); `None` if major or minor is beyond Linux's 12 and 20
/// bits.
pub fn encode_device(number: DeviceNumber) -> Option<u32> {
    let DeviceNumber { major, minor } = number;
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Reverses [`encode_device`]; every value is some device.
pub fn decode_device(packed: u32) -> DeviceNumber {
    DeviceNumber { major: (packed & 0xf_ff00) >> 8, minor: (packed & 0xff) | ((packed >> 12) & 0xf_ff00) }
}

/// The little-endian 16-bit number at `at`.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The little-endian 32-bit number at `at`.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The little-endian 64-bit number at `at`.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip_over_linux_range() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (4095, 1_048_575)] {
            let number = DeviceNumber { major, minor };
            assert_eq!(encode_device(number).map(decode_device), Some(number));
        }
        assert_eq!(encode_device(DeviceNumber { major: 259, minor: 0x12345 }), Some(0x1231_0345));
        assert_eq!(encode_device(DeviceNumber { major: 4096, minor: 0 }), None);
        assert_eq!(encode_device(DeviceNumber { major: 0, minor: 1 << 20 }), None);
    }

    #[test]
    fn the_checksum_is_crc32c_without_the_final_inversion() {
        // CRC-32C of 32 zero bytes is 0x8A9136AA (RFC 3720, appendix B.4).
        assert_eq!(!checksum(&[0; 32]), 0x8A91_36AA);
    }
}
