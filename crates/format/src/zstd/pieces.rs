//! Decoding blocks from anywhere in pieces: as `resume` does it for a node, but without holding more than a window.

use super::{
    ZstdError,
    resume::{LAST, frames},
};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Most bytes of a piece: what stays in a processor's cache until the next stage has seen it.
pub const PIECE: usize = 256 << 10;

/// How blocks that stand alone start.
pub enum Before<'a> {
    /// With a frame's header.
    Nothing,
    /// Inside a frame, whose state this dictionary holds.
    Blocks {
        /// A dictionary.
        dictionary: &'a [u8],
        /// Whether the frame ends with a checksum.
        checksum: bool,
    },
}

/// Decodes rows of blocks.
pub struct PieceDecoder {
    decoder: DCtx<'static>,
}

impl PieceDecoder {
    pub fn new() -> Self {
        Self { decoder: DCtx::create() }
    }

    /// Decodes all blocks in `source`, which lies at byte `offset` of the blob, through the ends of frames, and gives
    /// `take` what comes out, which gives a buffer for [`PIECE`] bytes in return. The frame that is entered first has a window of so many bytes. Checksums aren't looked at.
    pub fn decode(
        &mut self,
        before: Before<'_>,
        window: u64,
        source: &[u8],
        offset: u64,
        mut take: impl FnMut(Vec<u8>) -> Result<Vec<u8>, ZstdError>,
    ) -> Result<(), ZstdError> {
        let failed = |what| ZstdError::Frame { frame: 0, offset, what };
        let (mut dictionary, inside) = match before {
            Before::Nothing => (&[][..], None),
            Before::Blocks { dictionary, checksum } => (dictionary, Some(checksum)),
        };
        let mut piece = take(Vec::new())?;
        frames(inside, source, offset, |blocks| {
            let named = |code| failed(get_error_name(code));
            self.decoder.reset(ResetDirective::SessionAndParameters).map_err(named)?;
            if !dictionary.is_empty() {
                self.decoder.load_dictionary(std::mem::take(&mut dictionary)).map_err(named)?;
            }
            let head = head(blocks.header.map_or(window, |header| header.window));
            let mut ended = false;
            for part in [&head[..], blocks.bytes, if blocks.ends { &[] } else { &LAST }] {
                let mut input = InBuffer::around(part);
                while !ended {
                    let before = piece.len();
                    let mut output = OutBuffer::around_pos(&mut piece, before);
                    let hint = self.decoder.decompress_stream(&mut output, &mut input).map_err(named)?;
                    ended = hint == 0;
                    if piece.len() == piece.capacity() {
                        piece = take(std::mem::take(&mut piece))?;
                    } else if input.pos() == part.len() {
                        break;
                    }
                }
                if input.pos() < part.len() {
                    return Err(failed("it has more bytes than its blocks"));
                }
            }
            if ended { Ok(()) } else { Err(failed("it has fewer bytes than its blocks")) }
        })?;
        take(piece).map(drop)
    }
}

/// The header of a frame with any blocks, and a window of at least so many bytes; no content size, no checksum.
fn head(window: u64) -> [u8; 6] {
    let fits = |&byte: &u8| {
        let base = 1u64 << (10 + (byte >> 3));
        base + base / 8 * u64::from(byte & 7) >= window
    };
    let byte = (0..=17 << 3).find(fits).unwrap_or(17 << 3);
    [0x28, 0xb5, 0x2f, 0xfd, 0, byte]
}
