//! Sparse files of PAX archives, which the tar library doesn't know (GNU tar manual, "Storing Sparse Files").
use super::reference::{Kind, decimal};
use anyhow::{Context, Result};
use clipper_format::Digest;
use sha2::{Digest as _, Sha256};
use std::io::Read;

/// Most parts of a file.
const PARTS_LIMIT: u64 = 1 << 20;

/// Where the stored bytes of a sparse file belong.
pub struct Map {
    /// Offset and length of each part, in order.
    parts: Vec<(u64, u64)>,
    /// Bytes of the file.
    size: u64,
}

impl Map {
    /// The map that the `records` of a PAX header describe, or the data of `entry` begin with; `None` for a file that
    /// isn't sparse.
    pub fn read(records: &[(&[u8], &[u8])], entry: &mut impl Read) -> Result<Option<Self>> {
        let value = |key: &[u8]| records.iter().rev().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let size = value(b"GNU.sparse.realsize").or_else(|| value(b"GNU.sparse.size"));
        let Some(size) = size.map(decimal).transpose()? else { return Ok(None) };
        let numbers = if value(b"GNU.sparse.major").is_some_and(|v| v == b"1") {
            stored(entry)?
        } else if let Some(map) = value(b"GNU.sparse.map") {
            map.split(|b| *b == b',').filter(|n| !n.is_empty()).map(decimal).collect::<Result<_>>()?
        } else {
            let listed = |(key, _): &&(&[u8], &[u8])| matches!(*key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
            records.iter().filter(listed).map(|(_, v)| decimal(v)).collect::<Result<Vec<_>>>()?
        };
        let parts = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        Ok(Some(Self { parts, size }))
    }

    /// The file, its parts read from `entry`.
    pub fn contents(&self, entry: &mut impl Read) -> Result<Kind> {
        let (mut hash, mut at) = (Sha256::new(), 0);
        for (offset, length) in &self.parts {
            let hole = offset.checked_sub(at).context("parts of a sparse file overlap")?;
            feed(&mut hash, &mut std::io::repeat(0), hole)?;
            feed(&mut hash, entry, *length)?;
            at = offset.checked_add(*length).context("a sparse file's part is too large")?;
        }
        let hole = self.size.checked_sub(at).context("a sparse file's parts lie outside it")?;
        feed(&mut hash, &mut std::io::repeat(0), hole)?;
        Ok(Kind::File { size: self.size, sha256: Digest::from_bytes(hash.finalize().into()) })
    }
}

/// Hashes `length` bytes of `reader`.
fn feed(hash: &mut Sha256, reader: &mut impl Read, length: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut left = length;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        reader.read_exact(&mut buffer[..n])?;
        hash.update(&buffer[..n]);
        left -= n as u64;
    }
    Ok(())
}

/// The numbers at the start of the data in format 1.0: a count of parts, then offset and length of each, a line each,
/// padded to a block.
fn stored(entry: &mut impl Read) -> Result<Vec<u64>> {
    let (mut numbers, mut line) = (Vec::new(), Vec::new());
    let mut wanted = None;
    while wanted.is_none_or(|n| (numbers.len() as u64) < n) {
        let mut block = [0; 512];
        entry.read_exact(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            if wanted.is_some_and(|n| numbers.len() as u64 >= n) {
                break;
            }
            let number = decimal(&line)?;
            line.clear();
            match wanted {
                None => wanted = Some(number.min(PARTS_LIMIT) * 2),
                Some(_) => numbers.push(number),
            }
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64, bytes: &[u8]) -> Kind {
        Kind::File { size, sha256: Digest::of(bytes) }
    }

    #[test]
    fn all_three_formats_say_the_same() {
        let want = file(9, b"\0\0ab\0\0cd\0");
        let size: (&[u8], &[u8]) = (b"GNU.sparse.realsize", b"9");
        let listed: [(&[u8], &[u8]); 5] = [
            (b"GNU.sparse.size", b"9"),
            (b"GNU.sparse.offset", b"2"),
            (b"GNU.sparse.numbytes", b"2"),
            (b"GNU.sparse.offset", b"6"),
            (b"GNU.sparse.numbytes", b"2"),
        ];
        let mapped: [(&[u8], &[u8]); 2] = [size, (b"GNU.sparse.map", b"2,2,6,2")];
        for records in [&listed[..], &mapped[..]] {
            let map = Map::read(records, &mut &b""[..]).unwrap().unwrap();
            assert_eq!(map.contents(&mut &b"abcd"[..]).unwrap(), want);
        }
        let mut data = b"2\n2\n2\n6\n2\n".to_vec();
        data.resize(512, 0);
        data.extend_from_slice(b"abcd");
        let mut data = &data[..];
        let map = Map::read(&[size, (b"GNU.sparse.major", b"1")], &mut data).unwrap().unwrap();
        assert_eq!(map.contents(&mut data).unwrap(), want);
        assert!(Map::read(&[], &mut &b""[..]).unwrap().is_none());
    }
}
