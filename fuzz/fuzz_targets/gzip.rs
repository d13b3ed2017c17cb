//! The gzip indexer over hostile streams, and the span decoder over what it made of them: every span that was cut
//! must decode, alone, to the bytes that the indexer saw; and so must a layer repacked by the matches that it told.
#![no_main]
use clipper_format::chunked::{Assembler, Compression, Cutter, Packer};
use clipper_format::gzip::{IndexOptions, IndexedSpan, Indexer, SpanDecoder};
use clipper_format::zstd;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut indexer = Indexer::with_parse(IndexOptions { span_size: 64 << 10 });
    let mut spans: Vec<IndexedSpan> = Vec::new();
    let piece = data.first().map_or(1, |b| usize::from(*b) * 16 + 1);
    for part in data.chunks(piece) {
        // A bomb is no finding: a few megabytes of output are enough to look at.
        if indexer.push(part, &mut spans).is_err() || spans.len() > 64 {
            break;
        }
    }
    let _ = indexer.finish(&mut spans);
    for indexed in &spans {
        let span = indexed.to_span();
        let from = span.source_offset as usize;
        let Some(source) = data.get(from..from + span.source_len as usize) else { panic!("span outside its source") };
        let mut out = vec![0; indexed.bytes.len()];
        let checkpoint = indexed.checkpoint.as_ref().and_then(|checkpoint| checkpoint.as_gzip());
        let mut decoder = SpanDecoder::start(&span, checkpoint).expect("own span starts");
        decoder.decode(&span, source, &mut out).expect("own span decodes");
        assert_eq!(out, indexed.bytes);
        // The same span over other bytes: anything but a panic.
        let _ = SpanDecoder::start(&span, checkpoint)
            .and_then(|mut d| d.decode(&span, &data[..source.len().min(data.len())], &mut out));
    }
    repack(spans);
});

/// Repacks spans, and decodes what comes out.
fn repack(spans: Vec<IndexedSpan>) {
    let compression = Compression::Zstd(5);
    let (mut cutter, mut groups, mut bytes) = (Cutter::new(128 << 10), Vec::new(), Vec::new());
    for span in spans {
        cutter.learn(span.parse.expect("it was asked for"));
        cutter.push(&span.bytes, [], &mut groups);
        bytes.extend(span.bytes);
    }
    cutter.finish(&mut groups);
    let mut packer = Packer::new(compression).expect("there is memory");
    let (mut assembler, mut blob) = (Assembler::new(compression), Vec::new());
    for group in groups {
        blob.extend(assembler.push(packer.pack(group).expect("it packs")).expect("they follow from each other"));
    }
    blob.extend(assembler.finish().expect("it ends").tail);
    let (mut indexer, mut spans) = (zstd::Indexer::new(IndexOptions { span_size: 1 << 20 }), Vec::<IndexedSpan>::new());
    indexer.push(&blob, &mut spans).expect("it decodes");
    indexer.finish(&mut spans).expect("it is whole");
    assert!(spans.into_iter().flat_map(|span| span.bytes).eq(bytes));
}
