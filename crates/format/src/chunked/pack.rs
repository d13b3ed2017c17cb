//! Compressing a group: in any thread, in any order.
use super::sequences::Sequencer;
use super::{ChunkedError, Group, Piece};
use crate::Digest;
use crate::parse::Match;
use crate::zstd::Encoder;
use flate2::GzBuilder;
use flate2::write::GzEncoder;
use std::io::{self, Write as _};
use std::ops::Range;
use zstd::zstd_safe::CParameter;

/// How layers are repacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// zstd:chunked, at this level, 1 to 19; small frames at a higher one.
    Zstd(i32),
    /// gzip members, at this level.
    Gzip(u32),
}

impl Compression {
    /// Whether matches that are known are taken over: at the level at which speed matters as much as size.
    pub fn takes_matches(self) -> bool {
        self == Self::Zstd(TUNED)
    }
}

/// A group, compressed.
#[derive(Debug)]
pub struct PackedGroup {
    /// The group; without its bytes, if no file goes beyond it at either end.
    pub(super) group: Group,
    /// Device bytes.
    pub(super) device_len: u32,
    /// BLAKE3 of the device bytes.
    pub(super) blake3: [u8; 32],
    /// The compressed bytes.
    pub(super) bytes: Vec<u8>,
    /// The pieces and their frames; empty for gzip.
    pub(super) frames: Vec<FramedPiece>,
}

/// A piece of a file and its frame.
#[derive(Debug)]
pub(super) struct FramedPiece {
    pub piece: Piece,
    /// Where the frame starts among the compressed bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// SHA-256 of the piece's bytes.
    pub digest: Digest,
}

/// Compresses groups; keeps what the compressor needs from one to the next.
pub struct Packer(Inner);

enum Inner {
    Zstd(Compressors),
    Gzip(u32),
}

/// Compressors. docs/architecture.md has the figures behind the parameters.
struct Compressors {
    small: zstd::bulk::Compressor<'static>,
    large: zstd::bulk::Compressor<'static>,
    /// For what was compressed before in a way that is known, if [`Compression::takes_matches`].
    known: Option<Known>,
}

/// Compresses by what was found before.
struct Known {
    sequencer: Sequencer,
    encoder: Encoder,
}

/// Bytes of frames that count as small: from 128 KiB down zstd has parameters of its own.
pub(super) const SMALL: usize = 128 << 10;
/// Levels that small frames get on top: they compress worst, for want of history, and are a small part of all bytes.
const SMALL_LEVELS: i32 = 1;
/// The level at which large frames get parameters of their own. Lower ones are taken for speed, higher ones for size.
const TUNED: i32 = 5;
/// Slots of the table in which matches of large frames are looked for, as a power of two: so much stays in a processor's
/// own cache, which is worth more than the matches that a larger table finds.
const LARGE_TABLE: u32 = 17;
/// Shortest match in large frames, which makes up for the smaller table; zstd's own is 5.
const LARGE_MATCH: u32 = 4;
/// The level by which literals and codes are encoded if matches are known already.
const KNOWN_LEVEL: i32 = 1;
/// Largest group, as a power of two: that of a span.
const KNOWN_WINDOW: i32 = 27;

impl Compressors {
    fn new(level: i32) -> io::Result<Self> {
        let small = zstd::bulk::Compressor::new(level + SMALL_LEVELS)?;
        let mut large = zstd::bulk::Compressor::new(level)?;
        if level == TUNED {
            large.set_parameter(CParameter::HashLog(LARGE_TABLE))?;
            large.set_parameter(CParameter::MinMatch(LARGE_MATCH))?;
        }
        let known = match Compression::Zstd(level).takes_matches() {
            true => Some(Known { sequencer: Sequencer::new(), encoder: Encoder::new(KNOWN_LEVEL, KNOWN_WINDOW)? }),
            false => None,
        };
        Ok(Self { small, large, known })
    }

    /// A frame of `bytes[range]`; `matches` are those of `bytes`, if they are known.
    fn compress(&mut self, bytes: &[u8], range: Range<usize>, matches: Option<&[Match]>) -> io::Result<Vec<u8>> {
        let (base, bytes) = (range.start, &bytes[range]);
        if let (Some(Known { sequencer, encoder }), Some(matches)) = (&mut self.known, matches) {
            let from = matches.partition_point(|found| (found.at as usize) < base);
            return encoder.encode(bytes, sequencer.sequences(bytes, &matches[from..], base));
        }
        let compressor = if bytes.len() <= SMALL { &mut self.small } else { &mut self.large };
        compressor.compress(bytes)
    }
}

impl Packer {
    /// A packer.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(compression: Compression) -> Result<Self, ChunkedError> {
        Ok(Self(match compression {
            Compression::Gzip(level) => Inner::Gzip(level),
            Compression::Zstd(level) => {
                let compressors = Compressors::new(level);
                Inner::Zstd(compressors.map_err(|source| ChunkedError::Compress { offset: 0, source })?)
            }
        }))
    }

    /// Compresses a group. Equal groups give equal bytes.
    ///
    /// # Errors
    /// If the compressor fails, which it only does without memory.
    pub fn pack(&mut self, mut group: Group) -> Result<PackedGroup, ChunkedError> {
        let offset = group.device_offset;
        let blake3 = *blake3::hash(&group.bytes).as_bytes();
        let device_len = group.bytes.len() as u32;
        let packed = match &mut self.0 {
            _ if group.bytes.is_empty() => Ok((Vec::new(), Vec::new())),
            Inner::Zstd(compressors) => frames(compressors, &group),
            Inner::Gzip(level) => member(*level, &group.bytes).map(|bytes| (bytes, Vec::new())),
        };
        let (bytes, frames) = packed.map_err(|source| ChunkedError::Compress { offset, source })?;
        if group.pieces.iter().all(|piece| piece.file_offset == 0 && piece.last) {
            group.bytes = Vec::new();
        }
        group.parse = None;
        Ok(PackedGroup { group, device_len, blake3, bytes, frames })
    }
}

/// A frame for every piece and what follows it up to the next, and one for what is before the first.
fn frames(compressors: &mut Compressors, group: &Group) -> io::Result<(Vec<u8>, Vec<FramedPiece>)> {
    let (mut bytes, mut frames) = (Vec::new(), Vec::with_capacity(group.pieces.len()));
    let matches: Option<Vec<_>> = group.parse.as_ref().map(|parse| parse.matches().collect());
    let matches = matches.as_deref();
    let head = group.pieces.first().map_or(group.bytes.len(), |piece| piece.range.start);
    if head > 0 {
        bytes = compressors.compress(&group.bytes, 0..head, matches)?;
    }
    for (n, piece) in group.pieces.iter().enumerate() {
        let next = group.pieces.get(n + 1).map_or(group.bytes.len(), |next| next.range.start);
        let start = bytes.len();
        bytes.extend_from_slice(&compressors.compress(&group.bytes, piece.range.start..next, matches)?);
        let digest = Digest::of(&group.bytes[piece.range.clone()]);
        frames.push(FramedPiece { piece: piece.clone(), start, end: bytes.len(), digest });
    }
    Ok((bytes, frames))
}

fn member(level: u32, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut member: GzEncoder<Vec<u8>> = GzBuilder::new().write(Vec::new(), flate2::Compression::new(level));
    member.write_all(bytes)?;
    member.finish()
}
