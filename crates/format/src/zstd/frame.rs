//! The header of a zstd frame (RFC 8878, section 3.1.1.1) or skippable frame (section 3.1.2), and of a block (3.1.1.2).

/// Longest header of a frame, bytes: magic number, descriptor, window, dictionary ID, content size.
pub const MAX_HEADER: usize = 4 + 1 + 1 + 4 + 8;

/// What the bytes at a frame's start are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The header of a frame.
    Frame(FrameHeader),
    /// The header, 8 bytes, of a skippable frame.
    Skippable {
        /// Bytes that follow the header.
        len: u32,
    },
    /// The beginning of a header; more bytes are needed.
    Partial,
    /// Not the beginning of a frame.
    Foreign,
}

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the header.
    pub len: usize,
    /// Bytes that a decoder must keep.
    pub window: u64,
    /// Decoded bytes of the frame, if it says.
    pub content_size: Option<u64>,
    /// ID of the dictionary that it needs; 0 if none.
    pub dictionary: u32,
    /// Whether a checksum follows the last block.
    pub checksum: bool,
}

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;
const SKIPPABLE_MASK: u32 = 0xffff_fff0;

/// Understands the header that `bytes` start with, or says what is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Header, &'static str> {
    let is = |magic: u32, mask: u32| {
        bytes.iter().zip(magic.to_le_bytes()).zip(mask.to_le_bytes()).all(|((&byte, magic), mask)| byte & mask == magic)
    };
    if is(SKIPPABLE, SKIPPABLE_MASK) && !bytes.is_empty() {
        let len = bytes.get(4..).and_then(|rest| rest.first_chunk());
        return Ok(len.map_or(Header::Partial, |&len| Header::Skippable { len: u32::from_le_bytes(len) }));
    }
    if !is(MAGIC, u32::MAX) {
        return Ok(Header::Foreign);
    }
    let Some(&descriptor) = bytes.get(4) else { return Ok(Header::Partial) };
    if descriptor & 8 != 0 {
        return Err("its header has the reserved bit set");
    }
    let single_segment = descriptor & 0x20 != 0;
    let window_len = usize::from(!single_segment);
    let dictionary_len = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content_len = [usize::from(single_segment), 2, 4, 8][usize::from(descriptor >> 6)];
    let len = 5 + window_len + dictionary_len + content_len;
    let Some(fields) = bytes.get(5..len) else { return Ok(Header::Partial) };
    let (window, fields) = fields.split_at(window_len);
    let (dictionary, content) = fields.split_at(dictionary_len);
    let content_size = (!content.is_empty()).then(|| number(content) + if content_len == 2 { 256 } else { 0 });
    let window = match window {
        [byte] => {
            let base = 1u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }
        _ => content_size.unwrap_or_default(),
    };
    let checksum = descriptor & 4 != 0;
    Ok(Header::Frame(FrameHeader { len, window, content_size, dictionary: number(dictionary) as u32, checksum }))
}

/// Little-endian, of at most 8 bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// What a block's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHeader {
    /// Whether it is the frame's last.
    pub last: bool,
    /// How it holds its bytes.
    pub kind: BlockKind,
    /// Its `Block_Size`: decoded bytes, of a compressed block those that follow the header.
    pub size: u32,
    /// Bytes that follow the header.
    pub len: u32,
}

/// How a block holds its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// As they are.
    Raw,
    /// One byte, repeated.
    Rle,
    /// Literals and sequences.
    Compressed,
}

impl BlockHeader {
    /// Understands the three bytes of a block's header.
    pub fn parse(&[a, b, c]: &[u8; 3]) -> Result<Self, &'static str> {
        let bits = u32::from_le_bytes([a, b, c, 0]);
        let size = bits >> 3;
        let (kind, len) = match bits >> 1 & 3 {
            0 => (BlockKind::Raw, size),
            // A run of one byte, which says how often it is repeated.
            1 => (BlockKind::Rle, 1),
            2 => (BlockKind::Compressed, size),
            _ => return Err("a block is of the reserved type"),
        };
        Ok(Self { last: bits & 1 != 0, kind, size, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_fields_is_understood_and_no_prefix_is_enough() {
        let (windows, ids) = ([true, false], [(0u8, 0usize, 0u32), (1, 1, 0x11), (2, 2, 0x2211), (3, 4, 0x4433_2211)]);
        for (single, (id_flag, id_len, id), content_flag) in windows
            .into_iter()
            .flat_map(|single| ids.into_iter().flat_map(move |id| (0..4u8).map(move |content| (single, id, content))))
        {
            let mut bytes = MAGIC.to_le_bytes().to_vec();
            bytes.push(content_flag << 6 | u8::from(single) << 5 | 4 | id_flag);
            if !single {
                bytes.push(11 << 3 | 2);
            }
            bytes.extend(&[0x11, 0x22, 0x33, 0x44][..id_len]);
            let (content_len, content) = match content_flag {
                0 if !single => (0, None),
                0 => (1, Some(7)),
                1 => (2, Some(7 + 256)),
                2 => (4, Some(7)),
                _ => (8, Some(7)),
            };
            bytes.extend(&[7, 0, 0, 0, 0, 0, 0, 0][..content_len]);
            let window = if single { content.unwrap() } else { (1 << 21) + (1 << 19) };
            let wanted =
                FrameHeader { len: bytes.len(), window, content_size: content, dictionary: id, checksum: true };
            assert!(bytes.len() <= MAX_HEADER);
            assert_eq!(parse(&[&bytes[..], b"body"].concat()), Ok(Header::Frame(wanted)));
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(Header::Partial), "{end} of {bytes:x?}");
            }
        }
    }

    #[test]
    fn skippable_frames_foreign_bytes_and_reserved_bits() {
        for kind in 0x50..=0x5f {
            assert_eq!(parse(&[kind, 0x2a, 0x4d, 0x18, 1, 2, 0, 0, 9]), Ok(Header::Skippable { len: 0x201 }));
            assert_eq!(parse(&[kind, 0x2a, 0x4d, 0x18, 1, 2, 0]), Ok(Header::Partial));
        }
        for foreign in [&[0x60][..], &[0x28, 0xb6], &[0x50, 0x2a, 0x4d, 0x19], b"\x1f\x8b\x08"] {
            assert_eq!(parse(foreign), Ok(Header::Foreign), "{foreign:x?}");
        }
        assert!(parse(&[0x28, 0xb5, 0x2f, 0xfd, 8]).is_err());
    }

    #[test]
    fn blocks() {
        let parse = |bits: u32| BlockHeader::parse(bits.to_le_bytes().first_chunk().unwrap());
        let raw = BlockHeader { last: false, kind: BlockKind::Raw, size: 1000, len: 1000 };
        assert_eq!(parse(1000 << 3), Ok(raw));
        assert_eq!(parse(1000 << 3 | 2 | 1), Ok(BlockHeader { last: true, kind: BlockKind::Rle, size: 1000, len: 1 }));
        let (kind, size, len) = (BlockKind::Compressed, 131_072, 131_072);
        assert_eq!(parse(131_072 << 3 | 4), Ok(BlockHeader { last: false, kind, size, len }));
        assert!(parse(6).is_err());
    }
}
