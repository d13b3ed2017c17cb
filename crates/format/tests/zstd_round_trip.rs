//! Layers of zstd frames, whoever wrote them, are cut into spans that decode alone, in runs, and the same however they
//! are pushed.
mod zstd_support;

use clipper_format::{gzip::IndexedSpan, span::Start, zstd::MAX_WHOLE_FRAME};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use zstd_support::*;

const SPAN: u32 = 64 << 10;

/// Source bytes that all spans need, for each byte of the layer.
fn amplification(spans: &[IndexedSpan], layer: &[u8]) -> f64 {
    spans.iter().map(|span| f64::from(span.source_len)).sum::<f64>() / layer.len() as f64
}

#[test]
fn frames_of_every_make() {
    let data = layer_like(1, 400_001);
    for level in [-5, 1, 3, 9, 19] {
        for (checksum, content_size) in [(false, false), (false, true), (true, false), (true, true)] {
            for window in [None, Some(10), Some(23), Some(27)] {
                let how = How {
                    level: level.min(if window == Some(27) { 3 } else { 19 }),
                    checksum,
                    content_size,
                    window,
                    flush: 30_000,
                };
                check(&frames(&data, [1, 30_000, 0, 5, 100_000, 65_536, 7], how), &data, SPAN);
            }
        }
    }
}

#[test]
fn the_zstd_program_and_concatenations() {
    let data = layer_like(2, 3_000_000);
    let layer: Vec<u8> = data
        .chunks(700_000)
        .zip([
            &["-q", "-c"][..],
            &["-q", "-c", "-19", "--no-check"],
            &["-q", "-c", "-1", "-T2"],
            &["-q", "-c", "--long=27"],
            &["-qc"],
        ])
        .flat_map(|(part, args)| piped("zstd", args, part))
        .collect();
    for span_size in [64 << 10, 1 << 20, 4 << 20] {
        check(&layer, &data, span_size);
    }
}

#[test]
fn pzstd() {
    let data = layer_like(3, 20_000_000);
    let layer = piped("pzstd", &["-q", "-c", "-p2", "-3"], &data);
    let spans = check(&layer, &data, 1 << 20);
    let lengths: Vec<usize> = spans.iter().map(|span| span.bytes.len()).collect();
    assert_eq!(lengths, [8 << 20, 8 << 20, 20_000_000 - (16 << 20)], "a span is as long as a frame");
    assert!(amplification(&spans, &layer) <= 1.0, "nothing is fetched twice");
}

#[test]
fn the_seekable_format() {
    let data = layer_like(4, 1_000_000);
    for length in [4096, 100_000, 131_072, 600_000] {
        let layer = seekable(&data, length);
        let spans = check(&layer, &data, 256 << 10);
        let most = if length % 4096 == 0 { 1.0 } else { 2.5 };
        assert!(amplification(&spans, &layer) <= most, "{length}: {}", amplification(&spans, &layer));
    }
}

#[test]
fn skippable_and_empty_frames_anywhere() {
    let data = layer_like(5, 500_000);
    let (empty, skipped) = (frame(b"", PLAIN), skippable(3, &[7; 5000]));
    let (a, b) = data.split_at(200_001);
    let between = [&empty[..], &skipped, &skippable(15, b""), &empty].concat();
    let layer = [&between[..], &frame(a, PLAIN), &between, &frame(b, PLAIN), &between].concat();
    let spans = check(&layer, &data, SPAN);
    let last = spans.last().unwrap();
    assert_eq!(spans[0].source_offset, between.len() as u64, "what comes first isn't needed");
    assert_eq!(
        last.source_offset + u64::from(last.source_len),
        (layer.len() - between.len()) as u64,
        "nor what comes last"
    );
    assert!(check(&between, b"", SPAN).is_empty());
    assert!(check(&skippable(0, b"nothing else"), b"", SPAN).is_empty());
}

#[test]
fn zstd_chunked_a_frame_for_each_file() {
    // As containers/storage writes it: tar headers in frames between those of the files, which have no content size.
    let mut rng = StdRng::seed_from_u64(6);
    let how = How { content_size: false, ..PLAIN };
    let (mut data, mut layer) = (Vec::new(), Vec::new());
    for file in 0..300 {
        let size = 1usize << rng.random_range(0..18);
        let size = rng.random_range(0..size) + 1;
        let header = layer_like(file, if file == 0 { 512 } else { 512 + rng.random_range(0..512) });
        for part in [header, layer_like(1000 + file, size)] {
            layer.extend(frame(&part, how));
            data.extend(part);
        }
    }
    layer.extend(skippable(0, &[1; 30_000]));
    layer.extend(skippable(0, &[2; 64]));
    for (span_size, most) in [(1 << 20, 1.02), (256 << 10, 1.1), (64 << 10, 2.5)] {
        let spans = check(&layer, &data, span_size);
        let amplification = amplification(&spans, &layer);
        assert!(amplification < most, "spans of {span_size}: {amplification}");
    }
}

#[test]
fn large_frames_that_begin_anywhere() {
    let data = layer_like(7, 9_000_000);
    let layer = frames(&data, [513, 4 << 20, 4 << 20], PLAIN);
    let spans = check(&layer, &data, 1 << 20);
    let lengths: Vec<usize> = spans.iter().map(|span| span.bytes.len()).collect();
    let rest = 9_000_000 - 2049 * 4096;
    assert_eq!(lengths, [4096, (4 << 20) - 4096, 4096, (4 << 20) - 4096, 4096, rest]);
    let largest = spans.iter().filter(|span| span.bytes.len() > 4096).map(|span| span.source_len).max().unwrap();
    assert!(largest < 4 << 20, "none of the long spans needs two frames");
}

#[test]
fn the_largest_frame_that_is_decoded_as_a_whole_and_one_byte_more() {
    // Noise: checkpoints cost nothing.
    let limit = MAX_WHOLE_FRAME as usize;
    let mut data = vec![0; limit + 1];
    StdRng::seed_from_u64(8).fill(&mut data[..]);
    let spans = check(&frame(&data[..limit], PLAIN), &data[..limit], 1 << 20);
    assert_eq!((spans.len(), spans[0].start), (1, Start::ZstdFrame { skip: 0 }));
    for content_size in [true, false] {
        let layer = [frame(b"first", PLAIN), frame(&data[..limit + 1], How { content_size, ..PLAIN })].concat();
        let spans = check(&layer, &[b"first", &data[..limit + 1]].concat(), 1 << 20);
        assert!(spans.len() > 1, "{content_size}");
    }
}

fn same(a: &[IndexedSpan], b: &[IndexedSpan]) {
    assert_eq!(table(a), table(b));
    assert!(a.iter().zip(b).all(|(a, b)| a.bytes == b.bytes));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_frames_pushed_in_any_pieces(
        seed: u64,
        parts in prop::collection::vec((prop_oneof![0..10usize, 0..9000usize, 0..200_000usize], hows(), 0..9usize), 0..12),
        piece in 1..70_000usize,
        span_size in prop_oneof![Just(64u32 << 10), Just(100_000u32), Just(256u32 << 10)],
    ) {
        let data = layer_like(seed, parts.iter().map(|part| part.0).sum());
        let (mut layer, mut rest) = (skippable(1, b"first"), &data[..]);
        for (length, how, gap) in parts {
            let (part, after) = rest.split_at(length);
            layer.extend(frame(part, how));
            if gap < 3 {
                layer.extend(skippable(gap as u8, &vec![1; gap * 700]));
            }
            rest = after;
        }
        let whole = check(&layer, &data, span_size);
        same(&whole, &index(&layer, span_size, piece).unwrap());
    }
}

#[test]
fn pushes_of_any_size_give_the_same_spans() {
    let data = layer_like(9, 300_000);
    let layer = [seekable(&data, 20_000), skippable(2, &[0; 100]), frames(&data, [0, 70_000, 3], PLAIN)].concat();
    let whole = index(&layer, SPAN, usize::MAX).unwrap();
    for piece in [1, 2, 3, 13, 1000, 65536, 65537, 100_000] {
        same(&whole, &index(&layer, SPAN, piece).unwrap());
    }
}
