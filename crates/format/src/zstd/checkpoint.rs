//! A checkpoint: what a zstd decoder knows between two blocks, with the window bytes that the span after it needs. It is
//! kept in little, and turned into a dictionary (RFC 8878, section 5) when a decoder is to start.

use super::{MAX_WINDOW, ZstdError, fse::Kind};
use crate::columns::{Fault, Reader, compress, put};
use std::io::Read;

/// Level of compression of checkpoints that are published.
const LEVEL: i32 = 12;
/// Level of those that nobody stores.
pub(super) const QUICK: i32 = 1;
/// Most bytes of a checkpoint before compression: a whole window, its runs, and descriptions.
const MAX_ENCODED: u64 = MAX_WINDOW + (MAX_WINDOW / 4) * 2 + 4096;
/// Dictionary content has at least so many bytes.
const MIN_CONTENT: u32 = 8;

/// Zeros in a row that are left out: they come for free, but a further run costs about two bytes.
const ZEROS: u32 = 4;
/// Unneeded bytes between two runs that are kept nevertheless, because joining the runs is cheaper.
const JOINED: u32 = 2;

const CHECKSUM: u8 = 1;
const HUFFMAN: u8 = 2;
const TABLES: [u8; 3] = [4, 8, 16];

/// What a decoder must know to start between two blocks of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whether a checksum follows the frame's last block.
    pub(super) checksum: bool,
    /// Description of the Huffman table, if the span repeats it.
    pub(super) huffman: Option<Vec<u8>>,
    /// Descriptions of the FSE tables, in the order of [`super::fse::KINDS`]: of those that the span repeats and that aren't the
    /// predefined ones.
    pub(super) tables: [Option<Vec<u8>>; 3],
    /// The offsets used last.
    pub(super) repeats: [u32; 3],
    /// Which bytes of the window are kept.
    pub(super) runs: Runs,
    /// The bytes of all runs.
    pub(super) bytes: Vec<u8>,
}

/// Runs of window bytes that are kept, from the oldest on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// Bytes from the first byte that the span refers to, be it a zero that isn't kept, to the window's end.
    pub reach: u32,
    /// Bytes left out before each run, and its own bytes.
    pub runs: Vec<(u32, u32)>,
}

impl Runs {
    /// Each run: how far its first byte is from the window's end, and its length. Ends early if it doesn't fit.
    fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut reach = self.reach;
        self.runs.iter().map_while(move |&(gap, len)| {
            let from = reach.checked_sub(gap)?;
            reach = from.checked_sub(len)?;
            Some((from, len))
        })
    }

    fn fits(&self) -> bool {
        u64::from(self.reach) <= MAX_WINDOW && self.places().count() == self.runs.len()
    }
}

/// Gathers the window bytes that are to be kept.
pub(super) struct Keeper {
    runs: Runs,
    bytes: Vec<u8>,
    /// Position after the last run.
    at: u64,
}

impl Keeper {
    /// Of a window that ends before the position `end`, and whose first byte that is needed has the position `from`.
    pub fn new(from: u64, end: u64) -> Self {
        Self { runs: Runs { reach: (end - from) as u32, runs: Vec::new() }, bytes: Vec::new(), at: from }
    }

    /// Keeps the window's bytes from the position `from` on, which isn't before those kept already, but leaves out zeros
    /// that pay. `between` gives the bytes between two positions.
    pub fn keep(&mut self, from: u64, bytes: &[u8], between: impl Fn(u64, u64, &mut Vec<u8>)) {
        let mut at = 0;
        while at < bytes.len() {
            let Some(start) = bytes[at..].iter().position(|&byte| byte != 0) else { break };
            let start = at + start;
            // The run goes on over short rows of zeros.
            let mut stop = start + 1;
            for (scan, &byte) in bytes.iter().enumerate().skip(stop) {
                if byte != 0 {
                    stop = scan + 1;
                } else if scan + 1 - stop > ZEROS as usize {
                    break;
                }
            }
            let position = from + start as u64;
            match self.runs.runs.last_mut() {
                Some((_, len)) if position - self.at <= JOINED.into() => {
                    between(self.at, position, &mut self.bytes);
                    *len += (position - self.at) as u32 + (stop - start) as u32;
                }
                _ => self.runs.runs.push(((position - self.at) as u32, (stop - start) as u32)),
            }
            self.bytes.extend_from_slice(&bytes[start..stop]);
            self.at = from + stop as u64;
            at = stop;
        }
    }

    /// The runs and their bytes.
    pub fn finish(self) -> (Runs, Vec<u8>) {
        (self.runs, self.bytes)
    }
}

impl Checkpoint {
    /// Window bytes that are kept.
    pub fn window_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the window that a decoder needs room for, kept or not.
    fn content_len(&self) -> usize {
        let longest = self.repeats.iter().fold(self.runs.reach, |longest, &repeat| longest.max(repeat));
        longest.max(MIN_CONTENT) as usize
    }

    /// What stands before the content of the dictionary.
    fn dictionary_head(&self) -> Vec<u8> {
        let mut head = vec![0x37, 0xa4, 0x30, 0xec, 1, 0, 0, 0];
        // A table that isn't needed must be there, too. This one has two symbols, of one bit each.
        head.extend_from_slice(self.huffman.as_deref().unwrap_or(&[128, 0x10]));
        for kind in [Kind::Offsets, Kind::MatchLengths, Kind::LiteralsLengths] {
            match &self.tables[kind as usize] {
                Some(description) => head.extend_from_slice(description),
                None => head.extend(kind.predefined().describe()),
            }
        }
        self.repeats.iter().for_each(|repeat| head.extend(repeat.to_le_bytes()));
        head
    }

    /// The checkpoint as it stands in the checkpoints blob: one zstd frame.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_at(LEVEL)
    }

    /// The same, compressed at this level.
    pub(super) fn encode_at(&self, level: i32) -> Vec<u8> {
        // Writing to memory fails only if memory runs out.
        compress(&self.columns(), level).unwrap_or_default()
    }

    /// Decodes what [`Checkpoint::encode`] made.
    ///
    /// # Errors
    /// It isn't a checkpoint.
    pub fn decode(frame: &[u8]) -> Result<Self, ZstdError> {
        let mut columns = Vec::new();
        zstd::Decoder::with_buffer(frame)
            .and_then(|mut decoder| {
                decoder.window_log_max(MAX_WINDOW.ilog2() + 1)?;
                decoder.take(MAX_ENCODED + 1).read_to_end(&mut columns)
            })
            .map_err(|_| ZstdError::Checkpoint("it isn't a whole zstd frame"))?;
        if columns.len() as u64 > MAX_ENCODED {
            return Err(ZstdError::Checkpoint("it is too large"));
        }
        Self::read(&columns).map_err(ZstdError::Checkpoint)
    }

    fn columns(&self) -> [Vec<u8>; 4] {
        let [mut state, mut gaps, mut lens] = <[Vec<u8>; 3]>::default();
        let descriptions = || std::iter::once(&self.huffman).chain(&self.tables);
        let flags = std::iter::once(HUFFMAN).chain(TABLES);
        let present = descriptions().zip(flags).filter(|(description, _)| description.is_some());
        state.push(present.fold(if self.checksum { CHECKSUM } else { 0 }, |all, (_, flag)| all | flag));
        for description in descriptions().flatten() {
            state.push(description.len() as u8);
            state.extend_from_slice(description);
        }
        self.repeats.iter().for_each(|&repeat| put(&mut state, repeat));
        put(&mut state, self.runs.reach);
        put(&mut state, self.runs.runs.len() as u32);
        for &(gap, len) in &self.runs.runs {
            put(&mut gaps, gap);
            put(&mut lens, len);
        }
        [state, gaps, lens, self.bytes.clone()]
    }

    fn read(columns: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader(columns);
        let flags = reader.byte()?;
        if flags >= 32 {
            return Err("it has unknown flags");
        }
        let mut description = |flag: u8| -> Result<Option<Vec<u8>>, Fault> {
            if flags & flag == 0 {
                return Ok(None);
            }
            let len = reader.byte()?.into();
            Ok(Some(reader.bytes(len)?.to_vec()))
        };
        let huffman = description(HUFFMAN)?;
        let tables = [description(TABLES[0])?, description(TABLES[1])?, description(TABLES[2])?];
        let repeats: [u32; 3] = [reader.number()?, reader.number()?, reader.number()?];
        if repeats.iter().any(|&repeat| repeat == 0 || u64::from(repeat) > MAX_WINDOW) {
            return Err("it repeats an impossible offset");
        }
        let reach = reader.number()?;
        let count = reader.number::<u32>()? as usize;
        // Two bytes at least for each.
        if count > reader.0.len() / 2 {
            return Err("it is truncated");
        }
        let mut runs = vec![(0, 0); count];
        for (gap, _) in &mut runs {
            *gap = reader.number()?;
        }
        for (_, len) in &mut runs {
            *len = reader.number()?;
        }
        let runs = Runs { reach, runs };
        let kept: u64 = runs.runs.iter().map(|&(_, len)| u64::from(len)).sum();
        if !runs.fits() || kept != reader.0.len() as u64 {
            return Err("its bytes don't fit into a window");
        }
        Ok(Self { checksum: flags & CHECKSUM != 0, huffman, tables, repeats, runs, bytes: reader.0.to_vec() })
    }
}

/// A checkpoint as a dictionary, in a buffer that can be used again. The content lies at the buffer's end, and what isn't
/// kept of the window stays zero, so that only pages with kept bytes are ever touched.
#[derive(Default)]
pub(super) struct Dictionary {
    buffer: Vec<u8>,
}

impl Dictionary {
    /// Gives `use_it` the dictionary of `checkpoint`.
    pub fn with<T>(&mut self, checkpoint: &Checkpoint, use_it: impl FnOnce(&[u8]) -> T) -> T {
        let (head, content) = (checkpoint.dictionary_head(), checkpoint.content_len());
        let len = head.len() + content;
        if self.buffer.len() < len {
            self.buffer = vec![0; len];
        }
        let (size, start) = (self.buffer.len(), self.buffer.len() - len);
        let head_place = start..start + head.len();
        self.buffer[head_place.clone()].copy_from_slice(&head);
        let place = |(from, len): (u32, u32)| size - from as usize..size - from as usize + len as usize;
        let mut bytes = &checkpoint.bytes[..];
        for run in checkpoint.runs.places().map(place) {
            let (kept, rest) = bytes.split_at(run.len().min(bytes.len()));
            let Some(target) = self.buffer.get_mut(run.start..run.start + kept.len()) else { break };
            target.copy_from_slice(kept);
            bytes = rest;
        }
        let result = use_it(&self.buffer[start..]);
        self.buffer[head_place].fill(0);
        for run in checkpoint.runs.places().map(place) {
            if let Some(run) = self.buffer.get_mut(run) {
                run.fill(0);
            }
        }
        result
    }
}
