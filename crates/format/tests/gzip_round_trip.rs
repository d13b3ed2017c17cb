//! Layers of every gzip flavour are cut into spans that decode alone, in runs, and the same however they are pushed.
mod gzip_support;

use clipper_format::{
    gzip::{Checkpoint, IndexOptions, IndexedSpan, Indexer},
    span::Start,
};
use gzip_support::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

const SPAN: u32 = 64 << 10;

#[test]
fn every_level() {
    let data = layer_like(1, 700_001);
    for level in 0..=9 {
        let spans = check(&member(&data, level), &data, SPAN);
        assert!(spans.len() > 10, "level {level}: {} spans", spans.len());
    }
}

#[test]
fn every_span_size_holds() {
    let data = layer_like(2, 3_000_000);
    let layer = member(&data, 6);
    for size in [64 << 10, 100_000, 256 << 10, 1 << 20, 4 << 20] {
        check(&layer, &data, size);
    }
}

#[test]
fn nothing_and_next_to_nothing() {
    assert!(check(&member(b"", 6), b"", SPAN).is_empty());
    let spans = check(&member(b"a", 6), b"a", SPAN);
    assert_eq!((spans.len(), spans[0].start), (1, Start::GzipMember { skip: 0 }));
    for length in [4095, 4096, 4097, 65535, 65536, 65537, 65536 + 32768, 65536 + 32769, 2 * 65536] {
        let data = layer_like(3, length);
        check(&member(&data, 6), &data, SPAN);
    }
}

#[test]
fn zeros_are_cut_too() {
    let data = vec![0; 5 << 20];
    let spans = check(&member(&data, 9), &data, SPAN);
    assert_eq!(spans.len(), 80, "equal cost everywhere: the longest spans win");
    assert!(spans.iter().all(|span| gzip(span).is_none_or(|c| c.window_bytes() == 0)));
}

#[test]
fn noise_is_stored_and_needs_no_window() {
    let mut rng = StdRng::seed_from_u64(4);
    let data: Vec<u8> = (0..500_000).map(|_| rng.random()).collect();
    let spans = check(&member(&data, 6), &data, SPAN);
    assert!(spans.iter().filter_map(gzip).all(|c| c.window_bytes() < 64));
}

#[test]
fn members_of_all_sizes() {
    let data = layer_like(5, 900_000);
    let mut rng = StdRng::seed_from_u64(5);
    let (mut layer, mut at) = (Vec::new(), 0);
    while at < data.len() {
        let most = 1usize << rng.random_range(1..19);
        let length = rng.random_range(0..most).min(data.len() - at);
        layer.extend(member(&data[at..at + length], rng.random_range(0..=9)));
        at += length;
    }
    check(&layer, &data, SPAN);
}

#[test]
fn a_span_that_starts_with_a_member_needs_no_checkpoint() {
    let data = layer_like(6, 1 << 20);
    let empty = member(b"", 6);
    let layer: Vec<u8> =
        data.chunks(SPAN as usize).flat_map(|piece| [member(piece, 6), empty.clone()].concat()).collect();
    let spans = check(&layer, &data, SPAN);
    assert_eq!(spans.len(), 16);
    assert!(spans.iter().all(|span| span.start == (Start::GzipMember { skip: 0 }) && span.checkpoint.is_none()));
}

#[test]
fn pigz_and_bgzip() {
    let data = layer_like(7, 1_500_000);
    check(&pigz_like(&data, 128 << 10), &data, SPAN);
    check(&pigz_like(&data, 5000), &data, 256 << 10);
    let spans = check(&bgzip_like(&data), &data, 256 << 10);
    let kept: usize = spans.iter().filter_map(gzip).map(Checkpoint::window_bytes).sum();
    assert!(kept < spans.len() * 3000, "cuts are made just after members start: {kept} bytes kept");
}

/// A member for each of `parts`, and what they decode to.
fn members(parts: impl IntoIterator<Item = Vec<u8>>) -> (Vec<u8>, Vec<u8>) {
    let (mut layer, mut data) = (Vec::new(), Vec::new());
    for part in parts {
        layer.extend(member(&part, 6));
        data.extend(part);
    }
    (layer, data)
}

#[test]
fn estargz_a_member_for_each_file_needs_no_checkpoints() {
    // Headers and contents in members of their own, padded as tar has it, and the table of contents in the last.
    let mut rng = StdRng::seed_from_u64(10);
    let files = (0..400).flat_map(|file| {
        let size = 1usize << rng.random_range(0..16);
        let size = rng.random_range(0..size);
        [layer_like(file, 512), layer_like(1000 + file, size.next_multiple_of(512))]
    });
    let toc = layer_like(11, 40_960);
    let (mut layer, data) = members(files.chain([toc]));
    layer.extend(member(b"", 0));
    for span_size in [SPAN, 256 << 10, 1 << 20] {
        let spans = check(&layer, &data, span_size);
        assert!(spans.iter().all(|span| span.checkpoint.is_none()), "spans of {span_size}");
        let skipped: u64 = spans.iter().map(skipped).sum();
        let most = if span_size == SPAN { data.len() / 5 } else { data.len() / 20 };
        assert!(skipped < most as u64, "spans of {span_size}: {skipped} of {} bytes are decoded twice", data.len());
    }
}

fn skipped(span: &IndexedSpan) -> u64 {
    match span.start {
        Start::GzipMember { skip } => skip.into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_up_to_the_length_of_a_span_need_no_checkpoints() {
    for size in [1, 700, 4097, 40_000, SPAN as usize - 512, SPAN as usize] {
        let count = (1 << 20) / size.max(64);
        let (layer, data) = members((0..count as u64).map(|seed| layer_like(seed, size)));
        let spans = check(&layer, &data, SPAN);
        assert!(spans.iter().all(|span| span.checkpoint.is_none()), "members of {size}");
        assert!(spans.iter().all(|span| skipped(span) < u64::from(SPAN)));
    }
}

#[test]
fn only_members_longer_than_a_span_need_checkpoints_and_only_inside() {
    let (layer, data) = members([1000, 300_000, 100, 5000, 400_000, 513].map(|size| layer_like(size as u64, size)));
    let spans = check(&layer, &data, SPAN);
    for span in &spans {
        let inside = [1000..301_000, 306_100..706_100].into_iter().find(|member| member.contains(&span.device_offset));
        let far = inside.is_some_and(|member| span.device_offset - member.start > u64::from(SPAN) / 8);
        assert_eq!(span.checkpoint.is_some(), far, "span at {}", span.device_offset);
    }
}

#[test]
fn optional_header_fields_and_padding() {
    let data = layer_like(8, 200_000);
    let plain = member(&data, 6);
    let body = &plain[10..];
    let mut header = b"\x1f\x8b\x08\x1e\0\0\0\0\0\xff\x05\0extraname\0a comment\0".to_vec();
    header.extend((crc32fast::hash(&header) as u16).to_le_bytes());
    let layer = [&header, body, &header, body, &[0; 5000]].concat();
    check(&layer, &[&data[..], &data].concat(), SPAN);
}

#[test]
fn empty_blocks_everywhere() {
    let mut fixed = Fixed::default();
    for i in 0..300_000u32 {
        if i % 4096 == 0 {
            fixed.block(false);
            fixed.end_block();
            fixed.stored(false, b"");
            fixed.stored(false, &[i as u8; 3]);
            fixed.block(false);
        }
        fixed.literal((i >> 3) as u8);
        if i % 4096 == 4095 {
            fixed.end_block();
        }
    }
    fixed.end_block();
    fixed.stored(true, b"");
    let (layer, data) = fixed.member();
    check(&layer, &data, SPAN);
}

/// Symbols of a Deflate stream: a literal, or a match as far as it is possible.
fn symbols() -> impl Strategy<Value = Vec<(usize, usize)>> {
    let length = prop_oneof![3 => Just(0usize), 2 => 3..40usize, 1 => Just(258usize), 1 => 3..=258usize];
    let distance = prop_oneof![1..20usize, Just(32768usize), 1..=32768usize, 3900..4300usize];
    prop::collection::vec((length, distance), 500..4000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_matches(symbols in symbols(), piece in 1..9000usize) {
        let mut fixed = Fixed::default();
        fixed.block(false);
        for (i, (length, distance)) in symbols.into_iter().enumerate() {
            if i % 700 == 699 {
                fixed.end_block();
                fixed.block(false);
            }
            if length == 0 || fixed.data.is_empty() {
                fixed.literal(distance as u8);
            } else {
                fixed.copy(length, distance.min(fixed.data.len()));
            }
        }
        fixed.end_block();
        fixed.block(true);
        fixed.end_block();
        let (layer, data) = fixed.member();
        let whole = check(&layer, &data, SPAN);
        same(&whole, &index(&layer, SPAN, piece).unwrap());
    }

    #[test]
    fn any_layer(seed: u64, length in 0..600_000usize, level in 0..10u32, cut in 0..600_000usize) {
        let data = layer_like(seed, length);
        let (head, tail) = data.split_at(cut.min(length));
        check(&[member(head, level), member(tail, 9 - level)].concat(), &data, SPAN);
    }
}

fn same(a: &[IndexedSpan], b: &[IndexedSpan]) {
    assert_eq!(table(a), table(b));
    assert!(a.iter().zip(b).all(|(a, b)| a.checkpoint == b.checkpoint && a.bytes == b.bytes));
}

#[test]
fn pushes_of_any_size_give_the_same_spans() {
    let data = layer_like(9, 600_000);
    let layer = [member(&data, 6), bgzip_like(&data), pigz_like(&data, 30_000)].concat();
    let whole = index(&layer, SPAN, usize::MAX).unwrap();
    for piece in [1, 2, 3, 13, 1000, 65536, 65537, 100_000] {
        same(&whole, &index(&layer, SPAN, piece).unwrap());
    }
    let mut rng = StdRng::seed_from_u64(9);
    let mut indexer = Indexer::new(IndexOptions { span_size: SPAN });
    let (mut spans, mut rest) = (Vec::new(), &layer[..]);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rng.random_range(0..5000).min(rest.len()));
        indexer.push(piece, &mut spans).unwrap();
        rest = after;
    }
    indexer.finish(&mut spans).unwrap();
    same(&whole, &spans);
}
