//! The zstd indexer over hostile streams, against libzstd, and the span decoder over what it made of them: what is
//! indexed is what libzstd decodes, and every span that was cut decodes, alone, to the bytes that the indexer saw.
#![no_main]
use clipper_format::gzip::{IndexOptions, IndexedSpan};
use clipper_format::span::Span;
use clipper_format::zstd::{Indexer, SpanDecoder};
use libfuzzer_sys::fuzz_target;
use std::io::{BufReader, Read};

/// A bomb is no finding: so much output is enough to look at.
const ENOUGH: u64 = 8 << 20;

fuzz_target!(|data: &[u8]| {
    let mut indexer = Indexer::new(IndexOptions { span_size: 64 << 10 });
    let mut spans: Vec<IndexedSpan> = Vec::new();
    let piece = data.first().map_or(1, |b| usize::from(*b) * 16 + 1);
    let mut whole = true;
    for part in data.chunks(piece) {
        whole = indexer.push(part, &mut spans).is_ok() && spans.len() < 128;
        if !whole {
            break;
        }
    }
    whole = whole && indexer.finish(&mut spans).is_ok();
    if !whole {
        // It may lack bytes.
        spans.pop();
    }
    let device: Vec<u8> = spans.iter().flat_map(|span| span.bytes.iter().copied()).collect();
    if whole {
        let mut decoded = Vec::new();
        // In single bytes, because libzstd looks at a frame that it has as a whole more strictly than at pieces of one
        // (it refuses an empty compressed block, say), and which of the two the indexer gives it depends on the pieces.
        let bytewise = BufReader::with_capacity(1, data);
        let reference = zstd::Decoder::with_buffer(bytewise).expect("a decoder").take(ENOUGH).read_to_end(&mut decoded);
        let same = device.len().min(ENOUGH as usize);
        assert!(reference.is_ok() && decoded == device[..same], "libzstd sees another stream");
    }
    let mut row: Option<SpanDecoder> = None;
    for indexed in spans.iter().take(64) {
        let span = indexed.to_span();
        let from = span.source_offset as usize;
        let Some(source) = data.get(from..from + span.source_len as usize) else { panic!("span outside its source") };
        let mut out = vec![0; indexed.bytes.len()];
        let mut decoder = SpanDecoder::start(&span).expect("own span starts");
        if decoder.decode(&span, source, &mut out).is_err() {
            // libzstd looks at frames that it has as a whole more strictly than at those that it gets in pieces.
            let whole = zstd::zstd_safe::decompress(&mut vec![0; 64 << 20], source);
            assert!(whole.is_err(), "own span doesn't decode, but its frames do");
            break;
        }
        assert_eq!(out, indexed.bytes);
        let row = row.get_or_insert_with(|| SpanDecoder::start(&span).expect("own span starts"));
        row.decode(&span, source, &mut out).expect("own span decodes after the one before it");
        assert_eq!(out, indexed.bytes);
        // The same span over other bytes: anything but a panic.
        let other = Span { source_len: span.source_len.min(data.len() as u32), ..span };
        let _ =
            SpanDecoder::start(&other).and_then(|mut d| d.decode(&other, &data[..other.source_len as usize], &mut out));
    }
});
