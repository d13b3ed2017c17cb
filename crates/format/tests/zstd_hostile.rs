//! Broken zstd layers and spans give errors, never a panic, and never other bytes unnoticed.
mod zstd_support;

use clipper_format::{
    gzip::{IndexOptions, MAX_SPAN_SOURCE},
    span::{MAX_SKIP, Span, Start},
    zstd::{Indexer, MAX_WINDOW, SpanDecoder, ZstdError},
};
use proptest::prelude::*;
use std::sync::LazyLock;
use zstd_support::*;

const SPAN: u32 = 64 << 10;

/// A layer of two frames, 3000 bytes in all, with a skippable frame between; and where the second begins.
fn small(checksum: bool) -> (Vec<u8>, Vec<u8>, usize) {
    let data = layer_like(20, 3000);
    let how = How { checksum, ..PLAIN };
    let first = [frame(&data[..1000], how), skippable(1, b"between")].concat();
    let second = frame(&data[1000..], how);
    ([&first[..], &second].concat(), data, first.len())
}

#[test]
fn every_truncation_is_an_error() {
    let (layer, data, second) = small(true);
    let first = frame(&data[..1000], PLAIN).len();
    for end in 0..layer.len() {
        let result = index(&layer[..end], SPAN, 77);
        if end == first || end == second {
            assert!(result.is_ok(), "whole frames");
            continue;
        }
        let frame = [first, second].iter().filter(|&&border| end > border).count() as u64;
        assert_eq!(result.unwrap_err(), ZstdError::Truncated { frame, offset: end as u64 });
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for checksum in [true, false] {
        let (layer, data, _) = small(checksum);
        for bit in 0..layer.len() * 8 {
            let mut broken = layer.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let reference = zstd::stream::decode_all(&broken[..]);
            if let Ok(spans) = index(&broken, SPAN, usize::MAX) {
                let all: Vec<u8> = spans.into_iter().flat_map(|span| span.bytes).collect();
                // Without a checksum only the layer's digest tells; with one, bits of the skippable frame mean nothing.
                assert_eq!(Some(&all), reference.as_ref().ok(), "bit {bit}: libzstd decodes otherwise");
                assert!(
                    !checksum || all == data || all == data[1000..] || all == data[..1000],
                    "bit {bit} changed bytes unnoticed"
                );
            }
        }
    }
}

fn error(layer: &[u8]) -> ZstdError {
    index(layer, SPAN, 100).unwrap_err()
}

#[test]
fn faults_are_named_with_frame_and_byte() {
    let first = frame(b"first", PLAIN);
    let at = first.len() as u64;
    let then = |bytes: &[u8]| error(&[&first[..], bytes].concat());
    assert_eq!(error(b"PK\x03\x04"), ZstdError::NotZstd { offset: 0 });
    assert_eq!(error(b""), ZstdError::Truncated { frame: 0, offset: 0 });
    assert_eq!(then(b"garbage"), ZstdError::Garbage { frame: 0, offset: at });
    assert_eq!(then(&[0; 9]), ZstdError::Garbage { frame: 0, offset: at });
    assert!(matches!(then(&[0x28, 0xb5, 0x2f, 0xfd, 8]), ZstdError::Header { frame: 1, offset, .. } if offset == at));
    // Dictionary ID 0x1234; a window of 256 MiB; a reserved type of block.
    let dictionary = [0x28, 0xb5, 0x2f, 0xfd, 2, 0, 0x34, 0x12];
    assert_eq!(then(&dictionary), ZstdError::Dictionary { frame: 1, offset: at, id: 0x1234 });
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0, 18 << 3];
    assert_eq!(then(&window), ZstdError::Window { frame: 1, offset: at, window: 2 * MAX_WINDOW });
    let block = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 6, 0, 0];
    assert!(matches!(then(&block), ZstdError::Header { frame: 1, offset, .. } if offset == at + 6));
    // 35 bytes are promised, and an empty block is all there is.
    let short = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x23, 1, 0, 0];
    assert!(matches!(then(&short), ZstdError::Frame { frame: 1, offset, .. } if offset == at));
    let mut wrong = frame(b"second", PLAIN);
    *wrong.last_mut().unwrap() ^= 1;
    let error = then(&wrong);
    assert!(matches!(error, ZstdError::Frame { frame: 1, offset, .. } if offset == at), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn a_frame_made_with_a_dictionary_is_refused() {
    let samples: Vec<Vec<u8>> = (0..200).map(|seed| layer_like(seed, 2000)).collect();
    let dictionary = zstd::dict::from_samples(&samples, 4000).unwrap();
    let mut encoder = zstd::Encoder::with_dictionary(Vec::new(), 3, &dictionary).unwrap();
    std::io::copy(&mut &samples[0][..], &mut encoder).unwrap();
    assert!(matches!(error(&encoder.finish().unwrap()), ZstdError::Dictionary { frame: 0, .. }));
}

#[test]
fn a_bomb_comes_in_spans() {
    // Runs of 128 KiB in 4 bytes each, without end.
    let mut indexer = Indexer::new(IndexOptions { span_size: SPAN });
    let mut spans = Vec::new();
    indexer.push(&[0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3], &mut spans).unwrap();
    let run = (131_072u32 << 3 | 2).to_le_bytes();
    for _ in 0..2000 {
        indexer.push(&[run[0], run[1], run[2], b'x'], &mut spans).unwrap();
    }
    let held = 2000 * 131_072 - spans.iter().map(|span| span.bytes.len()).sum::<usize>();
    assert!(held < 100 << 20, "{held} bytes are held back");
    indexer.push(&[7, 0, 0, b'x'], &mut spans).unwrap_err();
}

#[test]
fn blocks_without_bytes_are_given_up_at_the_limit() {
    let mut indexer = Indexer::new(IndexOptions { span_size: SPAN });
    let mut spans = Vec::new();
    indexer.push(&[0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3], &mut spans).unwrap();
    let empty = [0; 3 << 14];
    let error = (0..2000).find_map(|_| indexer.push(&empty, &mut spans).err());
    assert!(spans.is_empty());
    assert_eq!(error, Some(ZstdError::SpanTooLong { offset: 0 }));
}

#[test]
fn a_gap_that_no_span_can_bridge() {
    let gap = skippable(0, &vec![0; MAX_SPAN_SOURCE as usize]);
    let layer = [frame(b"start", PLAIN), gap, frame(b"end", PLAIN)].concat();
    assert_eq!(index(&layer, SPAN, 1 << 20).unwrap_err(), ZstdError::SpanTooLong { offset: 0 });
}

/// A layer of small frames, its data, and a span from the middle of it that starts and ends inside a frame.
fn one_span() -> &'static (Vec<u8>, Vec<u8>, Span) {
    static ONE: LazyLock<(Vec<u8>, Vec<u8>, Span)> = LazyLock::new(|| {
        let data = layer_like(22, 300_000);
        let layer = frames(&data, std::iter::repeat_n(7777, 38), How { checksum: false, ..PLAIN });
        let spans = table(&index(&layer, SPAN, usize::MAX).unwrap());
        let inside = |span: &&Span| !matches!(span.start, Start::ZstdFrame { skip: 0 });
        let span = spans.iter().find(inside).unwrap().clone();
        (layer, data, span)
    });
    &ONE
}

#[test]
fn a_span_is_refused_where_it_does_not_belong() {
    let (layer, data, span) = one_span();
    let source = source(span, layer);
    let good = decode(span, source).unwrap();
    assert!(good == data[span.device_offset as usize..][..good.len()]);
    for start in [Start::Stored, Start::GzipMember { skip: 0 }, Start::ZstdFrame { skip: MAX_SKIP + 1 }] {
        assert!(SpanDecoder::start(&Span { start, ..span.clone() }).is_err(), "{start:?}");
    }
    let mut out = good;
    let mut decoder = SpanDecoder::start(span).unwrap();
    let other = Span { device_offset: span.device_offset + 4096, ..span.clone() };
    assert!(decoder.decode(&other, source, &mut out).is_err(), "another span");
    assert!(decoder.decode(span, source, &mut out).is_err(), "after an error");
    let short = out.len() - 1;
    assert!(SpanDecoder::start(span).unwrap().decode(span, source, &mut out[..short]).is_err(), "short buffer");
    let mut decoder = SpanDecoder::start(span).unwrap();
    decoder.decode(span, source, &mut out).unwrap();
    assert!(decoder.decode(span, source, &mut out).is_err(), "the same span again");
}

#[test]
fn a_span_must_be_whole_frames_that_decode_to_enough() {
    let (layer, _, span) = one_span();
    let good = source(span, layer);
    let with = |source: &[u8], span: Span| decode(&Span { source_len: source.len() as u32, ..span }, source);
    for missing in [1, 2, 9, 100, good.len()] {
        assert!(with(&good[..good.len() - missing], span.clone()).is_err(), "{missing} missing");
    }
    for tail in [&b"x"[..], b"PK\x03\x04", &[0; 100], &good[..9]] {
        assert!(with(&[good, tail].concat(), span.clone()).is_err(), "{tail:x?} after it");
    }
    assert!(with(&good[1..], span.clone()).is_err());
    let long = Span { device_len: span.device_len + 65536, ..span.clone() };
    assert!(matches!(with(good, long), Err(ZstdError::Span { .. })), "more device bytes than there are");
    let far = Span { start: Start::ZstdFrame { skip: MAX_SKIP }, ..span.clone() };
    assert!(matches!(with(good, far), Err(ZstdError::Span { .. })), "more to skip than there is");
}

proptest! {
    #[test]
    fn any_bytes_are_indexed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), piece in 1..100usize) {
        let _ = index(&bytes, SPAN, piece);
        let _ = index(&[&[0x28, 0xb5, 0x2f, 0xfd][..], &bytes].concat(), SPAN, piece);
    }

    #[test]
    fn broken_source_bytes_give_errors_or_wrong_bytes(flips in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..5)) {
        let (layer, data, span) = one_span();
        let mut source = source(span, layer).to_vec();
        for (at, value) in flips {
            let at = at.index(source.len());
            source[at] ^= value;
        }
        let good = &data[span.device_offset as usize..][..span.device_len as usize];
        if let Ok(out) = decode(span, &source) {
            prop_assert_eq!(out == good, *blake3::hash(&out).as_bytes() == span.blake3);
        }
    }

    #[test]
    fn a_span_at_any_place_never_panics(skip: u32, len in 0..200_000u32, from in 0..5000u32, source_len in 0..40_000u32) {
        let (layer, _, span) = one_span();
        let span = Span { start: Start::ZstdFrame { skip }, device_len: len, source_offset: from.into(), source_len, ..span.clone() };
        let _ = decode(&span, source(&span, layer));
    }
}
