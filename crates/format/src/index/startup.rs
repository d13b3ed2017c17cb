//! What a start-up touches: the prefetch list, and the hot blob's frames.
use super::columns::{column, put_column, put_raw_column, raw_column};
use super::wire::{Malformed, Reader, put_signed, put_varint};
use super::{BlobRef, LayerIndex};
use crate::span::BLOCK;
use std::ops::Range;

/// Most device bytes of a frame of the hot blob.
pub const HOT_FRAME_MAX: u64 = 4 << 20;
/// Most bytes of a prefetch list, and most paths.
const LIST_MAX: u64 = 16 << 20;
const PATHS_MAX: usize = 1 << 18;
/// Most pieces of a hot blob: as many blocks, if none has a neighbour, are 4 GiB.
const PIECES_MAX: usize = 1 << 20;
/// Most pieces of a frame: twice as many as blocks, because last blocks of devices may be short.
const FRAME_PIECES_MAX: usize = (2 * HOT_FRAME_MAX / BLOCK) as usize;
/// Most bytes of a frame: no compression makes data so much longer.
const FRAME_LEN_MAX: u64 = 2 * HOT_FRAME_MAX;
/// Most bytes that numbers of `u32` and `u64` take in a column.
const VARINT32: u64 = 5;
const VARINT64: u64 = 10;

/// The hot blob: what a start-up touches, in the order of first touch, as independent zstd frames one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// The blob.
    pub blob: BlobRef,
    /// Its frames, which make up all of it.
    pub frames: Vec<HotFrame>,
}

/// One frame of the hot blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotFrame {
    /// Bytes in the hot blob.
    pub len: u32,
    /// What it decompresses to, one after the other.
    pub pieces: Vec<HotPiece>,
    /// BLAKE3 of what it decompresses to.
    pub blake3: [u8; 32],
}

/// Neighbouring blocks of a layer's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HotPiece {
    /// Number of the layer in the index, from 0.
    pub layer: u32,
    /// First block of 4096 bytes.
    pub first: u64,
    /// Number of blocks, at least 1. The device's last block may be shorter than the others.
    pub blocks: u32,
}

impl HotPiece {
    /// The bytes of a device of `device_size` bytes that the piece stands for.
    pub fn device_range(&self, device_size: u64) -> Range<u64> {
        let end = self.first.saturating_add(self.blocks.into()).saturating_mul(BLOCK);
        self.first.saturating_mul(BLOCK).min(device_size)..end.min(device_size)
    }
}

impl HotFrame {
    /// Bytes that it decompresses to.
    pub fn device_len(&self, layers: &[LayerIndex]) -> u64 {
        let size = |piece: &HotPiece| layers.get(piece.layer as usize).map_or(0, |layer| layer.spans.device_size());
        let len = |piece: &HotPiece| {
            let range = piece.device_range(size(piece));
            range.end - range.start
        };
        self.pieces.iter().map(len).sum()
    }
}

/// Why a frame of the hot blob is no good.
#[derive(Debug, thiserror::Error)]
pub enum HotFrameError {
    /// It doesn't decompress.
    #[error("it does not decompress: {0}")]
    Zstd(#[from] std::io::Error),
    /// It decompresses to something else.
    #[error("it holds other bytes than the index says")]
    Bytes,
}

/// How hard frames are compressed; readers needn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotLevel {
    /// zstd level 3.
    Fast,
    /// zstd level 9: smaller, and much slower.
    Small,
}

/// Makes a frame of `bytes`.
///
/// # Errors
/// If memory runs out.
pub fn pack_hot_frame(bytes: &[u8], level: HotLevel) -> std::io::Result<Vec<u8>> {
    let level = match level {
        HotLevel::Fast => 3,
        HotLevel::Small => 9,
    };
    zstd::bulk::compress(bytes, level)
}

/// What `frame` decompresses to: `len` bytes, at most [`HOT_FRAME_MAX`], with the digest `blake3`.
///
/// # Errors
/// It doesn't.
pub fn unpack_hot_frame(frame: &[u8], len: u64, blake3: &[u8; 32]) -> Result<Vec<u8>, HotFrameError> {
    if len > HOT_FRAME_MAX {
        return Err(HotFrameError::Bytes);
    }
    let bytes = zstd::bulk::decompress(frame, len as usize)?;
    if bytes.len() as u64 != len || ::blake3::hash(&bytes).as_bytes() != blake3 {
        return Err(HotFrameError::Bytes);
    }
    Ok(bytes)
}

impl Hot {
    /// What is wrong with it, over these layers.
    pub(super) fn check(&self, layers: &[LayerIndex]) -> Result<(), &'static str> {
        if self.frames.iter().map(|frame| frame.pieces.len()).sum::<usize>() > PIECES_MAX {
            return Err(TOO_MANY_PIECES);
        }
        let lens: u64 = self.frames.iter().map(|frame| u64::from(frame.len)).sum();
        if lens != self.blob.size {
            return Err("the frames of its hot blob don't make up the blob");
        }
        for frame in &self.frames {
            for piece in &frame.pieces {
                let Some(layer) = layers.get(piece.layer as usize) else {
                    return Err("its hot blob names a layer that it doesn't have");
                };
                let blocks = layer.spans.device_size().div_ceil(BLOCK);
                if piece.blocks == 0 || piece.first.checked_add(piece.blocks.into()).is_none_or(|end| end > blocks) {
                    return Err("its hot blob names blocks outside a layer");
                }
            }
            let (pieces, len) = (frame.pieces.len(), u64::from(frame.len));
            if !(1..=FRAME_PIECES_MAX).contains(&pieces) || !(1..=FRAME_LEN_MAX).contains(&len) {
                return Err("its hot blob has a frame of no or too many pieces or bytes");
            }
            if frame.device_len(layers) > HOT_FRAME_MAX {
                return Err("its hot blob has an impossible frame");
            }
        }
        Ok(())
    }
}

const TOO_MANY_PIECES: &str = "its hot blob has more than 1048576 pieces";
const TOO_MANY_PATHS: &str = "its prefetch list has more than 262144 paths, or 16 MiB";

/// What is wrong with a prefetch list.
pub(super) fn check_list(list: &[Vec<u8>]) -> Result<(), &'static str> {
    if list.iter().any(|path| !path.starts_with(b"/") || path.contains(&0)) {
        return Err("its prefetch list has a path that isn't absolute");
    }
    if list.len() > PATHS_MAX || list.iter().map(|path| path.len() as u64 + 1).sum::<u64>() > LIST_MAX {
        return Err(TOO_MANY_PATHS);
    }
    Ok(())
}

/// Encodes the list and the frames. Of the hot blob itself, the header tells.
pub(super) fn encode(list: &[Vec<u8>], frames: &[HotFrame]) -> Vec<u8> {
    let mut paths = Vec::new();
    for path in list {
        paths.extend_from_slice(path);
        paths.push(0);
    }
    let mut columns: [Vec<u8>; 5] = Default::default();
    let [lens, counts, layers, gaps, blocks] = &mut columns;
    let (mut digests, mut end) = (Vec::new(), 0u64);
    for frame in frames {
        put_varint(lens, frame.len.into());
        put_varint(counts, frame.pieces.len() as u64);
        digests.extend_from_slice(&frame.blake3);
        for piece in &frame.pieces {
            put_varint(layers, piece.layer.into());
            put_signed(gaps, piece.first.wrapping_sub(end) as i64);
            put_varint(blocks, piece.blocks.into());
            end = piece.first + u64::from(piece.blocks);
        }
    }
    let mut out = Vec::new();
    put_column(&mut out, &paths);
    put_varint(&mut out, frames.len() as u64);
    columns.iter().for_each(|column| put_column(&mut out, column));
    put_raw_column(&mut out, &digests);
    out
}

/// Decodes what [`encode`] made.
pub(super) fn decode(bytes: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<HotFrame>), Malformed> {
    let mut reader = Reader::new(bytes);
    let paths = column(&mut reader, &mut LIST_MAX.clone())?;
    let list = match paths.split_last() {
        None => Vec::new(),
        Some(_) if paths.iter().filter(|byte| **byte == 0).count() > PATHS_MAX => {
            return Err(Malformed(TOO_MANY_PATHS));
        }
        Some((0, paths)) => paths.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect(),
        Some(_) => return Err(Malformed("a prefetch list that breaks off")),
    };
    check_list(&list).map_err(Malformed)?;
    let count = reader.varint()?;
    // The digests of as many frames must be there, 32 bytes each and not compressed.
    if count > bytes.len() as u64 / 32 {
        return Err(Malformed("more frames than it has room for"));
    }
    // A frame has a piece at least.
    if count > PIECES_MAX as u64 {
        return Err(Malformed(TOO_MANY_PIECES));
    }
    let pieces = (count * FRAME_PIECES_MAX as u64).min(PIECES_MAX as u64);
    let mut budget = count * (VARINT32 + VARINT32) + pieces * (VARINT32 + VARINT64 + VARINT32);
    let mut column = || column(&mut reader, &mut budget);
    let columns = [column()?, column()?, column()?, column()?, column()?];
    let digests = raw_column(&mut reader)?;
    if digests.len() as u64 != count * 32 || !reader.is_empty() {
        return Err(Malformed("columns of frames of different lengths"));
    }
    let mut columns = [0, 1, 2, 3, 4].map(|n: usize| Reader::new(&columns[n]));
    let [lens, counts, layers, gaps, blocks] = &mut columns;
    let wrong = Malformed("an impossible frame");
    let small = |value: u64| u32::try_from(value).map_err(|_| wrong);
    let (mut frames, mut end, mut left) = (Vec::new(), 0u64, pieces);
    for digest in digests.chunks_exact(32) {
        let mut frame = HotFrame { len: small(lens.varint()?)?, pieces: Vec::new(), blake3: [0; 32] };
        frame.blake3.copy_from_slice(digest);
        for _ in 0..counts.varint()? {
            left = left.checked_sub(1).ok_or(Malformed("more pieces than its frames have room for"))?;
            let first = end.checked_add_signed(gaps.signed()?).ok_or(wrong)?;
            let piece = HotPiece { layer: small(layers.varint()?)?, first, blocks: small(blocks.varint()?)? };
            end = first.checked_add(piece.blocks.into()).ok_or(wrong)?;
            frame.pieces.push(piece);
        }
        frames.push(frame);
    }
    if columns.iter().any(|column| !column.is_empty()) {
        return Err(Malformed("columns of frames of different lengths"));
    }
    Ok((list, frames))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: u32, pieces: &[(u32, u64, u32)]) -> HotFrame {
        let piece =
            |(layer, first, blocks): &(u32, u64, u32)| HotPiece { layer: *layer, first: *first, blocks: *blocks };
        HotFrame { len, pieces: pieces.iter().map(piece).collect(), blake3: [len as u8; 32] }
    }

    #[test]
    fn lists_and_frames_round_trip() {
        let list = vec![b"/usr/bin/app".to_vec(), b"/etc/".to_vec(), b"/odd\xff name".to_vec()];
        let frames = [frame(9, &[(0, 0, 1), (3, 70_000, 12), (0, 5, 2)]), frame(1 << 20, &[(1, 7, 1)])];
        assert_eq!(decode(&encode(&list, &frames)), Ok((list.clone(), frames.to_vec())));
        assert_eq!(decode(&encode(&[], &[])), Ok((vec![], vec![])));
        assert!(encode(&[], &[]).len() < 20);
    }

    #[test]
    fn frames_give_exactly_what_was_put_in_or_nothing() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n / 7) as u8).collect();
        let (frame, digest) = (pack_hot_frame(&bytes, HotLevel::Fast).unwrap(), *::blake3::hash(&bytes).as_bytes());
        assert_eq!(unpack_hot_frame(&frame, 100_000, &digest).unwrap(), bytes);
        assert!(unpack_hot_frame(&frame, 99_999, &digest).is_err());
        assert!(unpack_hot_frame(&frame, 100_001, &digest).is_err());
        assert!(unpack_hot_frame(&frame, 100_000, &[0; 32]).is_err());
        assert!(unpack_hot_frame(&frame, u64::MAX, &digest).is_err());
        for at in (0..frame.len()).step_by(7) {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            assert!(unpack_hot_frame(&damaged, 100_000, &digest).map_or(true, |same| same == bytes));
        }
    }

    #[test]
    fn what_breaks_off_or_goes_on_is_refused() {
        let bytes = encode(&[b"/a".to_vec()], &[frame(9, &[(0, 1, 1)])]);
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(decode(&encode(&[b"relative".to_vec()], &[])).is_err());
    }

    #[test]
    fn little_bytes_that_claim_much_are_refused() {
        let paths = vec![b"/".to_vec(); PATHS_MAX];
        assert_eq!(decode(&encode(&paths, &[])).unwrap().0.len(), PATHS_MAX);
        let more = [&paths[..], &paths[..1]].concat();
        assert!(check_list(&more).unwrap_err().contains("262144"));
        let bytes = encode(&more, &[]);
        assert!(bytes.len() < 1000);
        assert_eq!(decode(&bytes), Err(Malformed(TOO_MANY_PATHS)));

        let full: Vec<_> =
            (0..PIECES_MAX / FRAME_PIECES_MAX).map(|_| frame(1, &[(0, 0, 1); FRAME_PIECES_MAX])).collect();
        assert!(decode(&encode(&[], &full)).is_ok());
        let more = [&full[..], &[frame(1, &[(0, 0, 1)])]].concat();
        assert!(decode(&encode(&[], &more)).unwrap_err().0.contains("more pieces"));
        let (blob, layers) = (BlobRef { digest: crate::Digest::of(b"hot"), size: 513 }, []);
        assert_eq!(Hot { blob, frames: more }.check(&layers), Err(TOO_MANY_PIECES));
        let crowded = encode(&[], &[frame(1, &[(0, 0, 1); FRAME_PIECES_MAX + 1])]);
        assert!(decode(&crowded).is_err());
        // A column of 1 GiB for one frame, in 6 bytes.
        let mut bytes = encode(&[], &[frame(1, &[(0, 0, 1)])]);
        let mut column = Vec::new();
        put_varint(&mut column, 1 << 30 << 2 | 2);
        bytes.splice(2..4, column);
        assert_eq!(decode(&bytes), Err(Malformed("more data than an index may have")));
    }
}
