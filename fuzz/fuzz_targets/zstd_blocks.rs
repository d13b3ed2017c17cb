//! zstd frames gone through block by block, against libzstd. The input is made a stream in one of three ways: as it is;
//! as what libzstd compresses; and that with bytes changed. What libzstd decodes must then be what the matches that were
//! seen say, and spans that start inside frames must resume to it.
#![no_main]
use clipper_format::gzip::{IndexOptions, IndexedSpan, SpanCheckpoint};
use clipper_format::span::Start;
use clipper_format::zstd::{Checkpoint, Indexer, SpanDecoder, blocks, resume};
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};

/// A bomb is no finding: so much output is enough to look at.
const ENOUGH: u64 = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&[kind, level, times, flip], content)) = data.split_first_chunk() else { return };
    let mut stream = content.to_vec();
    if kind % 3 > 0 {
        stream = compress(content, kind, level, times);
    }
    if kind % 3 == 2 {
        let at = usize::from(flip) * 257 % stream.len();
        stream[at] ^= flip | 1;
    }
    look(&stream);
    index(&stream);
});

/// The content a few times over, with something new between, as one frame.
fn compress(content: &[u8], kind: u8, level: u8, times: u8) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), i32::from(level % 22) - 3).expect("an encoder");
    encoder.include_checksum(kind & 4 != 0).expect("a flag");
    if kind & 8 != 0 {
        encoder.window_log(u32::from(10 + kind / 16 % 10)).expect("a window");
    }
    for time in 0..=u32::from(times) {
        encoder.write_all(content).expect("memory");
        encoder.write_all(&time.wrapping_mul(0x9e37_79b9).to_le_bytes()).expect("memory");
        if kind & 16 != 0 {
            encoder.flush().expect("memory");
        }
    }
    encoder.finish().expect("memory")
}

/// Compares the matches of all blocks with what libzstd decodes.
fn look(stream: &[u8]) {
    let Ok(blocks) = blocks(stream) else {
        return;
    };
    let mut decoded = Vec::new();
    let Ok(mut decoder) = zstd::Decoder::with_buffer(stream) else { return };
    let _ = decoder.window_log_max(27);
    // Literals aren't looked at, nor are checksums: what is broken in these, only libzstd sees.
    if decoder.take(ENOUGH).read_to_end(&mut decoded).is_err() {
        return;
    }
    let mut start = 0;
    for block in &blocks {
        for found in &block.matches {
            let at = start + found.at as usize;
            let (from, to) = (at - found.offset as usize, at + found.len as usize);
            if to > decoded.len() {
                break;
            }
            assert!((from..).zip(at..to).all(|(from, to)| decoded[from] == decoded[to]), "another match");
        }
        start += block.len as usize;
    }
    assert!(start == decoded.len() || decoded.len() as u64 == ENOUGH, "{start} bytes, libzstd has {}", decoded.len());
}

/// Indexes the stream; what comes out must be what libzstd decodes, by the spans alone, too.
fn index(stream: &[u8]) {
    // Frames of over 32 KiB are large.
    let mut indexer = Indexer::new(IndexOptions { span_size: 4 << 10 });
    let mut spans: Vec<IndexedSpan> = Vec::new();
    let mut whole = true;
    for part in stream.chunks(1000) {
        whole = indexer.push(part, &mut spans).is_ok() && spans.len() < 128;
        if !whole {
            break;
        }
    }
    whole = whole && indexer.finish(&mut spans).is_ok();
    if whole {
        let mut decoded = Vec::new();
        let mut decoder = zstd::Decoder::with_buffer(stream).expect("a decoder");
        decoder.window_log_max(27).expect("a limit");
        let reference = decoder.take(ENOUGH).read_to_end(&mut decoded);
        let device: Vec<u8> = spans.iter().flat_map(|span| span.bytes.iter().copied()).collect();
        if reference.is_ok() {
            assert!(decoded == device[..device.len().min(ENOUGH as usize)], "libzstd sees another stream");
        }
    }
    if !whole {
        // It may lack bytes.
        spans.pop();
    }
    for indexed in spans.iter().take(32) {
        let span = indexed.to_span();
        let from = span.source_offset as usize;
        let source = &stream[from..from + span.source_len as usize];
        let bytes = match (span.start, &indexed.checkpoint) {
            (Start::ZstdBlock { .. }, Some(SpanCheckpoint::Zstd(encoded))) => {
                let checkpoint = Checkpoint::decode(encoded).expect("own checkpoint");
                let bytes = resume(&span, &checkpoint, source).expect("own span resumes");
                // Another place: anything but a panic.
                let _ = resume(&span, &checkpoint, &stream[..source.len()]);
                bytes
            }
            _ => {
                let mut bytes = vec![0; span.device_len as usize];
                let decoded = SpanDecoder::start(&span).and_then(|mut decoder| decoder.decode(&span, source, &mut bytes));
                if decoded.is_err() {
                    // libzstd looks at frames that it has as a whole more strictly than at those that it gets in pieces.
                    continue;
                }
                bytes
            }
        };
        assert!(bytes == indexed.bytes, "own span decodes to other bytes");
    }
}
