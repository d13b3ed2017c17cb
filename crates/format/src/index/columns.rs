//! Columns: byte strings that are alike within and different from each other, each stored in its smallest form.
//!
//! ```text
//! column:  raw length << 2 | form (varint)  form 0: the bytes
//!                                           form 1: stored length (varint), a zstd frame
//!                                           form 2: the one byte that all are
//! ```
use super::wire::{Malformed, Reader, put_varint};

const RAW: u64 = 0;
const ZSTD: u64 = 1;
const SAME: u64 = 2;

/// zstd level. 60 000 files of a Debian machine's `/usr` took 4.28 bytes a file and 0.1 s at this level; 4.73 bytes and
/// half the time at level 3, 4.15 bytes and four times the time at level 15, 3.97 bytes and ten times the time at 19.
const LEVEL: i32 = 9;

/// Appends a column.
pub fn put_column(out: &mut Vec<u8>, column: &[u8]) {
    let tag = |form| (column.len() as u64) << 2 | form;
    match column {
        [first, rest @ ..] if rest.iter().all(|byte| byte == first) => {
            put_varint(out, tag(SAME));
            out.push(*first);
        }
        _ => {
            // Compressing bytes in memory fails only if memory runs out; then they are stored as they are.
            let frame = zstd::bulk::compress(column, LEVEL).ok().filter(|frame| frame.len() + 2 < column.len());
            put_varint(out, tag(if frame.is_some() { ZSTD } else { RAW }));
            if let Some(frame) = &frame {
                put_varint(out, frame.len() as u64);
            }
            out.extend_from_slice(frame.as_deref().unwrap_or(column));
        }
    }
}

/// Appends a column that is stored as it is.
pub fn put_raw_column(out: &mut Vec<u8>, column: &[u8]) {
    put_varint(out, (column.len() as u64) << 2 | RAW);
    out.extend_from_slice(column);
}

/// Reads a column of at most `budget` bytes, and takes what it has from the budget.
pub fn column(reader: &mut Reader<'_>, budget: &mut u64) -> Result<Vec<u8>, Malformed> {
    let tag = reader.varint()?;
    let len = tag >> 2;
    *budget = budget.checked_sub(len).ok_or(Malformed("more data than an index may have"))?;
    let len = usize::try_from(len).map_err(|_| Malformed("more data than an index may have"))?;
    match tag & 3 {
        RAW => Ok(reader.take(len)?.to_vec()),
        ZSTD => {
            let stored = reader.len()?;
            let column = zstd::bulk::decompress(reader.take(stored)?, len);
            column.ok().filter(|column| column.len() == len).ok_or(Malformed("a column that doesn't decompress"))
        }
        SAME => Ok(vec![reader.byte()?; len]),
        _ => Err(Malformed("a column of an unknown form")),
    }
}

/// Reads a column that is stored as it is.
pub fn raw_column<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let tag = reader.varint()?;
    if tag & 3 != RAW {
        return Err(Malformed("a column of an unexpected form"));
    }
    reader.take(usize::try_from(tag >> 2).map_err(|_| Malformed("it ends too early"))?)
}

/// Numbers cut in four columns for their lowest bytes and one of varints for the rest. Where numbers have no order that
/// could be used, bytes of the same weight are more alike than neighbours.
#[derive(Debug, Default)]
pub struct Planes {
    low: [Vec<u8>; 4],
    high: Vec<u8>,
}

impl Planes {
    /// Appends a number.
    pub fn push(&mut self, value: u64) {
        for (plane, byte) in self.low.iter_mut().zip(value.to_le_bytes()) {
            plane.push(byte);
        }
        put_varint(&mut self.high, value >> 32);
    }

    /// Appends the columns.
    pub fn put(&self, out: &mut Vec<u8>) {
        self.low.iter().chain([&self.high]).for_each(|column| put_column(out, column));
    }

    /// Reads the columns of at most `most` numbers.
    pub fn read(reader: &mut Reader<'_>, budget: &mut u64, most: u64) -> Result<Vec<u64>, Malformed> {
        let mut column = || column(reader, budget);
        let low = [column()?, column()?, column()?, column()?];
        let high = column()?;
        if low[0].len() as u64 > most {
            return Err(Malformed("more numbers than there may be"));
        }
        let mut high = Reader::new(&high);
        let mut values = Vec::new();
        for (n, lowest) in low[0].iter().enumerate() {
            let byte = |plane: usize| low[plane].get(n).copied().ok_or(Malformed("columns of different lengths"));
            let low = u32::from_le_bytes([*lowest, byte(1)?, byte(2)?, byte(3)?]);
            let high = u32::try_from(high.varint()?).map_err(|_| Malformed("a number that is too large"))?;
            values.push(u64::from(high) << 32 | u64::from(low));
        }
        if low.iter().any(|plane| plane.len() != values.len()) || !high.is_empty() {
            return Err(Malformed("columns of different lengths"));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(column: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_column(&mut out, column);
        out
    }

    #[test]
    fn columns_round_trip_in_their_smallest_form() {
        let varied: Vec<u8> = (0..2000u32).map(|n| ((n * n) >> 7) as u8).collect();
        let same = vec![7; 100_000];
        for bytes in [&b""[..], b"a", b"ab", &varied, &same] {
            let out = stored(bytes);
            assert!(out.len() <= bytes.len() + 3);
            let mut reader = Reader::new(&out);
            assert_eq!(column(&mut reader, &mut 100_000).as_deref(), Ok(bytes));
            assert!(reader.is_empty());
        }
        assert_eq!(stored(&same).len(), 4);
        assert!(stored(&[varied.clone(), varied].concat()).len() < 2500);
    }

    #[test]
    fn budgets_hold_and_lies_are_found() {
        let mut budget = 150;
        let out = stored(&[3; 100]);
        assert!(column(&mut Reader::new(&out), &mut budget).is_ok());
        assert_eq!(column(&mut Reader::new(&out), &mut budget), Err(Malformed("more data than an index may have")));
        let text = b"to be or not to be, that is what to be or not to be is";
        let frame = zstd::bulk::compress(text, 3).unwrap();
        for claimed in [text.len() - 1, text.len(), text.len() + 1] {
            let mut out = Vec::new();
            put_varint(&mut out, (claimed as u64) << 2 | ZSTD);
            put_varint(&mut out, frame.len() as u64);
            out.extend_from_slice(&frame);
            assert_eq!(column(&mut Reader::new(&out), &mut 1000).is_ok(), claimed == text.len());
        }
    }

    #[test]
    fn planes_round_trip() {
        let values = [0, 1, 255, 256, 70_000, u64::from(u32::MAX), 1 << 32, u64::MAX];
        let mut planes = Planes::default();
        values.iter().for_each(|value| planes.push(*value));
        let mut out = Vec::new();
        planes.put(&mut out);
        assert_eq!(Planes::read(&mut Reader::new(&out), &mut 1000, 8).as_deref(), Ok(&values[..]));
        assert!(Planes::read(&mut Reader::new(&out), &mut 1000, 7).is_err());
    }
}
