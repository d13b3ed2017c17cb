//! Decoding a run of spans, and the check that what comes out is what the index promises.
use bytes::Bytes;
use clipper_format::{
    gzip::{self, CHECKPOINTS_PER_GROUP, decode_group},
    span::{Span, Start},
    zstd,
};

/// Decodes consecutive spans of a run. The state carries over from one to the next.
pub(crate) enum Decoder {
    /// Source bytes are device bytes.
    Stored,
    /// Inside a gzip stream.
    Gzip(Box<gzip::SpanDecoder>),
    /// Inside a row of zstd frames.
    Zstd(Box<zstd::SpanDecoder>),
}

impl Decoder {
    /// The checkpoint without which decoding can't start at `span`.
    pub(crate) fn needs_checkpoint(span: &Span) -> Option<u32> {
        span.start.checkpoint()
    }

    /// Whether the decoder can go on with `span`, the one after those it has decoded, and that pays.
    pub(crate) fn goes_on(&self, span: &Span) -> bool {
        match (self, span.start) {
            (Self::Gzip(_), Start::Gzip { .. } | Start::GzipMember { .. }) => true,
            (Self::Zstd(_), Start::ZstdFrame { .. }) => true,
            (Self::Stored | Self::Gzip(_) | Self::Zstd(_), _) => false,
        }
    }

    /// A decoder that starts at `span`; `group` is the group that holds its checkpoint.
    pub(crate) fn start(span: &Span, group: Option<&Bytes>) -> Result<Self, String> {
        let decoder = match span.start {
            Start::Stored => return Ok(Self::Stored),
            Start::ZstdFrame { .. } => {
                let decoder = zstd::SpanDecoder::start(span).map_err(|error| error.to_string())?;
                return Ok(Self::Zstd(Box::new(decoder)));
            }
            Start::GzipMember { .. } => gzip::SpanDecoder::start(span, None),
            Start::Gzip { checkpoint: number, .. } => {
                let group = group.ok_or("its checkpoint is missing")?;
                let group = decode_group(group).map_err(|error| error.to_string())?;
                let checkpoint = group.get(number as usize % CHECKPOINTS_PER_GROUP);
                gzip::SpanDecoder::start(span, Some(checkpoint.ok_or("its checkpoint is missing from its group")?))
            }
        };
        decoder.map(|decoder| Self::Gzip(Box::new(decoder))).map_err(|error| error.to_string())
    }

    /// The verified device bytes of `span`.
    pub(crate) fn decode(&mut self, span: &Span, source: Vec<u8>) -> Result<Vec<u8>, String> {
        let bytes = match self {
            Self::Stored if source.len() == span.device_len as usize => source,
            Self::Stored => return Err("its source and device bytes differ in number".into()),
            Self::Gzip(decoder) => {
                let mut bytes = vec![0; span.device_len as usize];
                decoder.decode(span, &source, &mut bytes).map_err(|error| error.to_string())?;
                bytes
            }
            Self::Zstd(decoder) => {
                let mut bytes = vec![0; span.device_len as usize];
                decoder.decode(span, &source, &mut bytes).map_err(|error| error.to_string())?;
                bytes
            }
        };
        if *blake3::hash(&bytes).as_bytes() != span.blake3 {
            return Err("its BLAKE3 digest is not the one in the index".into());
        }
        Ok(bytes)
    }
}
