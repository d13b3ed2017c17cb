//! How a layer is decoded: by its first bytes, an indexer of its compression format.
use super::layer::LayerError;
use ::zstd::stream::write::Decoder;
use clipper_format::Digest;
use clipper_format::gzip::{self, IndexOptions, IndexedSpan};
use clipper_format::span::Start;
use clipper_format::stored::StoredIndexer;
use clipper_format::zstd::{self, ZstdError};
use std::io::{self, Write as _};

/// Turns a layer's bytes into its device bytes, span by span.
pub enum Codec {
    Gzip(Box<gzip::Indexer>),
    Zstd(Box<zstd::Indexer>),
    Stored(StoredIndexer),
    OneFrame(Box<OneFrame>),
}

/// Chooses a codec by a layer's first bytes.
pub type Begin = fn(&[u8], u32) -> io::Result<Codec>;

/// Why a codec failed.
pub enum CodecError {
    Gzip(gzip::GzipError),
    Zstd(ZstdError),
    Frame(io::Error),
}

impl CodecError {
    /// The error in the words of the layer's user.
    pub fn of_layer(self, layer: Digest, media_type: &str) -> LayerError {
        match self {
            Self::Gzip(error) => LayerError::Gzip(layer, error),
            Self::Zstd(ZstdError::FrameTooLarge { .. }) => {
                LayerError::ZstdFrame { layer, media_type: media_type.into() }
            }
            Self::Zstd(error) => LayerError::Zstd(layer, error),
            Self::Frame(error) => LayerError::Frame(layer, error),
        }
    }
}

/// Bytes that tell a compression format. containerd, too, goes by them and not by the media type
/// (archive/compression/compression.go, DetectCompression).
pub const MAGIC: usize = 4;

impl Codec {
    /// The codec of a layer that begins with `head`.
    ///
    /// # Errors
    /// None.
    pub fn of(head: &[u8], span_size: u32) -> io::Result<Self> {
        let options = IndexOptions { span_size };
        Ok(match head {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Self::Zstd(Box::new(zstd::Indexer::new(options)))
            }
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(gzip::Indexer::new(options))),
            _ => Self::Stored(StoredIndexer::new(options)),
        })
    }

    /// The codec of a layer that is known to be one large zstd frame: its spans can't be decoded alone.
    ///
    /// # Errors
    /// No memory for a decoder.
    pub fn one_frame(_: &[u8], span_size: u32) -> io::Result<Self> {
        Ok(Self::OneFrame(Box::new(OneFrame::new(span_size)?)))
    }

    /// Takes the next bytes of the blob; appends complete spans.
    pub fn push(&mut self, input: &[u8], spans: &mut Vec<IndexedSpan>) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => indexer.push(input, spans).map_err(CodecError::Gzip),
            Self::Zstd(indexer) => indexer.push(input, spans).map_err(CodecError::Zstd),
            Self::OneFrame(decoder) => decoder.push(input, spans).map_err(CodecError::Frame),
            Self::Stored(indexer) => {
                indexer.push(input, spans);
                Ok(())
            }
        }
    }

    /// The blob has ended: appends the last spans.
    pub fn finish(&mut self, spans: &mut Vec<IndexedSpan>) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => indexer.finish(spans).map_err(CodecError::Gzip),
            Self::Zstd(indexer) => indexer.finish(spans).map_err(CodecError::Zstd),
            Self::OneFrame(decoder) => decoder.finish(spans).map_err(CodecError::Frame),
            Self::Stored(indexer) => {
                indexer.finish(spans);
                Ok(())
            }
        }
    }
}

/// Bytes that a decoder gets at once: a hostile block makes 128 KiB of four bytes, and all that comes out is held.
const PART: usize = 256;

/// A layer in one large zstd frame, decoded without a way to begin anywhere else than at its start. Where its pieces
/// come from isn't known; only their bytes count.
pub struct OneFrame {
    decoder: Decoder<'static, Vec<u8>>,
    piece: usize,
    offset: u64,
}

impl OneFrame {
    fn new(span_size: u32) -> io::Result<Self> {
        let mut decoder = Decoder::new(Vec::new())?;
        decoder.window_log_max(zstd::MAX_WINDOW.ilog2())?;
        Ok(Self { decoder, piece: span_size as usize, offset: 0 })
    }

    fn push(&mut self, input: &[u8], spans: &mut Vec<IndexedSpan>) -> io::Result<()> {
        for part in input.chunks(PART) {
            self.decoder.write_all(part)?;
            while self.decoder.get_ref().len() >= self.piece {
                self.take(self.piece, spans);
            }
        }
        Ok(())
    }

    fn finish(&mut self, spans: &mut Vec<IndexedSpan>) -> io::Result<()> {
        self.decoder.flush()?;
        while !self.decoder.get_ref().is_empty() {
            self.take(self.piece.min(self.decoder.get_ref().len()), spans);
        }
        Ok(())
    }

    fn take(&mut self, len: usize, spans: &mut Vec<IndexedSpan>) {
        let held = self.decoder.get_mut();
        let rest = held.split_off(len);
        let bytes = std::mem::replace(held, rest);
        let device_offset = self.offset;
        self.offset += bytes.len() as u64;
        let (source_offset, source_len, start) = (0, 0, Start::Stored);
        spans.push(IndexedSpan { device_offset, source_offset, source_len, start, checkpoint: None, bytes });
    }
}
