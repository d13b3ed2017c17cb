//! How a file's, a directory's or a symlink's data are laid out.
use crate::erofs::FileKind;
use crate::erofs::ondisk::{BLOCK, BLOCK_BITS, CHUNK_BITS, CHUNK_INDEX, CHUNK_INDEXES, DIRENT, NULL_BLOCK};
use crate::tree::{Directory, ExtentSource, FileData, InodeId};

/// Largest table of chunk indexes for one file, bytes.
const CHUNK_TABLE_MAX: u64 = 64 << 20;

/// The layout of an inode's data.
#[derive(Debug)]
pub enum Data {
    /// In the image, one block after the other.
    Flat {
        /// Whether the last block, not a whole one, stands behind the inode.
        tail: bool,
        /// Bytes.
        size: u64,
    },
    /// Chunk indexes.
    Chunks(Chunks),
    /// None: devices and the like.
    None,
}

/// The chunks of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunks {
    /// log2 of a chunk's blocks.
    bits: u32,
    /// How many chunks.
    count: u64,
    /// The parts that aren't holes, in file order.
    pieces: Vec<Piece>,
    /// Blocks of the image's own that the file needs.
    own_blocks: u64,
}

/// Consecutive blocks of a file that lie consecutively somewhere.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// First block within the file.
    first: u64,
    /// Blocks.
    count: u64,
    /// Device; 0 for the image itself.
    device: u16,
    /// First block within the device, or within the file's own blocks in the image.
    start: u64,
}

impl Data {
    /// Lays out a regular file.
    pub fn of_file(file: &FileData, device_sizes: &[u64]) -> Result<Self, String> {
        if i64::try_from(file.size()).is_err() {
            return Err("larger than Linux's largest file".to_owned());
        }
        let pieces = pieces(file, device_sizes)?;
        let blocks = file.size().div_ceil(BLOCK);
        let whole = pieces.len() == 1 && pieces[0].device == 0 && pieces[0].count == blocks;
        if whole || file.size() == 0 {
            return Ok(Self::Flat { tail: false, size: file.size() });
        }
        // Chunks must not straddle the border of a piece, but may reach beyond the file's end.
        let borders = pieces.iter().flat_map(|p| [p.first, p.first + p.count]).filter(|b| *b != 0 && *b < blocks);
        let enough = blocks.next_power_of_two().trailing_zeros();
        let bits = borders.map(u64::trailing_zeros).fold(enough, u32::min).min(u32::from(CHUNK_BITS));
        let count = blocks.div_ceil(1 << bits);
        if count * CHUNK_INDEX > CHUNK_TABLE_MAX {
            return Err(format!(
                "a sparse file of {} bytes with parts as small as {} bytes would need a chunk table of more than {} MiB",
                file.size(),
                BLOCK << bits,
                CHUNK_TABLE_MAX >> 20
            ));
        }
        let own_blocks = pieces.iter().filter(|p| p.device == 0).map(|p| p.count).sum();
        Ok(Self::Chunks(Chunks { bits, count, pieces, own_blocks }))
    }

    /// Bytes behind the inode and its xattrs, which end at a multiple of 4, if those don't end at a multiple of 8.
    pub fn behind(&self, end: u64) -> u64 {
        match self {
            Self::Flat { tail: true, size } => size % BLOCK,
            Self::Chunks(chunks) => end.next_multiple_of(CHUNK_INDEX) - end + chunks.count * CHUNK_INDEX,
            _ => 0,
        }
    }

    /// Blocks in the area of whole blocks.
    pub fn blocks(&self) -> u64 {
        match self {
            Self::Flat { tail: true, size } => size / BLOCK,
            Self::Flat { tail: false, size } => size.div_ceil(BLOCK),
            Self::Chunks(chunks) => chunks.own_blocks,
            Self::None => 0,
        }
    }
}

impl Chunks {
    /// What the inode says of its chunks.
    pub fn format(&self) -> u32 {
        u32::from(CHUNK_INDEXES) | self.bits
    }

    /// The table, when the file's own blocks start at block `own` of the image.
    pub fn indexes(&self, own: u64) -> Vec<u8> {
        let mut table = Vec::with_capacity((self.count * CHUNK_INDEX) as usize);
        let mut pieces = self.pieces.iter().peekable();
        for chunk in 0..self.count {
            let block = chunk << self.bits;
            while pieces.next_if(|piece| piece.first + piece.count <= block).is_some() {}
            let (device, start) = match pieces.peek() {
                Some(piece) if piece.first <= block => {
                    let base = if piece.device == 0 { own } else { 0 };
                    (piece.device, (base + piece.start + (block - piece.first)) as u32)
                }
                _ => (0, NULL_BLOCK),
            };
            table.extend_from_slice(&[0; 2]);
            table.extend_from_slice(&device.to_le_bytes());
            table.extend_from_slice(&start.to_le_bytes());
        }
        table
    }

    /// Copies the bytes that `file` keeps in the tree to its own blocks, which are the first of `blocks`.
    pub fn put_inline(&self, file: &FileData, blocks: &mut [u8]) {
        let own = self.pieces.iter().filter(|piece| piece.device == 0);
        for extent in file.extents() {
            let ExtentSource::Inline(bytes) = &extent.source else { continue };
            let block = extent.file_offset >> BLOCK_BITS;
            let piece = own.clone().find(|piece| piece.first <= block && block < piece.first + piece.count);
            let Some(piece) = piece else { continue };
            let at = (piece.start << BLOCK_BITS) + (extent.file_offset - (piece.first << BLOCK_BITS));
            blocks[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// The bytes of a file that lies wholly in the tree.
pub fn inline_bytes(file: &FileData) -> Vec<u8> {
    let mut all = vec![0; file.size() as usize];
    for extent in file.extents() {
        if let ExtentSource::Inline(bytes) = &extent.source {
            let at = extent.file_offset as usize;
            all[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    all
}

/// Checks the extents and puts together what belongs together.
fn pieces(file: &FileData, device_sizes: &[u64]) -> Result<Vec<Piece>, String> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(file.extent_count());
    let mut own_blocks = 0;
    let mut position = 0;
    for extent in file.extents() {
        let end = extent.file_offset.checked_add(extent.len).filter(|end| *end <= file.size());
        let end = end.ok_or("an extent beyond the end of the file")?;
        if extent.file_offset < position || extent.len == 0 {
            return Err("extents that overlap, are empty or out of order".to_owned());
        }
        position = end;
        let first = extent.file_offset >> BLOCK_BITS;
        let count = end.div_ceil(BLOCK) - first;
        let last = pieces.last_mut();
        let last_end = last.as_ref().map_or(0, |piece| piece.first + piece.count);
        match &extent.source {
            ExtentSource::Device { device, offset } => {
                if extent.file_offset % BLOCK != 0 || offset % BLOCK != 0 || (end % BLOCK != 0 && end != file.size()) {
                    return Err("an extent that isn't on 512-byte boundaries".to_owned());
                }
                let size = device.checked_sub(1).and_then(|n| device_sizes.get(usize::from(n))).copied();
                let size = size.ok_or_else(|| format!("an extent in device {device}, which doesn't exist"))?;
                if offset.checked_add(extent.len).is_none_or(|end| end > size) {
                    return Err(format!("an extent beyond the end of device {device}"));
                }
                if first < last_end {
                    return Err("two extents in one 512-byte block".to_owned());
                }
                let start = offset >> BLOCK_BITS;
                match last {
                    Some(p) if p.device == *device && last_end == first && p.start + p.count == start => {
                        p.count += count;
                    }

                    _ => pieces.push(Piece { first, count, device: *device, start }),
                }
            }
            ExtentSource::Inline(bytes) => {
                if bytes.len() as u64 != extent.len {
                    return Err("an extent of another length than its bytes".to_owned());
                }
                let new = match last {
                    Some(piece) if piece.device == 0 && last_end >= first => {
                        let new = (first + count).saturating_sub(last_end);
                        piece.count += new;
                        new
                    }
                    _ if first < last_end => return Err("two extents in one 512-byte block".to_owned()),
                    _ => {
                        pieces.push(Piece { first, count, device: 0, start: own_blocks });
                        count
                    }
                };
                own_blocks += new;
            }
        }
    }
    Ok(pieces)
}

/// A directory's entries in the order of their names, with `.` and `..`.
pub fn entries_of(entries: &Directory, own: InodeId, parent: InodeId) -> Vec<(&[u8], InodeId)> {
    let mut all: Vec<(&[u8], InodeId)> = Vec::with_capacity(entries.len() + 2);
    all.extend(entries);
    for (name, id) in [(&b"."[..], own), (b"..", parent)] {
        all.insert(all.partition_point(|(other, _)| *other < name), (name, id));
    }
    all
}

/// How many of the first `names` fit in one block, and how many bytes of it they take.
fn fill_block<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let mut filled = (0, 0);
    for name in names {
        let bytes = filled.1 + DIRENT + name.len();
        if bytes > BLOCK as usize {
            break;
        }
        filled = (filled.0 + 1, bytes);
    }
    filled
}

/// Bytes of a directory with these entries.
pub fn directory_size(mut entries: &[(&[u8], InodeId)]) -> u64 {
    let mut size = 0;
    while !entries.is_empty() {
        let (count, bytes) = fill_block(entries.iter().map(|(name, _)| *name));
        entries = &entries[count..];
        size += if entries.is_empty() { bytes as u64 } else { BLOCK };
    }
    size
}

/// The data of a directory with these entries.
pub fn dirent_blocks(
    mut entries: &[(&[u8], InodeId)],
    nid: impl Fn(InodeId) -> u64,
    kind: impl Fn(InodeId) -> FileKind,
) -> Vec<u8> {
    let mut out = Vec::new();
    while !entries.is_empty() {
        out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        let (count, _) = fill_block(entries.iter().map(|(name, _)| *name));
        let (block, rest) = entries.split_at(count);
        let mut name_offset = count * DIRENT;
        for (name, id) in block {
            out.extend_from_slice(&nid(*id).to_le_bytes());
            out.extend_from_slice(&(name_offset as u16).to_le_bytes());
            out.extend_from_slice(&[kind(*id).dirent(), 0]);
            name_offset += name.len();
        }
        block.iter().for_each(|(name, _)| out.extend_from_slice(name));
        entries = rest;
    }
    out
}
