//! Checkpoints on disk: consecutive ones are stored together, column by column, in one zstd frame.
use super::{Checkpoint, GzipError, WINDOW, checkpoint::Run, inflate::Block};
use crate::columns::{Fault, Reader, compress, put};
use std::{io::Read, sync::Arc};

/// Checkpoints of a group; only a layer's last group has fewer.
pub const CHECKPOINTS_PER_GROUP: usize = 16;

/// Most bytes of a checkpoint before compression: a whole window, its runs, and codes.
const MAX_ENCODED: usize = WINDOW + (WINDOW / 2 + 1) * 6 + 1024;
/// Longest definition of a block's codes, in bytes: 14 bits, 19 lengths of 3 bits, 316 lengths of at most 14 bits.
const MAX_CODES: usize = (14 + 19 * 3 + 316 * 14) / 8 + 1;

const HEADER: u8 = 0;
const STORED: u8 = 1;
const FIXED: u8 = 2;
const DYNAMIC: u8 = 3;
const LAST: u8 = 4;

/// Level of compression that pays: higher ones take as long again to save one byte in a hundred.
pub const CHECKPOINT_LEVEL: i32 = 15;

/// Encodes up to [`CHECKPOINTS_PER_GROUP`] checkpoints as one zstd frame; [`CHECKPOINT_LEVEL`] is a good level.
pub fn encode_group(checkpoints: &[Checkpoint], level: i32) -> Vec<u8> {
    // Writing to memory fails only if memory runs out.
    compress(&encode_columns(checkpoints), level).unwrap_or_default()
}

/// Decodes what [`encode_group`] made.
pub fn decode_group(frame: &[u8]) -> Result<Vec<Checkpoint>, GzipError> {
    const MAX: usize = MAX_ENCODED * CHECKPOINTS_PER_GROUP;
    let mut columns = Vec::new();
    zstd::Decoder::with_buffer(frame)
        .and_then(|mut decoder| {
            decoder.window_log_max(usize::BITS - MAX.leading_zeros())?;
            decoder.take(MAX as u64 + 1).read_to_end(&mut columns)
        })
        .map_err(|_| GzipError::Checkpoint("its group isn't a whole zstd frame"))?;
    if columns.len() > MAX {
        return Err(GzipError::Checkpoint("its group is too large"));
    }
    decode_columns(&columns).map_err(GzipError::Checkpoint)
}

impl Checkpoint {
    /// The checkpoint as bytes, not compressed.
    pub fn encode(&self) -> Vec<u8> {
        encode_columns(std::slice::from_ref(self)).concat()
    }

    /// Decodes what [`Checkpoint::encode`] made.
    pub fn decode(bytes: &[u8]) -> Result<Self, GzipError> {
        let mut checkpoints = decode_columns(bytes).map_err(GzipError::Checkpoint)?;
        match checkpoints.pop() {
            Some(checkpoint) if checkpoints.is_empty() => Ok(checkpoint),
            _ => Err(GzipError::Checkpoint("not a single one")),
        }
    }
}

fn encode_columns(checkpoints: &[Checkpoint]) -> [Vec<u8>; 5] {
    let [mut states, mut gaps, mut lengths, mut definitions, mut bytes] = <[Vec<u8>; 5]>::default();
    states.push(checkpoints.len() as u8);
    for checkpoint in checkpoints {
        let last = if checkpoint.last { LAST } else { 0 };
        match &checkpoint.block {
            Block::Header => states.push(HEADER | last),
            Block::Stored { left } => {
                states.push(STORED | last);
                put(&mut states, *left);
            }
            Block::Fixed => states.push(FIXED | last),
            Block::Dynamic { codes } => {
                states.push(DYNAMIC | last);
                put(&mut states, codes.len() as u16);
                definitions.extend_from_slice(codes);
            }
        }
        put(&mut states, checkpoint.runs.len() as u16);
        for run in &checkpoint.runs {
            put(&mut gaps, run.gap);
            put(&mut lengths, run.length);
        }
        bytes.extend_from_slice(&checkpoint.bytes);
    }
    [states, gaps, lengths, definitions, bytes]
}

fn decode_columns(columns: &[u8]) -> Result<Vec<Checkpoint>, Fault> {
    let mut reader = Reader(columns);
    let count = usize::from(reader.byte()?);
    if count > CHECKPOINTS_PER_GROUP {
        return Err("a group has too many");
    }
    let mut checkpoints = Vec::with_capacity(count);
    let mut sizes = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = reader.byte()?;
        let mut codes = 0;
        let block = match kind & !LAST {
            HEADER => Block::Header,
            STORED => Block::Stored { left: reader.number()? },
            FIXED => Block::Fixed,
            DYNAMIC => {
                codes = usize::from(reader.number::<u16>()?);
                Block::Dynamic { codes: Arc::new([]) }
            }
            _ => return Err("its block is of an unknown kind"),
        };
        let runs = usize::from(reader.number::<u16>()?);
        if codes > MAX_CODES || runs > WINDOW / 2 + 1 {
            return Err("it is too large");
        }
        sizes.push((codes, runs));
        checkpoints.push(Checkpoint { block, last: kind & LAST != 0, runs: Vec::new(), bytes: Vec::new() });
    }
    for (checkpoint, &(_, runs)) in checkpoints.iter_mut().zip(&sizes) {
        for _ in 0..runs {
            checkpoint.runs.push(Run { gap: reader.number()?, length: 0 });
        }
    }
    for checkpoint in &mut checkpoints {
        for run in &mut checkpoint.runs {
            run.length = reader.number()?;
        }
        let reach: usize = checkpoint.runs.iter().map(|run| usize::from(run.gap) + usize::from(run.length)).sum();
        if reach > WINDOW {
            return Err("its bytes don't fit into a window");
        }
    }
    for (checkpoint, &(codes, _)) in checkpoints.iter_mut().zip(&sizes) {
        if matches!(checkpoint.block, Block::Dynamic { .. }) {
            checkpoint.block = Block::Dynamic { codes: reader.bytes(codes)?.into() };
        }
    }
    for checkpoint in &mut checkpoints {
        let length = checkpoint.runs.iter().map(|run| usize::from(run.length)).sum();
        checkpoint.bytes = reader.bytes(length)?.to_vec();
    }
    if !reader.0.is_empty() {
        return Err("something follows it");
    }
    Ok(checkpoints)
}
