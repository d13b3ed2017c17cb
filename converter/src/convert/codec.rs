//! How a layer is decoded: by its first bytes, an indexer of its compression format.
use super::layer::LayerError;
use clipper_format::Digest;
use clipper_format::gzip::{self, IndexOptions, IndexedSpan};
use clipper_format::stored::StoredIndexer;
use clipper_format::zstd::{self, Sink, ZstdError};

/// Turns a layer's bytes into its device bytes, span by span.
pub enum Codec {
    Gzip(Box<gzip::Indexer>),
    Zstd(Box<zstd::Indexer>),
    Stored(StoredIndexer),
}

/// Why a codec failed.
pub enum CodecError {
    Gzip(gzip::GzipError),
    Zstd(ZstdError),
}

impl CodecError {
    /// The error in the words of the layer's user.
    pub fn of_layer(self, layer: Digest) -> LayerError {
        match self {
            Self::Gzip(error) => LayerError::Gzip(layer, error),
            Self::Zstd(error) => LayerError::Zstd(layer, error),
        }
    }
}

/// Bytes that tell a compression format. containerd, too, goes by them and not by the media type
/// (archive/compression/compression.go, DetectCompression).
pub const MAGIC: usize = 4;

impl Codec {
    /// The codec of a layer that begins with `head`. With `parse`, spans tell how they were put together.
    pub fn of(head: &[u8], span_size: u32, parse: bool) -> Self {
        let options = IndexOptions { span_size };
        match head {
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                Self::Zstd(Box::new(zstd::Indexer::new(options)))
            }
            [0x1f, 0x8b, ..] if parse => Self::Gzip(Box::new(gzip::Indexer::with_parse(options))),
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(gzip::Indexer::new(options))),
            _ => Self::Stored(StoredIndexer::new(options)),
        }
    }

    /// Takes the next bytes of the blob; gives `out` what comes out of them.
    pub fn push(&mut self, input: &[u8], out: &mut impl Sink) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => whole(out, |spans| indexer.push(input, spans).map_err(CodecError::Gzip)),
            Self::Zstd(indexer) => indexer.push(input, out).map_err(CodecError::Zstd),
            Self::Stored(indexer) => whole(out, |spans| {
                indexer.push(input, spans);
                Ok(())
            }),
        }
    }

    /// The blob has ended: gives `out` the last spans.
    pub fn finish(&mut self, out: &mut impl Sink) -> Result<(), CodecError> {
        match self {
            Self::Gzip(indexer) => whole(out, |spans| indexer.finish(spans).map_err(CodecError::Gzip)),
            Self::Zstd(indexer) => indexer.finish(out).map_err(CodecError::Zstd),
            Self::Stored(indexer) => whole(out, |spans| {
                indexer.finish(spans);
                Ok(())
            }),
        }
    }
}

/// Passes on spans that come out whole, those before an error, too.
fn whole(
    out: &mut impl Sink,
    work: impl FnOnce(&mut Vec<IndexedSpan>) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let mut spans = Vec::new();
    let worked = work(&mut spans);
    spans.into_iter().for_each(|span| out.span(span));
    worked
}
