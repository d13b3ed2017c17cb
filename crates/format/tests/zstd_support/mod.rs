//! What the zstd tests share: frames made in every way, and the check that every span decodes.
#![allow(dead_code, reason = "each test file uses a part of it")]

use clipper_format::{
    gzip::{IndexOptions, IndexedSpan, SpanCheckpoint},
    span::{Span, SpanTable, Start},
    zstd::{Checkpoint, Indexer, MAX_SPAN, SpanDecoder, ZstdError, resume},
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Bytes like those of a layer: text, zeros, noise, and repeats of what came before.
pub fn layer_like(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data = Vec::with_capacity(length + 20_000);
    while data.len() < length {
        let run = 1 << rng.random_range(0..14);
        match rng.random_range(0..5) {
            0 => data.extend((0..run).map(|_| rng.random::<u8>())),
            1 => data.resize(data.len() + run, 0),
            2 if !data.is_empty() => {
                let start = rng.random_range(0..data.len());
                data.extend_from_within(start..(start + run).min(data.len()));
            }
            _ => data.extend((0..run).map(|_| b" etaoinshrdlu\n"[rng.random_range(0..14)])),
        }
    }
    data.truncate(length);
    data
}

/// How a frame is made.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub level: i32,
    pub checksum: bool,
    pub content_size: bool,
    /// Logarithm of the window's size; `None` for the level's own.
    pub window: Option<u32>,
    /// Bytes after which the encoder is flushed.
    pub flush: usize,
}

/// As `zstd -3` does it.
pub const PLAIN: How = How { level: 3, checksum: true, content_size: true, window: None, flush: usize::MAX };

/// `data` as one frame.
pub fn frame(data: &[u8], how: How) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), how.level).unwrap();
    encoder.include_checksum(how.checksum).unwrap();
    encoder.include_contentsize(how.content_size).unwrap();
    if how.content_size {
        encoder.set_pledged_src_size(Some(data.len() as u64)).unwrap();
    }
    if let Some(window) = how.window {
        encoder.window_log(window).unwrap();
    }
    for part in data.chunks(how.flush) {
        encoder.write_all(part).unwrap();
        if part.len() == how.flush {
            encoder.flush().unwrap();
        }
    }
    encoder.finish().unwrap()
}

/// A skippable frame of this kind, 0 to 15.
pub fn skippable(kind: u8, data: &[u8]) -> Vec<u8> {
    [&[0x50 + kind, 0x2a, 0x4d, 0x18][..], &(data.len() as u32).to_le_bytes(), data].concat()
}

/// `data` in frames of these lengths, one after another.
pub fn frames(data: &[u8], lengths: impl IntoIterator<Item = usize>, how: How) -> Vec<u8> {
    let (mut layer, mut rest) = (Vec::new(), data);
    for length in lengths {
        let (part, after) = rest.split_at(length.min(rest.len()));
        layer.extend(frame(part, how));
        rest = after;
    }
    if !rest.is_empty() {
        layer.extend(frame(rest, how));
    }
    layer
}

/// `data` in the seekable format of zstd's `contrib/seekable_format`: frames, then a seek table in a skippable frame.
pub fn seekable(data: &[u8], length: usize) -> Vec<u8> {
    let (mut layer, mut table) = (Vec::new(), Vec::new());
    for part in data.chunks(length) {
        let frame = frame(part, How { checksum: false, ..PLAIN });
        table.extend((frame.len() as u32).to_le_bytes());
        table.extend((part.len() as u32).to_le_bytes());
        layer.extend(frame);
    }
    table.extend((data.len().div_ceil(length) as u32).to_le_bytes());
    table.extend([0, 0xb1, 0xea, 0x92, 0x8f]);
    layer.extend(skippable(0xe, &table));
    layer
}

/// Indexes `layer`, pushed `piece` bytes at a time.
pub fn index(layer: &[u8], span_size: u32, piece: usize) -> Result<Vec<IndexedSpan>, ZstdError> {
    let mut indexer = Indexer::new(IndexOptions { span_size });
    let mut spans = Vec::new();
    for piece in layer.chunks(piece) {
        indexer.push(piece, &mut spans)?;
    }
    indexer.finish(&mut spans)?;
    Ok(spans)
}

/// The spans as a table has them.
pub fn table(indexed: &[IndexedSpan]) -> Vec<Span> {
    indexed.iter().map(IndexedSpan::to_span).collect()
}

/// The source bytes of a span.
pub fn source<'a>(span: &Span, layer: &'a [u8]) -> &'a [u8] {
    let range = span.source_range();
    &layer[range.start as usize..range.end as usize]
}

/// The span's bytes, decoded alone.
pub fn decode(span: &Span, source: &[u8]) -> Result<Vec<u8>, ZstdError> {
    let mut out = vec![0xaa; span.device_len as usize];
    SpanDecoder::start(span)?.decode(span, source, &mut out)?;
    Ok(out)
}

/// The checkpoint that was made for a span.
pub fn checkpoint(span: &IndexedSpan) -> Option<Checkpoint> {
    let encoded = span.checkpoint.as_ref().and_then(SpanCheckpoint::as_zstd)?;
    let checkpoint = Checkpoint::decode(encoded).unwrap();
    assert_eq!(checkpoint.encode(), encoded);
    Some(checkpoint)
}

/// Checks that `layer` is indexed into spans of `data` that decode alone, and in runs of any beginning if they need no
/// checkpoint.
pub fn check(layer: &[u8], data: &[u8], span_size: u32) -> Vec<IndexedSpan> {
    let indexed = index(layer, span_size, usize::MAX).unwrap();
    let all: Vec<u8> = indexed.iter().flat_map(|span| span.bytes.iter().copied()).collect();
    assert!(all == data, "the spans' bytes aren't the layer's");
    let spans = table(&indexed);
    SpanTable::new(spans.clone(), layer.len() as u64).unwrap();
    assert!(spans.iter().all(|span| span.device_len <= span_size.max(MAX_SPAN)));
    let mut checkpoints = 0;
    for (i, first) in spans.iter().enumerate() {
        let checkpoint = checkpoint(&indexed[i]);
        assert_eq!(checkpoint.is_some(), first.start.checkpoint().is_some());
        if let (Start::ZstdBlock { checkpoint: number, .. }, Some(checkpoint)) = (first.start, checkpoint) {
            assert_eq!(number, checkpoints);
            checkpoints += 1;
            let out = resume(first, &checkpoint, source(first, layer)).unwrap();
            let range = first.device_range();
            assert!(out == data[range.start as usize..range.end as usize], "span at {}", range.start);
            continue;
        }
        let mut decoder = SpanDecoder::start(first).unwrap();
        let run = spans[i..].iter().take(3).take_while(|span| span.start.checkpoint().is_none());
        for span in run {
            let mut out = vec![0xaa; span.device_len as usize];
            decoder.decode(span, source(span, layer), &mut out).unwrap();
            let range = span.device_range();
            assert!(out == data[range.start as usize..range.end as usize], "span at {} from {}", range.start, i);
        }
    }
    indexed
}

/// What a program makes of `data`.
pub fn piped(program: &str, args: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup"));
    let mut stdin = child.stdin.take().unwrap();
    let out = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(out.status.success(), "{program} {args:?}");
    out.stdout
}

/// Frames made in any way.
pub fn hows() -> impl Strategy<Value = How> {
    let window = prop_oneof![Just(None), (10..24u32).prop_map(Some)];
    let flush = prop_oneof![Just(usize::MAX), 1000..50_000usize];
    (1..12i32, any::<bool>(), any::<bool>(), window, flush)
        .prop_map(|(level, checksum, content_size, window, flush)| How { level, checksum, content_size, window, flush })
}
