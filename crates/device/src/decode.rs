//! Decoding a run of spans, and the check that what comes out is what the index promises.
use bytes::Bytes;
use clipper_format::{
    gzip::{self, decode_group},
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
    /// At a block of a zstd frame. The state doesn't carry over: it would be a whole window.
    ZstdBlock(Box<zstd::Checkpoint>),
    /// At the end of a span that nothing can follow on from.
    Done,
}

impl Decoder {
    /// Whether decoding can't start at `span` without a checkpoint.
    pub(crate) fn needs_checkpoint(span: &Span) -> bool {
        span.start.checkpoint().is_some()
    }

    /// Whether a decoder that has decoded the spans before `span` needs no checkpoint for it.
    pub(crate) fn reaches(span: &Span) -> bool {
        !matches!(span.start, Start::ZstdBlock { .. })
    }

    /// Memory that decoding `span` takes, bytes: of its source, and of what comes out. What a zstd checkpoint keeps of
    /// the window isn't known before it is there, but is little.
    pub(crate) fn memory(span: &Span) -> u64 {
        let (source, device) = (u64::from(span.source_len), u64::from(span.device_len));
        match span.start {
            Start::ZstdBlock { .. } => 2 * source + device,
            _ => source + device,
        }
    }

    /// Whether the decoder can go on with `span`, the one after those it has decoded, and that pays.
    pub(crate) fn goes_on(&self, span: &Span) -> bool {
        matches!(
            (self, span.start),
            (Self::Gzip(_), Start::Gzip { .. } | Start::GzipMember { .. }) | (Self::Zstd(_), Start::ZstdFrame { .. })
        )
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
            Start::ZstdBlock { .. } => {
                let group = group.ok_or("its checkpoint is missing")?;
                let checkpoint = zstd::Checkpoint::decode(group).map_err(|error| error.to_string())?;
                return Ok(Self::ZstdBlock(Box::new(checkpoint)));
            }
            Start::Gzip { .. } => {
                let group = group.ok_or("its checkpoint is missing")?;
                let group = decode_group(group).map_err(|error| error.to_string())?;
                let checkpoint = span.start.checkpoint_group().and_then(|(_, place)| group.get(place));
                gzip::SpanDecoder::start(span, Some(checkpoint.ok_or("its checkpoint is missing from its group")?))
            }
        };
        decoder.map(|decoder| Self::Gzip(Box::new(decoder))).map_err(|error| error.to_string())
    }

    /// The verified device bytes of `span`.
    pub(crate) fn decode(&mut self, span: &Span, source: Vec<u8>) -> Result<Vec<u8>, String> {
        let after = if matches!(self, Self::ZstdBlock(_)) { Some(Self::Done) } else { None };
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
            Self::ZstdBlock(checkpoint) => {
                zstd::resume(span, checkpoint, &source).map_err(|error| error.to_string())?
            }
            Self::Done => return Err("it doesn't follow on from the span decoded before it".into()),
        };
        if let Some(after) = after {
            *self = after;
        }
        if *blake3::hash(&bytes).as_bytes() != span.blake3 {
            return Err("its BLAKE3 digest is not the one in the index".into());
        }
        Ok(bytes)
    }
}
