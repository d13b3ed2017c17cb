//! Decoding a run of spans, and the check that what comes out is what the index promises.
use bytes::Bytes;
use clipper_format::{
    gzip::{CHECKPOINTS_PER_GROUP, SpanDecoder, decode_group},
    span::{Span, Start},
};

/// Decodes consecutive spans of a run. The state carries over from one to the next.
pub(crate) enum Decoder {
    /// Source bytes are device bytes.
    Stored,
    /// Inside a gzip stream.
    Gzip(Box<SpanDecoder>),
}

impl Decoder {
    /// The checkpoint without which decoding can't start at `span`.
    pub(crate) fn needs_checkpoint(span: &Span) -> Option<u32> {
        match span.start {
            Start::Stored | Start::GzipMember => None,
            Start::Gzip { checkpoint, .. } => Some(checkpoint),
        }
    }

    /// A decoder that starts at `span`; `group` is the group that holds its checkpoint.
    pub(crate) fn start(span: &Span, group: Option<&Bytes>) -> Result<Self, String> {
        let decoder = match span.start {
            Start::Stored => return Ok(Self::Stored),
            Start::GzipMember => SpanDecoder::start(span, None),
            Start::Gzip { checkpoint: number, .. } => {
                let group = group.ok_or("its checkpoint is missing")?;
                let group = decode_group(group).map_err(|error| error.to_string())?;
                let checkpoint = group.get(number as usize % CHECKPOINTS_PER_GROUP);
                SpanDecoder::start(span, Some(checkpoint.ok_or("its checkpoint is missing from its group")?))
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
        };
        if *blake3::hash(&bytes).as_bytes() != span.blake3 {
            return Err("its BLAKE3 digest is not the one in the index".into());
        }
        Ok(bytes)
    }
}
