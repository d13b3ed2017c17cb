//! Sparse files: the four ways tar writes their maps, and how their data is addressed in the device.
use super::error::Problem;
use super::header::{BLOCK, number};
use super::pax::{Records, decimal};
use crate::tree::{Extent, ExtentSource, FileData};

/// The largest file that ext4 holds, 16 TiB: a claim beyond is no file that anybody unpacked before.
const SIZE_MAX: u64 = 1 << 44;

/// A run of data in a sparse file; what isn't in one is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub offset: i64,
    pub len: i64,
}

/// Which of GNU's PAX conventions an entry's records use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PaxSparse {
    /// 0.0 and 0.1: the map is in the records.
    InRecords,
    /// 1.0: the map is at the start of the data.
    InData,
}

impl PaxSparse {
    /// Recognises the convention; `None` if this is no sparse file, or one of an unknown version.
    pub fn of(records: &Records) -> Option<Self> {
        match (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor")) {
            (Some(b"0"), Some(b"0" | b"1")) => Some(Self::InRecords),
            (Some(b"1"), Some(b"0")) => Some(Self::InData),
            (None, None) if records.get("GNU.sparse.map").is_some() => Some(Self::InRecords),
            _ => None,
        }
    }
}

/// The map that GNU sparse 0.0 and 0.1 keep in the PAX records.
pub(crate) fn map_in_records(records: &Records) -> Result<Vec<Segment>, Problem> {
    let count = records.number("GNU.sparse.numblocks")?.unwrap_or(-1);
    let numbers = match records.get("GNU.sparse.map") {
        None => Vec::new(),
        Some(map) => map.split(|b| *b == b',').map(decimal).collect::<Option<Vec<_>>>().ok_or(BAD_NUMBER)?,
    };
    if count < 0 || Some(numbers.len() as u64) != (count as u64).checked_mul(2) {
        return Err(Problem::Sparse("the map's length isn't what GNU.sparse.numblocks says"));
    }
    Ok(pairs(&numbers))
}

const BAD_NUMBER: Problem = Problem::Sparse("the map holds something other than numbers");

fn pairs(numbers: &[i64]) -> Vec<Segment> {
    numbers.chunks_exact(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect()
}

/// Reads the map that GNU sparse 1.0 puts before a file's data: newline-terminated decimals, a count first,
/// padded to whole blocks.
#[derive(Debug, Default)]
pub(crate) struct DataMap {
    numbers: Vec<i64>,
    digits: Vec<u8>,
}

impl DataMap {
    /// Takes one block; true when the map is complete.
    pub fn block(&mut self, block: &[u8; BLOCK]) -> Result<bool, Problem> {
        for byte in block {
            if *byte == b'\n' {
                self.numbers.push(decimal(&self.digits).ok_or(BAD_NUMBER)?);
                self.digits.clear();
                if self.complete()? {
                    return Ok(true);
                }
            } else if self.digits.len() < 24 {
                self.digits.push(*byte);
            } else {
                return Err(BAD_NUMBER);
            }
        }
        Ok(false)
    }

    fn complete(&self) -> Result<bool, Problem> {
        let count = self.numbers.first().copied().unwrap_or_default();
        let due = u64::try_from(count).ok().and_then(|count| count.checked_mul(2)).ok_or(BAD_NUMBER)?;
        Ok(self.numbers.len() as u64 > due)
    }

    /// The complete map.
    pub fn segments(self) -> Vec<Segment> {
        pairs(self.numbers.get(1..).unwrap_or_default())
    }
}

/// Adds the entries of an old GNU header (at byte 386) or of an extension block (at 0); true if another
/// extension block follows.
pub(crate) fn old_gnu_entries(area: &[u8], segments: &mut Vec<Segment>) -> Result<bool, Problem> {
    let entries = area.chunks_exact(24);
    let extended = entries.remainder().first().is_some_and(|flag| *flag > 0);
    for entry in entries {
        // As GNU and BSD tar: the first entry without an offset ends the list.
        if entry[0] == 0 {
            break;
        }
        segments.push(Segment {
            offset: number(&entry[..12], "sparse offset")?,
            len: number(&entry[12..], "sparse length")?,
        });
    }
    Ok(extended)
}

/// Where the bytes of a sparse file come from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The file; its inline extents are still zeros.
    pub data: FileData,
    /// What to copy into the inline extents, in archive order.
    pub captures: Vec<Capture>,
    /// Bytes of all inline extents.
    pub inline: u64,
}

/// A piece of the archive to be copied into an inline extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capture {
    /// Byte of the device where the piece starts.
    pub start: u64,
    /// Bytes.
    pub len: usize,
    /// Which of the file's extents, and where in it.
    pub extent: usize,
    pub at: usize,
}

impl Plan {
    /// Lays `segments`, packed one after the other from byte `start` of the device and `packed` bytes in all, out
    /// in a file of `size` bytes. Only whole 512-byte blocks of the file that lie on whole blocks of the device can
    /// be addressed there; the rest is kept inline, at most `inline_max` bytes.
    pub fn new(segments: &[Segment], size: i64, start: u64, packed: u64, inline_max: u64) -> Result<Self, Problem> {
        let size = u64::try_from(size).map_err(|_| Problem::Sparse("its real size is negative"))?;
        if size > SIZE_MAX {
            return Err(Problem::Limit { what: "bytes in a sparse file", limit: SIZE_MAX });
        }
        let mut end = 0u64;
        let mut total = 0u64;
        for segment in segments {
            let (Ok(offset), Ok(len)) = (u64::try_from(segment.offset), u64::try_from(segment.len)) else {
                return Err(BAD_NUMBER);
            };
            if offset < end || offset + len > size {
                return Err(Problem::Sparse("the map overlaps itself or goes past the end of the file"));
            }
            // Both were non-negative i64: no sum here exceeds u64.
            end = offset + len;
            total += len;
        }
        if total != packed {
            return Err(Problem::Sparse("the map doesn't cover exactly the data that is there"));
        }
        let mut layout = Layout { size, inline_max, extents: Vec::new(), plan: Self::default() };
        let mut from = start;
        for segment in segments.iter().filter(|segment| segment.len > 0) {
            let (offset, len) = (segment.offset as u64, segment.len as u64);
            layout.segment(offset, len, from)?;
            from = from.checked_add(len).ok_or(Problem::Number("size"))?;
        }
        Ok(Self { data: FileData::new(size, layout.extents), ..layout.plan })
    }
}

struct Layout {
    size: u64,
    inline_max: u64,
    extents: Vec<Extent>,
    plan: Plan,
}

impl Layout {
    fn segment(&mut self, offset: u64, len: u64, from: u64) -> Result<(), Problem> {
        let block = BLOCK as u64;
        let end = offset + len;
        let first = offset.next_multiple_of(block);
        // The file's last block may be short: what follows it in the device is never seen.
        let last = if end == self.size { end } else { end - end % block };
        if offset % block != from % block || first >= last {
            return self.inline(offset, len, from);
        }
        self.inline(offset, first - offset, from)?;
        self.device(first, last - first, from + (first - offset));
        self.inline(last, end - last, from + (last - offset))
    }

    fn device(&mut self, file_offset: u64, len: u64, offset: u64) {
        if let Some(previous) = self.extents.last_mut()
            && let ExtentSource::Device { offset: before, .. } = previous.source
            && previous.file_offset + previous.len == file_offset
            && before + previous.len == offset
        {
            previous.len += len;
            return;
        }
        self.extents.push(Extent { file_offset, len, source: ExtentSource::Device { device: 1, offset } });
    }

    /// Keeps `len` bytes, and with them the whole blocks that they are in, in the tree.
    fn inline(&mut self, offset: u64, len: u64, from: u64) -> Result<(), Problem> {
        if len == 0 {
            return Ok(());
        }
        let limit = Problem::Limit { what: "bytes of sparse data that isn't block-aligned", limit: self.inline_max };
        let too_big = |_| limit.clone();
        let block = BLOCK as u64;
        let start = offset - offset % block;
        let end = (offset + len).next_multiple_of(block).min(self.size);
        let extents = &mut self.extents;
        // Pieces that share a block, or adjoin, share an extent.
        let joins = extents.last().is_some_and(|previous| {
            matches!(previous.source, ExtentSource::Inline(_)) && previous.file_offset + previous.len >= start
        });
        if !joins {
            extents.push(Extent { file_offset: start, len: 0, source: ExtentSource::Inline(Vec::new()) });
        }
        let index = extents.len() - 1;
        let extent = &mut extents[index];
        let grown = end - extent.file_offset;
        self.plan.inline += grown - extent.len;
        if self.plan.inline > self.inline_max {
            return Err(limit);
        }
        extent.len = grown;
        if let ExtentSource::Inline(bytes) = &mut extent.source {
            bytes.resize(usize::try_from(grown).map_err(too_big)?, 0);
        }
        self.plan.captures.push(Capture {
            start: from,
            len: usize::try_from(len).map_err(too_big)?,
            extent: index,
            at: usize::try_from(offset - extent.file_offset).map_err(too_big)?,
        });
        Ok(())
    }
}
