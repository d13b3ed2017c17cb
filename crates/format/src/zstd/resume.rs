//! Decoding blocks from anywhere: libzstd is given a frame of them, and a dictionary that says what came before.

use super::{
    Checkpoint, ZstdError,
    checkpoint::Dictionary,
    frame::FrameHeader,
    parser::MAX_BLOCK,
    walker::{Step, Walker},
};
use crate::span::{BLOCK, Span, Start};
use zstd::zstd_safe::{DCtx, get_error_name};

/// The header of a frame that holds any blocks: the largest window, no content size, no checksum. Decoded at once, a
/// frame needs no window, but blocks may have no more bytes than it.
const HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3];
/// A last block, without bytes.
pub(super) const LAST: [u8; 3] = [1, 0, 0];

/// Blocks of one frame, one after another.
pub(super) struct Blocks<'a> {
    pub bytes: &'a [u8],
    /// Whether the frame's last is among them.
    pub ends: bool,
    /// The frame's header, if it stands before them.
    pub header: Option<FrameHeader>,
}

/// Shows `visit` the blocks in `source`, which lies at byte `offset` of the blob, frame by frame. It starts between frames,
/// or inside one that ends with a checksum or doesn't, and ends between blocks.
pub(super) fn frames(
    inside: Option<bool>,
    source: &[u8],
    offset: u64,
    mut visit: impl FnMut(Blocks<'_>) -> Result<(), ZstdError>,
) -> Result<(), ZstdError> {
    let mut walker = inside.map_or_else(|| Walker::new(offset), |checksum| Walker::at_block(offset, checksum));
    let (mut walked, mut start, mut header, mut open) = (0, 0, None, inside.is_some());
    while walked < source.len() {
        let (step, what) = walker.step(&source[walked..])?;
        walked += step;
        match what {
            Step::Between | Step::Inside => {}
            Step::Header(found) => (start, header, open) = (walked, Some(found), true),
            Step::End => {
                let end = walked - walker.checksum_walked().unwrap_or_default();
                visit(Blocks { bytes: &source[start..end], ends: true, header })?;
                open = false;
            }
        }
    }
    walker.must_be_between_blocks()?;
    if open {
        let checksum = walker.checksum_walked();
        let bytes = source.get(start..walked - checksum.unwrap_or_default()).unwrap_or_default();
        visit(Blocks { bytes, ends: checksum.is_some(), header })?;
    }
    Ok(())
}

/// Decodes rows of blocks.
struct BlockDecoder {
    decoder: DCtx<'static>,
    frame: Vec<u8>,
}

impl BlockDecoder {
    fn new() -> Self {
        Self { decoder: DCtx::create(), frame: Vec::new() }
    }

    /// Decodes all blocks in `source`, which lies at byte `offset` of the blob, through the ends of frames, to at most
    /// `most` bytes. A dictionary holds the state of the frame that it begins in, which ends with a checksum or doesn't;
    /// checksums aren't looked at.
    fn decode(
        &mut self,
        mut dictionary: &[u8],
        checksum: bool,
        source: &[u8],
        offset: u64,
        most: usize,
    ) -> Result<Vec<u8>, ZstdError> {
        let (mut out, mut at) = (vec![0; most], 0);
        frames(Some(checksum), source, offset, |blocks| {
            at += self.frame(std::mem::take(&mut dictionary), blocks.bytes, blocks.ends, &mut out[at..], offset)?;
            Ok(())
        })?;
        out.truncate(at);
        Ok(out)
    }

    /// Decodes blocks of one frame into `out`; gives their bytes.
    fn frame(
        &mut self,
        dictionary: &[u8],
        blocks: &[u8],
        ends: bool,
        out: &mut [u8],
        offset: u64,
    ) -> Result<usize, ZstdError> {
        self.frame.clear();
        self.frame.extend_from_slice(&HEADER);
        self.frame.extend_from_slice(blocks);
        if !ends {
            self.frame.extend_from_slice(&LAST);
        }
        let decoded = self.decoder.decompress_using_dict(out, &self.frame, dictionary);
        decoded.map_err(|code| ZstdError::Frame { frame: 0, offset, what: get_error_name(code) })
    }
}

/// Decodes `span`, which starts inside a frame, by its checkpoint from `source`, its source bytes. It holds the source
/// and device bytes a second time, and of the window as much as the checkpoint keeps, in pages.
///
/// # Errors
/// It isn't such a span, or its source bytes don't end with a block, are damaged or too few. Wrong ones or a wrong
/// checkpoint may also give wrong bytes: compare the BLAKE3.
pub fn resume(span: &Span, checkpoint: &Checkpoint, source: &[u8]) -> Result<Vec<u8>, ZstdError> {
    let refuse = |what| ZstdError::Span { device_offset: span.device_offset, what };
    let Start::ZstdBlock { skip, .. } = span.start else {
        return Err(refuse("it doesn't start inside a zstd frame"));
    };
    if u64::from(skip) >= BLOCK {
        return Err(refuse("it begins too far after its first block"));
    }
    if source.len() as u64 != u64::from(span.source_len) {
        return Err(refuse("its source bytes aren't as many as it says"));
    }
    let (skip, len) = (u32::from(skip), span.device_len as usize);
    let mut bytes = Dictionary::default().with(checkpoint, |dictionary| {
        // The last block may go on after the span.
        let room = skip as usize + len + MAX_BLOCK as usize;
        BlockDecoder::new().decode(dictionary, checkpoint.checksum, source, span.source_offset, room)
    })?;
    if bytes.len() < skip as usize + len {
        return Err(refuse("its source bytes decode to too few"));
    }
    bytes.drain(..skip as usize);
    bytes.truncate(len);
    Ok(bytes)
}
