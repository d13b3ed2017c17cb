//! What the gzip tests share: data like that of layers, members built by hand, and the check that every span decodes.
#![allow(dead_code, reason = "each test file uses a part of it")]

use clipper_format::{
    gzip::{
        CHECKPOINTS_PER_GROUP, Checkpoint, GzipError, IndexOptions, IndexedSpan, Indexer, SpanCheckpoint, SpanDecoder,
        decode_group, encode_group,
    },
    span::{Span, SpanTable, Start},
};
use flate2::{Compress, Compression, FlushCompress, write::GzEncoder};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::io::Write;

/// Bytes like those of a layer: text, tables, zeros, noise, and repeats of what came before, in runs of all lengths.
pub fn layer_like(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let words: Vec<String> =
        (0..400).map(|_| (0..rng.random_range(2..12)).map(|_| rng.random_range('a'..='z')).collect()).collect();
    let mut data = Vec::with_capacity(length + 40_000);
    while data.len() < length {
        let run = 1 << rng.random_range(0..15);
        match rng.random_range(0..10) {
            0 => data.extend((0..run).map(|_| rng.random::<u8>())),
            1 => data.resize(data.len() + run, 0),
            2 => data.extend((0..run as u32).flat_map(|i| (i * 12).to_le_bytes())),
            3..6 if !data.is_empty() => {
                let start = data.len() - rng.random_range(1..=data.len().min(60_000));
                for at in start..start + run {
                    data.push(data[at]);
                }
            }
            _ => {
                let end = data.len() + run;
                while data.len() < end {
                    data.extend(words[rng.random_range(0..words.len())].as_bytes());
                    data.push(b" \n"[rng.random_range(0..2)]);
                }
            }
        }
    }
    data.truncate(length);
    data
}

/// `data` as one gzip member.
pub fn member(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A gzip member of a header, a Deflate stream, and the trailer for `data`.
pub fn wrap(header: &[u8], deflate: &[u8], data: &[u8]) -> Vec<u8> {
    let crc = crc32fast::hash(data).to_le_bytes();
    [header, deflate, &crc, &(data.len() as u32).to_le_bytes()].concat()
}

/// A gzip header without optional fields.
pub const PLAIN_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// `data` as pigz compresses it: pieces compressed on their own, joined by empty stored blocks, in one member.
pub fn pigz_like(data: &[u8], piece: usize) -> Vec<u8> {
    let mut deflate = Vec::new();
    let mut pieces = data.chunks(piece).peekable();
    while let Some(piece) = pieces.next() {
        let mut compress = Compress::new(Compression::new(6), false);
        let flush = if pieces.peek().is_some() { FlushCompress::Sync } else { FlushCompress::Finish };
        let mut out = Vec::with_capacity(piece.len() * 2 + 1024);
        compress.compress_vec(piece, &mut out, flush).unwrap();
        deflate.extend(out);
    }
    wrap(&PLAIN_HEADER, &deflate, data)
}

/// `data` as bgzip compresses it: members of at most 64 KiB whose headers have an extra field, and an empty member.
pub fn bgzip_like(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for piece in data.chunks(65280).chain([&[][..]]) {
        let mut compress = Compress::new(Compression::new(6), false);
        let mut deflate = Vec::with_capacity(piece.len() * 2 + 1024);
        compress.compress_vec(piece, &mut deflate, FlushCompress::Finish).unwrap();
        let size = (deflate.len() + 25) as u16;
        let header = [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 6, 0, b'B', b'C', 2, 0][..], &size.to_le_bytes()];
        out.extend(wrap(&header.concat(), &deflate, piece));
    }
    out
}

/// Indexes `layer`, pushed `piece` bytes at a time.
pub fn index(layer: &[u8], span_size: u32, piece: usize) -> Result<Vec<IndexedSpan>, GzipError> {
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

/// The checkpoint that was made for a span.
pub fn gzip(span: &IndexedSpan) -> Option<&Checkpoint> {
    span.checkpoint.as_ref().and_then(SpanCheckpoint::as_gzip)
}

/// The checkpoints of all spans, after a trip through their groups.
pub fn checkpoints(indexed: &[IndexedSpan]) -> Vec<Checkpoint> {
    let checkpoints: Vec<Checkpoint> = indexed.iter().filter_map(gzip).cloned().collect();
    for checkpoint in &checkpoints {
        assert_eq!(Checkpoint::decode(&checkpoint.encode()).as_ref(), Ok(checkpoint));
    }
    let decoded: Vec<Checkpoint> = checkpoints
        .chunks(CHECKPOINTS_PER_GROUP)
        .flat_map(|group| decode_group(&encode_group(group, 3)).unwrap())
        .collect();
    assert_eq!(decoded, checkpoints);
    decoded
}

/// The checkpoint that a span's start names.
pub fn checkpoint<'a>(span: &Span, checkpoints: &'a [Checkpoint]) -> Option<&'a Checkpoint> {
    match span.start {
        Start::Gzip { checkpoint, .. } => Some(&checkpoints[checkpoint as usize]),
        _ => None,
    }
}

/// The source bytes of a span.
pub fn source<'a>(span: &Span, layer: &'a [u8]) -> &'a [u8] {
    let range = span.source_range();
    &layer[range.start as usize..range.end as usize]
}

/// Checks that `layer` is indexed into spans of `data` that decode alone and in runs of any beginning.
pub fn check(layer: &[u8], data: &[u8], span_size: u32) -> Vec<IndexedSpan> {
    let indexed = index(layer, span_size, usize::MAX).unwrap();
    let all: Vec<u8> = indexed.iter().flat_map(|span| span.bytes.iter().copied()).collect();
    assert!(all == data, "the spans' bytes aren't the layer's");
    let spans = table(&indexed);
    SpanTable::new(spans.clone(), layer.len() as u64).unwrap();
    assert!(spans.iter().all(|span| span.device_len <= span_size));
    let checkpoints = checkpoints(&indexed);
    for (i, first) in spans.iter().enumerate() {
        let mut decoder = SpanDecoder::start(first, checkpoint(first, &checkpoints)).unwrap();
        for span in &spans[i..(i + 3).min(spans.len())] {
            let mut out = vec![0xaa; span.device_len as usize];
            decoder.decode(span, source(span, layer), &mut out).unwrap();
            let range = span.device_range();
            assert!(out == data[range.start as usize..range.end as usize], "span at {} from {}", range.start, i);
        }
    }
    if let Some(first) = spans.first() {
        let mut decoder = SpanDecoder::start(first, None).unwrap();
        for span in &spans {
            let mut out = vec![0; span.device_len as usize];
            decoder.decode(span, source(span, layer), &mut out).unwrap();
            assert_eq!(*blake3::hash(&out).as_bytes(), span.blake3);
        }
    }
    indexed
}

/// Writes Deflate streams of fixed codes, symbol by symbol, and knows what they decode to.
#[derive(Default)]
pub struct Fixed {
    bits: u64,
    count: u32,
    bytes: Vec<u8>,
    /// What has been written so far decodes to this.
    pub data: Vec<u8>,
}

impl Fixed {
    /// Appends bits, the lowest first.
    pub fn put(&mut self, bits: u32, count: u32) {
        self.bits |= u64::from(bits) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    fn code(&mut self, symbol: u32) {
        let (code, count) = match symbol {
            0..144 => (0x30 + symbol, 8),
            144..256 => (0x190 + symbol - 144, 9),
            256..280 => (symbol - 256, 7),
            _ => (0xc0 + symbol - 280, 8),
        };
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    /// Starts a block.
    pub fn block(&mut self, last: bool) {
        self.put(u32::from(last) | 1 << 1, 3);
    }

    /// Ends a block.
    pub fn end_block(&mut self) {
        self.code(256);
    }

    /// A whole stored block.
    pub fn stored(&mut self, last: bool, data: &[u8]) {
        self.put(u32::from(last), 3);
        self.put(0, self.count.wrapping_neg() % 8);
        self.put(data.len() as u32, 16);
        self.put(!data.len() as u32 & 0xffff, 16);
        data.iter().for_each(|&byte| self.put(byte.into(), 8));
        self.data.extend(data);
    }

    /// A literal.
    pub fn literal(&mut self, byte: u8) {
        self.code(byte.into());
        self.data.push(byte);
    }

    /// A match.
    pub fn copy(&mut self, length: usize, distance: usize) {
        self.copy_unchecked(length, distance);
        for _ in 0..length {
            self.data.push(self.data[self.data.len() - distance]);
        }
    }

    /// A match that may be wrong; what it decodes to isn't noted.
    pub fn copy_unchecked(&mut self, length: usize, distance: usize) {
        let (symbol, base, extra) = (257..=285)
            .map(|symbol| match symbol {
                285 => (285, 258, 0),
                257..265 => (symbol, symbol - 254, 0),
                _ => {
                    let extra = (symbol - 261) / 4;
                    (symbol, ((4 + (symbol - 261) % 4) << extra) + 3, extra)
                }
            })
            .rfind(|&(_, base, _)| base <= length as u32)
            .unwrap();
        self.code(symbol);
        self.put(length as u32 - base, extra);
        let (symbol, base, extra) = (0..30u32)
            .map(|symbol| match symbol {
                0..4 => (symbol, symbol + 1, 0),
                _ => {
                    let extra = symbol / 2 - 1;
                    (symbol, ((2 + symbol % 2) << extra) + 1, extra)
                }
            })
            .rfind(|&(_, base, _)| base <= distance as u32)
            .unwrap();
        self.put(symbol.reverse_bits() >> 27, 5);
        self.put(distance as u32 - base, extra);
    }

    /// The stream, as a gzip member.
    pub fn member(mut self) -> (Vec<u8>, Vec<u8>) {
        self.put(0, self.count.wrapping_neg() % 8);
        (wrap(&PLAIN_HEADER, &self.bytes, &self.data), self.data)
    }
}
