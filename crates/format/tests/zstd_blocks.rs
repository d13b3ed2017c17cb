//! Layers of one large zstd frame, or of some among others, are cut into spans inside frames that libzstd resumes at.
mod zstd_support;

use clipper_format::{
    gzip::{IndexOptions, IndexedSpan, SpanCheckpoint},
    span::{Span, Start},
    zstd::{Checkpoint, Indexer, Sink, ZstdError, blocks, resume},
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::LazyLock;
use zstd_support::*;

/// With spans of this size, frames of over 512 KiB are large.
const SPAN: u32 = 64 << 10;

/// Bytes that repeat what came up to `reach` before, hardly anything else, so that checkpoints cost little.
fn near(seed: u64, length: usize, reach: usize) -> Vec<u8> {
    let mut data: Vec<u8> =
        (0..length.div_ceil(reach) as u64).flat_map(|part| layer_like(seed << 20 | part, reach)).collect();
    data.truncate(length);
    data
}

fn starts_inside(spans: &[IndexedSpan]) -> usize {
    spans.iter().filter(|span| matches!(span.start, Start::ZstdBlock { .. })).count()
}

#[test]
fn frames_of_every_make() {
    let data = near(30, 3_000_001, 10_000);
    for level in [-5, 1, 3, 9, 19] {
        for (checksum, content_size) in [(false, false), (true, true)] {
            for (window, flush) in
                [(None, usize::MAX), (Some(17), 70_001), (Some(27), 1_000_000), (Some(10), usize::MAX)]
            {
                let how = How {
                    level: level.min(if window == Some(27) { 9 } else { 19 }),
                    checksum,
                    content_size,
                    window,
                    flush,
                };
                let spans = check(&frame(&data, how), &data, SPAN);
                // An encoder that searches long finds short matches of this text megabytes back.
                let far = level >= 9 && window.is_none_or(|window| window > 17);
                assert!(far || starts_inside(&spans) > 0, "{how:?}: {} spans", spans.len());
            }
        }
    }
}

#[test]
fn the_zstd_program() {
    let data = near(31, 9_000_000, 300_000);
    for args in [
        &["-q", "-c", "-1"][..],
        &["-q", "-c", "-3"],
        &["-q", "-c", "-9", "--no-check"],
        &["-q", "-c", "-19", "-T2"],
        &["-q", "-c", "--long=27"],
        &["-q", "-c", "-T0"],
        &["-q", "-c", "-3", "--rsyncable", "-T2"],
        &["-q", "-c", "--ultra", "-22"],
        &["-q", "-c", "--fast=5"],
    ] {
        let layer = piped("zstd", args, &data);
        let spans = check(&layer, &data, SPAN);
        assert!(starts_inside(&spans) > 0, "{args:?}: {} spans", spans.len());
    }
}

#[test]
fn large_and_small_frames_in_any_order() {
    let data = near(32, 5_000_000, 50_000);
    let skipped = skippable(3, &[7; 5000]);
    for lengths in [
        &[1_000_000, 5, 4096, 700_000][..],
        &[5, 1_000_000, 1_000_000, 0, 0, 77_777, 600_000],
        &[4095, 4097, 600_000, 1, 1, 1, 900_001],
        &[524_288, 524_289, 524_288, 524_289],
    ] {
        let (mut layer, mut rest) = (Vec::new(), &data[..]);
        for (number, length) in lengths.iter().chain([&usize::MAX]).enumerate() {
            let (part, after) = rest.split_at(rest.len().min(*length));
            layer.extend(frame(part, How { checksum: number % 2 == 0, content_size: number % 3 == 0, ..PLAIN }));
            layer.extend(&skipped[..if number % 2 == 0 { 0 } else { skipped.len() }]);
            rest = after;
        }
        let spans = check(&layer, &data, SPAN);
        assert!(starts_inside(&spans) > 1, "{lengths:?}: {}", starts_inside(&spans));
    }
}

#[test]
fn spans_grow_until_their_checkpoints_are_worth_it() {
    let worth = |data: &[u8], how| {
        let layer = frame(data, how);
        let spans = check(&layer, data, SPAN);
        let stored: usize = spans.iter().filter_map(|span| span.checkpoint.as_ref()?.as_zstd()).map(<[u8]>::len).sum();
        (spans.len(), stored as f64 * 100.0 / layer.len() as f64)
    };
    let data = near(33, 12_000_000, 20_000);
    let (near_spans, near_share) = worth(&data, PLAIN);
    assert!(near_share < 3.0, "{near_share} %");
    // What is repeated lies anywhere in the megabytes before.
    let (far_spans, far_share) = worth(&layer_like(34, 12_000_000), PLAIN);
    assert!(far_spans < near_spans, "{far_spans} and {near_spans} spans, {far_share} %");
}

/// Noise, and pieces of noise that came up to `reach` before, `repeated` parts in a hundred: what checkpoints keep can't be
/// compressed, as in a layer of compressed files.
fn noise(seed: u64, length: usize, reach: usize, repeated: u32) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut data: Vec<u8> = (0..100_000).map(|_| rng.random()).collect();
    while data.len() < length {
        let run = rng.random_range(50..2000);
        if rng.random_range(0..100) < repeated {
            let from = data.len() - rng.random_range(run..reach.min(data.len()));
            data.extend_from_within(from..from + run);
        } else {
            data.extend((0..run).map(|_| rng.random::<u8>()));
        }
    }
    data
}

#[test]
fn checkpoints_that_cost_more_than_they_were_thought_to_stay_affordable() {
    for (seed, repeated) in [(35, 3), (36, 10), (37, 40), (38, 90)] {
        let data = noise(seed, 14_000_000, 1 << 20, repeated);
        let layer = frame(&data, PLAIN);
        let spans = check(&layer, &data, SPAN);
        let stored: usize = spans.iter().filter_map(|span| span.checkpoint.as_ref()?.as_zstd()).map(<[u8]>::len).sum();
        let share = stored as f64 * 100.0 / layer.len() as f64;
        assert!(share < 2.8, "{repeated}: {share} %, {} spans", spans.len());
    }
}

#[test]
fn an_end_that_repeats_everything_does_not_get_a_span_of_its_own() {
    let mut rng = StdRng::seed_from_u64(39);
    // Cheap to enter anywhere, but for the last third, which consists of pieces of the rest.
    let mut data = noise(40, 6_000_000, 100_000, 10);
    while data.len() < 9_000_000 {
        let (from, run) = (rng.random_range(0..5_900_000), rng.random_range(500..3000));
        data.extend_from_within(from..from + run);
    }
    let layer = frame(&data, How { window: Some(24), ..PLAIN });
    let spans = check(&layer, &data, SPAN);
    let stored: usize = spans.iter().filter_map(|span| span.checkpoint.as_ref()?.as_zstd()).map(<[u8]>::len).sum();
    let share = stored as f64 * 100.0 / layer.len() as f64;
    assert!(share < 2.6 && spans.len() > 5, "{share} %, {} spans", spans.len());
    let last = spans.last().unwrap();
    assert!(last.device_offset < 6_000_000, "the last span begins at {}", last.device_offset);
}

#[test]
fn pushes_of_any_size_give_the_same_spans() {
    let data = near(35, 1_500_000, 30_000);
    let layer =
        [frame(&data[..5], PLAIN), frame(&data[5..1_200_000], PLAIN), frame(&data[1_200_000..], PLAIN)].concat();
    let whole = check(&layer, &data, SPAN);
    assert!(starts_inside(&whole) > 0);
    for piece in [1, 3, 1000, 65_537] {
        let other = index(&layer, SPAN, piece).unwrap();
        assert_eq!(table(&whole), table(&other));
        assert!(whole.iter().zip(other).all(|(a, b)| a.bytes == b.bytes && a.checkpoint == b.checkpoint));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_frames_pushed_in_any_pieces(
        seed in 0..1u64 << 40,
        parts in prop::collection::vec((prop_oneof![0..9000usize, 400_000..1_500_000usize], hows(), 0..9usize), 1..5),
        piece in 1000..200_000usize,
        reach in 1000..400_000usize,
    ) {
        let data = near(seed, parts.iter().map(|part| part.0).sum(), reach);
        let (mut layer, mut rest) = (Vec::new(), &data[..]);
        for (length, how, gap) in parts {
            let (part, after) = rest.split_at(length);
            layer.extend(frame(part, how));
            if gap < 3 {
                layer.extend(skippable(gap as u8, &vec![1; gap * 700]));
            }
            rest = after;
        }
        let whole = check(&layer, &data, SPAN);
        let other = index(&layer, SPAN, piece).unwrap();
        prop_assert_eq!(table(&whole), table(&other));
    }
}

/// The parts of long spans, with their bytes; those that start as their span does have its checkpoint.
#[derive(Default)]
struct Parts {
    parts: Vec<IndexedSpan>,
    checkpoint: Option<SpanCheckpoint>,
}

impl Sink for Parts {
    fn span(&mut self, span: IndexedSpan) {
        self.checkpoint = span.checkpoint;
    }

    fn part(&mut self, part: IndexedSpan) {
        let checkpoint = part.checkpoint.clone().or_else(|| self.checkpoint.take());
        self.parts.push(IndexedSpan { checkpoint, ..part });
    }

    fn more(&mut self, bytes: Vec<u8>) {
        self.parts.last_mut().expect("a span this long has parts").bytes.extend(bytes);
    }
}

#[test]
fn long_spans_have_parts_that_are_decoded_alone() {
    let data = near(37, 60_000_000, 300_000);
    // A frame may begin inside a span, and what lies between frames counts.
    let layer =
        [frame(&data[..30_000_000], PLAIN), skippable(1, &[9; 999]), frame(&data[30_000_000..], PLAIN)].concat();
    let mut indexer = Indexer::new(IndexOptions { span_size: 25 << 20 });
    let mut found = Parts::default();
    indexer.push(&layer, &mut found).unwrap();
    indexer.finish(&mut found).unwrap();
    assert!(found.parts.len() >= 10, "{}", found.parts.len());
    let mut at = 0;
    for part in &found.parts {
        let span = part.to_span();
        assert_eq!(span.device_offset, at);
        at += u64::from(span.device_len);
        let bytes = match span.start {
            Start::ZstdBlock { .. } => {
                let encoded = part.checkpoint.as_ref().and_then(SpanCheckpoint::as_zstd).unwrap();
                resume(&span, &Checkpoint::decode(encoded).unwrap(), source(&span, &layer)).unwrap()
            }
            _ => decode(&span, source(&span, &layer)).unwrap(),
        };
        assert!(bytes == part.bytes && bytes == data[span.device_offset as usize..at as usize], "{at}");
    }
    assert_eq!(at, data.len() as u64);
}

/// A compressed block of sequences whose tables have one symbol: 4 literals, then 4 bytes from 1 to 4 bytes before.
fn single_symbols(sequences: usize, repeat: bool) -> Vec<u8> {
    let literals = sequences * 4;
    let header = (3 << 2 | literals << 4).to_le_bytes();
    let mut block = header[..3].to_vec();
    block.extend((0..literals).map(|byte| byte as u8));
    block.extend([(sequences >> 8) as u8 | 0x80, sequences as u8]);
    // Literals length 4, offset value 4 and two bits, match length 4.
    if repeat {
        block.push(0b1111_1100);
    } else {
        block.extend([0b0101_0100, 4, 2, 1]);
    }
    // Two bits for each, all 00: an offset of 1. Then the bit that ends them.
    block.extend(vec![0; sequences / 4]);
    block.push(1 << (sequences % 4 * 2));
    let len = (block.len() << 3 | 4).to_le_bytes();
    [&len[..3], &block].concat()
}

#[test]
fn no_span_starts_where_no_dictionary_can_say_the_state() {
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3];
    let block = |repeat| single_symbols(16_000, repeat);
    let repeats: Vec<u8> = std::iter::repeat_with(|| block(true)).take(9).flatten().collect();
    let last = [1, 0, 0];
    let layer = [&header[..], &block(false), &repeats, &block(false), &repeats, &last].concat();
    let data = zstd::decode_all(&layer[..]).unwrap();
    assert_eq!(data.len(), 20 * 128_000);
    let spans = check(&layer, &data, SPAN);
    let starts: Vec<u64> = spans.iter().map(|span| span.device_offset).collect();
    assert_eq!(starts, [0, (10u64 * 128_000).next_multiple_of(4096)], "only where tables are brought anew");
}

/// A layer of one frame, its data, and a span inside it with its checkpoint.
fn one_span() -> &'static (Vec<u8>, Vec<u8>, Span, Checkpoint) {
    static ONE: LazyLock<(Vec<u8>, Vec<u8>, Span, Checkpoint)> = LazyLock::new(|| {
        let data = near(36, 2_000_000, 40_000);
        let layer = frame(&data, How { checksum: false, ..PLAIN });
        let spans = index(&layer, SPAN, usize::MAX).unwrap();
        let span = spans.iter().find(|span| matches!(span.start, Start::ZstdBlock { .. })).unwrap();
        (layer, data, span.to_span(), checkpoint(span).unwrap())
    });
    &ONE
}

#[test]
fn a_span_is_refused_where_it_does_not_belong() {
    let (layer, data, span, checkpoint) = one_span();
    let good = source(span, layer);
    let range = span.device_range();
    assert!(resume(span, checkpoint, good).unwrap() == data[range.start as usize..range.end as usize]);
    let other = |start| Span { start, ..span.clone() };
    for start in [Start::Stored, Start::ZstdFrame { skip: 0 }, Start::ZstdBlock { skip: 4096, checkpoint: 0 }] {
        assert!(matches!(resume(&other(start), checkpoint, good), Err(ZstdError::Span { .. })), "{start:?}");
    }
    let with = |source: &[u8]| resume(&Span { source_len: source.len() as u32, ..span.clone() }, checkpoint, source);
    for missing in [1, 2, 100, good.len()] {
        assert!(with(&good[..good.len() - missing]).is_err(), "{missing} missing");
    }
    assert!(with(&[good, b"x"].concat()).is_err());
    assert!(resume(span, checkpoint, &good[1..]).is_err(), "shorter than it says");
    let long = Span { device_len: span.device_len + (1 << 20), ..span.clone() };
    assert!(matches!(resume(&long, checkpoint, good), Err(ZstdError::Span { .. })), "more bytes than there are");
}

#[test]
fn checkpoints_that_are_cut_off_are_errors() {
    let encoded = one_span().3.encode();
    for end in 0..encoded.len() {
        assert!(Checkpoint::decode(&encoded[..end]).is_err(), "{end}");
    }
    let columns = zstd::decode_all(&encoded[..]).unwrap();
    for end in 0..columns.len() {
        let cut = zstd::encode_all(&columns[..end], 1).unwrap();
        assert!(matches!(Checkpoint::decode(&cut), Err(ZstdError::Checkpoint(_))), "{end}");
    }
}

proptest! {
    #[test]
    fn broken_checkpoints_and_sources_give_errors_or_wrong_bytes(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        in_source: bool,
    ) {
        let (layer, data, span, checkpoint) = one_span();
        let (mut columns, mut source) = (zstd::decode_all(&checkpoint.encode()[..]).unwrap(), source(span, layer).to_vec());
        let broken = if in_source { &mut source } else { &mut columns };
        for (at, value) in flips {
            let at = at.index(broken.len());
            broken[at] ^= value;
        }
        let encoded = zstd::encode_all(&columns[..], 1).unwrap();
        let resumed = Checkpoint::decode(&encoded).and_then(|checkpoint| resume(span, &checkpoint, &source));
        let range = span.device_range();
        let good = &data[range.start as usize..range.end as usize];
        if let Ok(out) = resumed {
            prop_assert_eq!(out == good, *blake3::hash(&out).as_bytes() == span.blake3);
        }
    }

    #[test]
    fn any_bytes_are_a_checkpoint_or_an_error(columns in prop::collection::vec(any::<u8>(), 0..200)) {
        let encoded = zstd::encode_all(&columns[..], 1).unwrap();
        let (layer, _, span, _) = one_span();
        if let Ok(checkpoint) = Checkpoint::decode(&encoded) {
            let _ = resume(span, &checkpoint, source(span, layer));
        }
        let _ = Checkpoint::decode(&columns);
    }
}

/// Whether the matches that were seen in `layer`'s blocks copy what stands in `data`, and fill the gaps between literals.
fn seen(layer: &[u8], data: &[u8]) {
    let mut start = 0;
    for block in blocks(layer).unwrap() {
        for found in block.matches {
            let at = start + found.at as usize;
            let from = at - found.offset as usize;
            assert!(
                (from..).zip(at..at + found.len as usize).all(|(from, to)| data[from] == data[to]),
                "match at {at}"
            );
        }
        start += block.len as usize;
    }
    assert_eq!(start, data.len());
}

#[test]
fn the_matches_that_are_seen_are_those_that_libzstd_makes() {
    let data = near(37, 1_000_000, 30_000);
    for level in [-5, 1, 3, 6, 9, 12, 16, 19] {
        for (window, flush) in [(None, usize::MAX), (Some(10), 5000), (Some(20), 77)] {
            seen(&frame(&data, How { level, window, flush, ..PLAIN }), &data);
        }
    }
    for args in [&["-qc", "-T2", "-5"][..], &["-qc", "--ultra", "-22"], &["-qc", "--long=24"]] {
        seen(&piped("zstd", args, &data), &data);
    }
}
