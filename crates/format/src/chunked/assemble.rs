//! Packed groups in a row: the blob's bytes, its spans, and its table of contents.
use super::pack::FramedPiece;
use super::toc::{Chunk, NoToc, Toc, WrittenToc};
use super::{ANNOTATIONS_TOC_DIGEST, ANNOTATIONS_TOC_POSITION, ChunkedError, Compression, PackedGroup};
use crate::Digest;
use crate::span::{Span, Start};
use crate::tar::Listed;
use sha2::{Digest as _, Sha256};
use std::collections::VecDeque;

/// The magic number of a skippable frame (RFC 8878, section 3.1.2).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// What the footer ends with (stargz-snapshotter, `zstdchunked.go`).
const FOOTER_MAGIC: [u8; 8] = *b"GnUlInUx";
/// The one type of table that there is: that of CRFS.
const TOC_TYPE: u64 = 1;

/// A blob in the making. Groups come in the order of the device.
pub struct Assembler {
    compression: Compression,
    /// Bytes of the blob so far.
    offset: u64,
    device_offset: u64,
    spans: Vec<Span>,
    /// The table of contents; gzip layers have none.
    toc: Option<Result<Toc, NoToc>>,
    /// Entries that the table doesn't have yet: the file whose data are passing, and what comes after it.
    waiting: VecDeque<Listed>,
    file: Option<OpenFile>,
}

/// The file whose data are passing.
#[derive(Default)]
struct OpenFile {
    chunks: Vec<Chunk>,
    /// SHA-256 of all chunks so far, if there are several.
    hash: Option<Sha256>,
}

/// A blob's end.
#[derive(Debug)]
pub struct Assembled {
    /// The blob's last bytes.
    pub tail: Vec<u8>,
    /// Bytes of the whole blob.
    pub size: u64,
    /// The spans, in device order; none needs a checkpoint.
    pub spans: Vec<Span>,
    /// Annotations for the layer's descriptor.
    pub annotations: Vec<(String, String)>,
    /// Why there is no table of contents, where there should be one.
    pub no_toc: Option<String>,
}

impl Assembler {
    /// An assembler at the start of a blob.
    pub fn new(compression: Compression) -> Self {
        Self {
            compression,
            offset: 0,
            device_offset: 0,
            spans: Vec::new(),
            toc: matches!(compression, Compression::Zstd(_)).then(Toc::new),
            waiting: VecDeque::new(),
            file: None,
        }
    }

    /// Takes the next group; returns the blob's next bytes.
    ///
    /// # Errors
    /// If it isn't the next one.
    pub fn push(&mut self, packed: PackedGroup) -> Result<Vec<u8>, ChunkedError> {
        let PackedGroup { group, device_len, blake3, bytes, frames } = packed;
        let device_offset = group.device_offset;
        if device_offset != self.device_offset {
            return Err(ChunkedError::Order(device_offset));
        }
        self.device_offset += u64::from(device_len);
        if device_len > 0 {
            let start = match self.compression {
                Compression::Zstd(_) => Start::ZstdFrame { skip: 0 },
                Compression::Gzip(_) => Start::GzipMember { skip: 0 },
            };
            let (source_offset, source_len) = (self.offset, bytes.len() as u32);
            self.spans.push(Span { device_offset, device_len, source_offset, source_len, start, blake3 });
        }
        if self.toc.is_some() {
            self.waiting.extend(group.entries);
            self.enter_group(&frames, &group.bytes).ok_or(ChunkedError::Order(device_offset))?;
        }
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }

    /// Enters a group's files in the table. `None` if pieces and entries don't fit together.
    fn enter_group(&mut self, frames: &[FramedPiece], bytes: &[u8]) -> Option<()> {
        for FramedPiece { piece, start, end, digest } in frames {
            if self.file.is_none() {
                self.enter_until_data();
            }
            let begins = piece.file_offset == 0;
            if begins != self.file.is_none() || self.waiting.is_empty() {
                return None;
            }
            let file = self.file.get_or_insert_default();
            if !(begins && piece.last) {
                file.hash.get_or_insert_default().update(bytes.get(piece.range.clone())?);
            }
            file.chunks.push(Chunk {
                offset: self.offset + *start as u64,
                end_offset: self.offset + *end as u64,
                file_offset: piece.file_offset,
                len: piece.range.len() as u64,
                digest: *digest,
            });
            if piece.last {
                let (entry, file) = (self.waiting.pop_front()?, self.file.take()?);
                let several = file.hash.map(|hash| Digest::from_bytes(hash.finalize().into()));
                self.enter(&entry, several.or(Some(*digest)), &file.chunks);
            }
        }
        if self.file.is_none() {
            self.enter_until_data();
        }
        Some(())
    }

    /// Enters what has no data, up to the next file that has.
    fn enter_until_data(&mut self) {
        while self.waiting.front().is_some_and(|entry| entry.data.is_empty()) {
            if let Some(entry) = self.waiting.pop_front() {
                self.enter(&entry, None, &[]);
            }
        }
    }

    fn enter(&mut self, entry: &Listed, digest: Option<Digest>, chunks: &[Chunk]) {
        if let Some(Ok(toc)) = &mut self.toc
            && let Err(why) = toc.push(entry, digest, chunks)
        {
            self.toc = Some(Err(why));
        }
    }

    /// The end of the layer.
    ///
    /// # Errors
    /// If a file's data are missing.
    pub fn finish(self) -> Result<Assembled, ChunkedError> {
        if self.file.is_some() || !self.waiting.is_empty() {
            return Err(ChunkedError::Order(self.device_offset));
        }
        let (mut tail, mut annotations, mut no_toc) = (Vec::new(), Vec::new(), None);
        match self.toc.map(|toc| toc.and_then(Toc::finish)) {
            None => {}
            Some(Err(why)) => no_toc = Some(why.to_string()),
            Some(Ok(toc)) => (tail, annotations) = ending(&toc, self.offset),
        }
        let size = self.offset + tail.len() as u64;
        Ok(Assembled { tail, size, spans: self.spans, annotations, no_toc })
    }
}

/// The end of a zstd:chunked blob whose table begins at byte `offset`, and the annotations that say where it is.
fn ending(toc: &WrittenToc, offset: u64) -> (Vec<u8>, Vec<(String, String)>) {
    let mut tail = Vec::new();
    put_skippable(&mut tail, &toc.compressed);
    let (at, len) = (offset + 8, toc.compressed.len() as u64);
    let mut footer = Vec::with_capacity(40);
    for number in [at, len, toc.length, TOC_TYPE] {
        footer.extend_from_slice(&number.to_le_bytes());
    }
    footer.extend_from_slice(&FOOTER_MAGIC);
    put_skippable(&mut tail, &footer);
    let (digest, position) = (Digest::of(&toc.compressed).to_string(), format!("{at}:{len}:{}:{TOC_TYPE}", toc.length));
    let digests = ANNOTATIONS_TOC_DIGEST.map(|name| (name.to_owned(), digest.clone()));
    let positions = ANNOTATIONS_TOC_POSITION.map(|name| (name.to_owned(), position.clone()));
    (tail, digests.into_iter().chain(positions).collect())
}

/// Appends a skippable frame. Tables are far smaller than its 4 GiB.
fn put_skippable(out: &mut Vec<u8>, content: &[u8]) {
    out.extend_from_slice(&SKIPPABLE);
    out.extend_from_slice(&(content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
}
