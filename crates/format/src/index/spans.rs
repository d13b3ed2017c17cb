//! Span tables and checkpoint groups, column by column.
use super::columns::{Planes, column, put_column, put_raw_column, raw_column};
use super::wire::{Malformed, Reader, put_signed, put_varint};
use crate::span::{BLOCK, Span, SpanTable, Start};
use std::ops::Range;

const STORED: u8 = 0;
const GZIP_MEMBER: u8 = 1;
const GZIP: u8 = 2;
const ZSTD_FRAME: u8 = 3;
const ZSTD_BLOCK: u8 = 7;

/// Encodes a span table.
pub fn encode(table: &SpanTable) -> Vec<u8> {
    let mut columns: [Vec<u8>; 5] = Default::default();
    let [blocks, gaps, starts, skips, checkpoints] = &mut columns;
    let mut source_lens = Planes::default();
    let mut digests = Vec::new();
    let (mut source_end, mut next_checkpoint) = (0u64, 0u32);
    for span in table.spans() {
        put_varint(blocks, u64::from(span.device_len).div_ceil(BLOCK));
        put_signed(gaps, span.source_offset.wrapping_sub(source_end) as i64);
        source_lens.push(span.source_len.into());
        source_end = span.source_offset + u64::from(span.source_len);
        match span.start {
            Start::Stored => starts.push(STORED),
            Start::GzipMember { skip } => {
                starts.push(GZIP_MEMBER);
                put_varint(skips, skip.into());
            }
            Start::ZstdFrame { skip } => {
                starts.push(ZSTD_FRAME);
                put_varint(skips, skip.into());
            }
            Start::Gzip { bit, skip, .. } => {
                starts.push(GZIP | bit << 2);
                put_varint(skips, skip.into());
            }
            Start::ZstdBlock { skip, .. } => {
                starts.push(ZSTD_BLOCK);
                put_varint(skips, skip.into());
            }
        }
        if let Some(checkpoint) = span.start.checkpoint() {
            put_signed(checkpoints, i64::from(checkpoint) - i64::from(next_checkpoint));
            next_checkpoint = checkpoint.wrapping_add(1);
        }
        digests.extend_from_slice(&span.blake3);
    }
    let mut out = Vec::new();
    put_varint(&mut out, table.spans().len() as u64);
    put_varint(&mut out, table.device_size() % BLOCK);
    columns.iter().for_each(|column| put_column(&mut out, column));
    source_lens.put(&mut out);
    put_raw_column(&mut out, &digests);
    out
}

/// What is wrong with an index of too many spans.
pub const TOO_MANY: &str = "it has more than 2097152 spans: convert the image again, with longer ones";

/// Decodes what [`encode`] made, to spans, at most `max`, that are yet to be made a table.
pub fn decode(bytes: &[u8], max: usize) -> Result<Vec<Span>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint()?;
    // The digests of as many spans must be there, 32 bytes each and not compressed; so what follows is in proportion.
    if count > bytes.len() as u64 / 32 {
        return Err(Malformed("more spans than it has room for"));
    }
    if count > max as u64 {
        return Err(Malformed(TOO_MANY));
    }
    let mut budget = 64 * count;
    let tail = reader.varint()?;
    let mut column = || column(&mut reader, &mut budget);
    let (blocks, gaps, starts, skips, checkpoints) = (column()?, column()?, column()?, column()?, column()?);
    let source_lens = Planes::read(&mut reader, &mut budget, count)?;
    let digests = raw_column(&mut reader)?;
    if source_lens.len() as u64 != count || digests.len() as u64 != count.saturating_mul(32) || tail >= BLOCK {
        return Err(Malformed("columns of spans of different lengths"));
    }
    let mut columns = [&blocks, &gaps, &starts, &skips, &checkpoints].map(|column| Reader::new(column));
    let [blocks, gaps, starts, skips, checkpoints] = &mut columns;
    let mut spans = Vec::with_capacity(source_lens.len());
    let (mut device_offset, mut source_end, mut next_checkpoint) = (0u64, 0u64, 0i64);
    let wrong = Malformed("an impossible span");
    for (source_len, digest) in source_lens.iter().zip(digests.chunks_exact(32)) {
        let mut device_len = blocks.varint()?.checked_mul(BLOCK).ok_or(wrong)?;
        if tail > 0 && spans.len() + 1 == source_lens.len() {
            device_len = device_len.checked_sub(BLOCK - tail).ok_or(wrong)?;
        }
        let source_offset = source_end.checked_add_signed(gaps.signed()?).ok_or(wrong)?;
        let source_len = u32::try_from(*source_len).map_err(|_| wrong)?;
        let start = match starts.byte()? {
            STORED => Start::Stored,
            GZIP_MEMBER => Start::GzipMember { skip: u32::try_from(skips.varint()?).map_err(|_| wrong)? },
            ZSTD_FRAME => Start::ZstdFrame { skip: u32::try_from(skips.varint()?).map_err(|_| wrong)? },
            byte if byte == ZSTD_BLOCK || byte & 3 == GZIP => {
                let checkpoint = checkpoints.signed()?.checked_add(next_checkpoint).ok_or(wrong)?;
                next_checkpoint = checkpoint.saturating_add(1);
                let checkpoint = u32::try_from(checkpoint).map_err(|_| wrong)?;
                let skip = u16::try_from(skips.varint()?).map_err(|_| wrong)?;
                match byte {
                    ZSTD_BLOCK => Start::ZstdBlock { skip, checkpoint },
                    _ => Start::Gzip { bit: byte >> 2, skip, checkpoint },
                }
            }
            _ => return Err(wrong),
        };
        let mut blake3 = [0; 32];
        blake3.copy_from_slice(digest);
        spans.push(Span {
            device_offset,
            device_len: u32::try_from(device_len).map_err(|_| wrong)?,
            source_offset,
            source_len,
            start,
            blake3,
        });
        device_offset = device_offset.checked_add(device_len).ok_or(wrong)?;
        source_end = source_offset.checked_add(source_len.into()).ok_or(wrong)?;
    }
    if !reader.is_empty() || columns.iter().any(|column| !column.is_empty()) {
        return Err(Malformed("columns of spans of different lengths"));
    }
    Ok(spans)
}

/// Encodes where a layer's groups of checkpoints are.
pub fn encode_groups(groups: &[Range<u64>]) -> Vec<u8> {
    let mut gaps = Vec::new();
    let mut lens = Vec::new();
    let mut end = 0u64;
    for group in groups {
        put_signed(&mut gaps, group.start.wrapping_sub(end) as i64);
        put_varint(&mut lens, group.end - group.start);
        end = group.end;
    }
    let mut out = Vec::new();
    put_varint(&mut out, groups.len() as u64);
    put_column(&mut out, &gaps);
    put_column(&mut out, &lens);
    out
}

/// Decodes what [`encode_groups`] made, at most `max` groups.
pub fn decode_groups(bytes: &[u8], max: usize) -> Result<Vec<Range<u64>>, Malformed> {
    let mut reader = Reader::new(bytes);
    let count = reader.varint()?;
    if count > max as u64 {
        return Err(Malformed("more groups of checkpoints than spans"));
    }
    let mut budget = 32 * count;
    let (gaps, lens) = (column(&mut reader, &mut budget)?, column(&mut reader, &mut budget)?);
    let (mut gaps, mut lens) = (Reader::new(&gaps), Reader::new(&lens));
    let mut groups = Vec::new();
    let mut end = 0u64;
    let wrong = Malformed("an impossible group of checkpoints");
    for _ in 0..count {
        let start = end.checked_add_signed(gaps.signed()?).ok_or(wrong)?;
        end = start.checked_add(lens.varint()?).ok_or(wrong)?;
        groups.push(start..end);
    }
    if !reader.is_empty() || !gaps.is_empty() || !lens.is_empty() {
        return Err(Malformed("groups of checkpoints that go on after their end"));
    }
    Ok(groups)
}
