//! What an ELF program or library needs to be loaded (System V ABI, chapter 5).
use crate::convert::startup::files::ImageFiles;
use crate::convert::startup::reader::FileReader;
use anyhow::{Context, Result, bail};
use clipper_format::tree::InodeId;
use std::ops::Range;

/// How ELF files begin.
pub const MAGIC: &[u8] = b"\x7fELF";
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
/// Most program headers, and most bytes of one table, that are looked at.
const HEADERS_MAX: u16 = 256;
const TABLE_MAX: u64 = 4 << 20;

/// What must be loaded with a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Path of the dynamic linker.
    pub interpreter: Option<Vec<u8>>,
    /// Names of libraries, in order.
    pub libraries: Vec<String>,
    /// Directories in which they are looked for first; may hold `$ORIGIN`.
    pub run_path: Vec<String>,
    /// Bytes that the dynamic linker reads in any case: symbols and relocations, and the data that these change.
    pub eager: Vec<Range<u64>>,
    /// From the first byte that is mapped to the last, but for what only an exception that is thrown reads; not symbols and
    /// lines for debuggers, which come behind.
    pub mapped: Vec<Range<u64>>,
}

/// How numbers are stored.
#[derive(Clone, Copy)]
struct Class {
    wide: bool,
    big: bool,
}

/// A part of the file that is mapped.
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    len: u64,
}

/// Reads what the file `id` needs.
///
/// # Errors
/// It can't be read, or isn't ELF.
pub async fn needs(files: &ImageFiles, reader: &FileReader<'_>, id: InodeId) -> Result<Needs> {
    let header = reader.read(files, id, 0..64).await?;
    let class = match header.get(4..6).context("too short")? {
        [1, order @ (1 | 2)] => Class { wide: false, big: *order == 2 },
        [2, order @ (1 | 2)] => Class { wide: true, big: *order == 2 },
        _ => bail!("an unknown class of ELF"),
    };
    let (table, entry, count) = if class.wide { (32, 54, 56) } else { (28, 42, 44) };
    let start = class.word(&header, table)?;
    let (entry, count) = (class.u16(&header, entry)?, class.u16(&header, count)?.min(HEADERS_MAX));
    let headers = reader.read(files, id, start..start.saturating_add(u64::from(entry) * u64::from(count))).await?;
    let segments = headers.chunks_exact(usize::from(entry).max(1)).map(|bytes| class.segment(bytes));
    let segments = segments.collect::<Result<Vec<_>>>()?;

    let mut needs = Needs::default();
    let mapped = segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let written = mapped.clone().filter(|segment| segment.flags & PF_W != 0);
    let symbols = mapped.clone().filter(|segment| segment.offset == 0 && segment.flags & (PF_X | PF_W) == 0);
    needs.eager = written.chain(symbols).map(Segment::mapped).collect();
    let end = mapped.clone().map(|segment| segment.mapped().end).max().unwrap_or(0);
    // Linkers put what unwinds the stack at the end of a segment.
    let frames = segments.iter().find(|segment| segment.kind == PT_GNU_EH_FRAME).map(|segment| segment.offset);
    let frames = frames.and_then(|frames| {
        let mut around = mapped.map(Segment::mapped).filter(|segment| segment.contains(&frames));
        around.next().map(|segment| frames..segment.end)
    });
    needs.mapped = match frames {
        Some(frames) => vec![0..frames.start, frames.end..end],
        None => std::iter::once(0..end).collect(),
    };
    if let Some(segment) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        let mut path = reader.read(files, id, segment.range()).await?;
        path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(path.len()));
        needs.interpreter = path.starts_with(b"/").then_some(path);
    }
    let Some(dynamic) = segments.iter().find(|segment| segment.kind == PT_DYNAMIC) else { return Ok(needs) };
    let dynamic = reader.read(files, id, dynamic.range()).await?;
    let size = if class.wide { 16 } else { 8 };
    let mut entries = Vec::new();
    for bytes in dynamic.chunks_exact(size) {
        let (tag, value) = (class.word(bytes, 0)?, class.word(bytes, size / 2)?);
        if tag == 0 {
            break;
        }
        entries.push((tag, value));
    }
    let value = |tag| entries.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
    let (Some(address), Some(len)) = (value(DT_STRTAB), value(DT_STRSZ)) else { return Ok(needs) };
    let in_file = |segment: &&Segment| {
        segment.kind == PT_LOAD && (segment.address..segment.address.saturating_add(segment.len)).contains(&address)
    };
    let load = segments.iter().find(in_file).context("its strings are in no segment")?;
    let start = load.offset.saturating_add(address - load.address);
    let strings = reader.read(files, id, start..start.saturating_add(len.min(TABLE_MAX))).await?;
    let text = |at: u64| {
        let rest = usize::try_from(at).ok().and_then(|at| strings.get(at..)).unwrap_or_default();
        String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    for (tag, value) in &entries {
        match *tag {
            DT_NEEDED => needs.libraries.push(text(*value)),
            DT_RPATH | DT_RUNPATH => needs.run_path.extend(text(*value).split(':').map(str::to_owned)),
            _ => {}
        }
    }
    Ok(needs)
}

impl Segment {
    /// Its bytes in the file.
    fn mapped(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len)
    }

    /// The same of a segment that is a table.
    fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.len.min(TABLE_MAX))
    }
}

impl Class {
    fn segment(self, bytes: &[u8]) -> Result<Segment> {
        let (flags, offset, address, len) = if self.wide { (4, 8, 16, 32) } else { (24, 4, 8, 16) };
        Ok(Segment {
            kind: self.u32(bytes, 0)?,
            flags: self.u32(bytes, flags)?,
            offset: self.word(bytes, offset)?,
            address: self.word(bytes, address)?,
            len: self.word(bytes, len)?,
        })
    }

    fn word(self, bytes: &[u8], at: usize) -> Result<u64> {
        if !self.wide {
            return Ok(self.u32(bytes, at)?.into());
        }
        let bytes = *bytes.get(at..).and_then(<[u8]>::first_chunk).context("too short")?;
        Ok(if self.big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    fn u32(self, bytes: &[u8], at: usize) -> Result<u32> {
        let bytes = *bytes.get(at..).and_then(<[u8]>::first_chunk).context("too short")?;
        Ok(if self.big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u16(self, bytes: &[u8], at: usize) -> Result<u16> {
        let bytes = *bytes.get(at..).and_then(<[u8]>::first_chunk).context("too short")?;
        Ok(if self.big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }
}
