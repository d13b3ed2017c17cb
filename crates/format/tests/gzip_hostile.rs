//! Broken layers, spans and checkpoints give errors or wrong bytes, never a panic.
mod gzip_support;

use clipper_format::{
    gzip::{
        Checkpoint, Fault, GzipError, IndexOptions, Indexer, MAX_SPAN_SOURCE, SpanDecoder, decode_group, encode_group,
    },
    span::{Span, Start},
};
use flate2::{Decompress, FlushDecompress, Status};
use gzip_support::*;
use proptest::prelude::*;
use std::sync::LazyLock;

const SPAN: u32 = 64 << 10;

fn small() -> (Vec<u8>, Vec<u8>) {
    let data = layer_like(20, 3000);
    ([member(&data[..1000], 6), member(&data[1000..], 6)].concat(), data)
}

#[test]
fn every_truncation_is_an_error() {
    let (layer, data) = small();
    let first = member(&data[..1000], 6).len();
    for end in 0..layer.len() {
        match index(&layer[..end], SPAN, 77) {
            Ok(_) => assert_eq!(end, first, "a whole number of members"),
            Err(GzipError::Truncated { member, offset }) => {
                assert_eq!((member, offset), (u64::from(end > first), end as u64));
            }
            Err(error) => panic!("cut at {end}: {error}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (layer, data) = small();
    for bit in 0..layer.len() * 8 {
        let mut broken = layer.clone();
        broken[bit / 8] ^= 1 << (bit % 8);
        if let Ok(spans) = index(&broken, SPAN, usize::MAX) {
            let all: Vec<u8> = spans.into_iter().flat_map(|span| span.bytes).collect();
            assert!(all == data, "bit {bit} changed the bytes unnoticed");
        }
    }
}

#[test]
fn a_broken_stream_is_refused_if_and_only_if_zlib_refuses_it() {
    for level in [1, 6, 9] {
        let layer = member(&layer_like(23 + u64::from(level), 2500), level);
        let mut refused = 0;
        for bit in PLAIN_HEADER.len() * 8..(layer.len() - 8) * 8 {
            let mut broken = layer.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let deflate = &broken[PLAIN_HEADER.len()..];
            let mut zlib = Decompress::new(false);
            let mut out = Vec::with_capacity(1 << 20);
            let status = zlib.decompress_vec(deflate, &mut out, FlushDecompress::Finish);
            let read = zlib.total_in() as usize;
            // Whatever trailer comes next is made right, so that only the stream itself counts.
            let accepted = matches!(status, Ok(Status::StreamEnd));
            let end = PLAIN_HEADER.len() + if accepted { read } else { deflate.len() };
            let trailer = [crc32fast::hash(&out).to_le_bytes(), (out.len() as u32).to_le_bytes()].concat();
            match index(&[&broken[..end], &trailer].concat(), SPAN, usize::MAX) {
                Ok(spans) => {
                    let all: Vec<u8> = spans.into_iter().flat_map(|span| span.bytes).collect();
                    assert!(accepted && all == out, "level {level}, bit {bit}: zlib says {status:?}");
                }
                Err(error) => {
                    assert!(!accepted, "level {level}, bit {bit}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 50, "level {level}: {refused} refused");
    }
}

fn fault(layer: &[u8]) -> (u64, Fault) {
    match index(layer, SPAN, usize::MAX) {
        Err(GzipError::Deflate { member, fault, .. }) => (member, fault),
        other => panic!("{other:?}"),
    }
}

#[test]
fn faults_are_named_with_member_and_byte() {
    let good = member(b"good", 6);
    let deflate = |bytes: &[u8]| [&good[..], &PLAIN_HEADER, bytes, &[0; 16]].concat();
    assert_eq!(fault(&deflate(&[7])), (1, Fault::BlockType));
    assert_eq!(fault(&deflate(&[1, 5, 0, 5, 0])), (1, Fault::StoredLength));
    assert_eq!(fault(&deflate(&[0xfd, 0xff])), (1, Fault::TooManyCodes));
    assert_eq!(fault(&deflate(&[5, 0, 0, 0, 0])), (1, Fault::PrecodeLengths));
    let mut far = Fixed::default();
    far.block(true);
    far.literal(b'a');
    far.copy_unchecked(3, 2);
    far.end_block();
    let (layer, _) = far.member();
    assert_eq!(fault(&[&good[..], &layer].concat()), (1, Fault::TooFarBack));
    let mut unused = Fixed::default();
    unused.block(true);
    unused.put(0b0110_0011, 8); // 11000110: literal/length symbol 286
    let (layer, _) = unused.member();
    assert_eq!(fault(&[&layer[..], &[0; 8]].concat()), (0, Fault::LitlenCode));

    let text = index(&deflate(&[7]), SPAN, 1).unwrap_err().to_string();
    assert_eq!(text, format!("gzip member 1, byte {}: reserved block type", good.len() + 10));
}

#[test]
fn history_does_not_reach_into_the_member_before() {
    let mut second = Fixed::default();
    second.block(true);
    second.copy_unchecked(10, 1);
    second.end_block();
    let (second, _) = second.member();
    assert_eq!(fault(&[member(&[b'x'; 40_000], 6), second].concat()), (1, Fault::TooFarBack));
}

#[test]
fn trailers_are_checked() {
    let data = layer_like(21, 100_000);
    let good = member(&data, 6);
    let n = good.len();
    let mut bad = good.clone();
    bad[n - 8] ^= 1;
    let found = crc32fast::hash(&data);
    let offset = n as u64 - 8;
    let error = index(&bad, SPAN, usize::MAX).unwrap_err();
    assert_eq!(error, GzipError::Crc { member: 0, offset, found, wanted: found ^ 1 });
    let mut bad = good;
    bad[n - 4] ^= 1;
    let error = index(&bad, SPAN, usize::MAX).unwrap_err();
    assert_eq!(error, GzipError::Length { member: 0, offset, found: 100_000, wanted: 100_001 });
}

#[test]
fn garbage_is_an_error_and_zeros_are_not() {
    let good = member(b"good", 6);
    let n = good.len() as u64;
    assert_eq!(index(b"PK\x03\x04", SPAN, 1).unwrap_err(), GzipError::NotGzip { offset: 0 });
    assert_eq!(index(&[0; 100], SPAN, 100).unwrap_err(), GzipError::NotGzip { offset: 0 });
    let layer = [&good[..], b"tail"].concat();
    assert_eq!(index(&layer, SPAN, 1).unwrap_err(), GzipError::Garbage { member: 0, offset: n });
    let layer = [&good[..], &[0; 700], b"tail"].concat();
    assert_eq!(index(&layer, SPAN, 64).unwrap_err(), GzipError::Garbage { member: 0, offset: n + 700 });
    assert_eq!(index(&[&good[..], &[0; 700]].concat(), SPAN, 64).unwrap().len(), 1);
    let layer = [&good[..], &[0x1f]].concat();
    assert_eq!(index(&layer, SPAN, 64).unwrap_err(), GzipError::Truncated { member: 1, offset: n + 1 });
}

#[test]
fn an_error_stays() {
    let mut indexer = Indexer::new(IndexOptions { span_size: SPAN });
    let mut spans = Vec::new();
    let error = indexer.push(b"not gzip", &mut spans).unwrap_err();
    assert_eq!(indexer.push(&member(b"good", 6), &mut spans).unwrap_err(), error);
    assert_eq!(indexer.finish(&mut spans).unwrap_err(), error);
    assert!(spans.is_empty());
}

#[test]
fn members_without_bytes_cannot_stretch_a_span_for_ever() {
    let empty = member(b"", 6);
    let mut layer = member(b"start", 6);
    layer.extend(empty.repeat(MAX_SPAN_SOURCE as usize / empty.len() + 1));
    layer.extend(member(b"end", 6));
    assert!(matches!(index(&layer, SPAN, 1 << 20), Err(GzipError::SpanTooLong { member: _, offset: 0 })));
}

/// A layer, its data, and a span of it with its checkpoint.
type OneSpan = (Vec<u8>, Vec<u8>, Span, Checkpoint);

fn one_span() -> &'static OneSpan {
    static ONE: LazyLock<OneSpan> = LazyLock::new(make_one_span);
    &ONE
}

fn make_one_span() -> OneSpan {
    let data = layer_like(22, 300_000);
    let layer = member(&data, 6);
    let indexed = index(&layer, SPAN, usize::MAX).unwrap();
    let i = indexed.iter().position(|span| gzip(span).is_some_and(|c| c.window_bytes() > 0)).unwrap();
    (layer, data, table(&indexed)[i].clone(), gzip(&indexed[i]).cloned().unwrap())
}

fn decode(span: &Span, checkpoint: &Checkpoint, source: &[u8]) -> Result<Vec<u8>, GzipError> {
    let mut out = vec![0; span.device_len as usize];
    SpanDecoder::start(span, Some(checkpoint))?.decode(span, source, &mut out)?;
    Ok(out)
}

#[test]
fn a_span_is_refused_where_it_does_not_belong() {
    let (layer, data, span, checkpoint) = one_span();
    let source = source(span, layer);
    let mut out = vec![0; span.device_len as usize];
    assert!(SpanDecoder::start(span, None).is_err(), "no checkpoint");
    let stored = Span { start: Start::Stored, ..span.clone() };
    assert!(SpanDecoder::start(&stored, None).is_err(), "not gzip");
    let far = Span { source_offset: u64::MAX - 9, ..span.clone() };
    assert!(SpanDecoder::start(&far, Some(checkpoint)).is_err(), "offset out of range");

    let mut decoder = SpanDecoder::start(span, Some(checkpoint)).unwrap();
    let other = Span { device_offset: span.device_offset + 4096, ..span.clone() };
    assert!(decoder.decode(&other, source, &mut out).is_err(), "another span");
    assert!(decoder.decode(span, source, &mut out).is_err(), "after an error");

    let mut decoder = SpanDecoder::start(span, Some(checkpoint)).unwrap();
    let short = out.len() - 1;
    assert!(decoder.decode(span, source, &mut out[..short]).is_err(), "short buffer");
    let mut decoder = SpanDecoder::start(span, Some(checkpoint)).unwrap();
    decoder.decode(span, source, &mut out).unwrap();
    assert!(out == data[span.device_offset as usize..][..out.len()]);
    assert!(decoder.decode(span, source, &mut out).is_err(), "the same span again");
}

#[test]
fn a_span_with_too_few_source_bytes_is_truncated() {
    let (layer, _, span, checkpoint) = one_span();
    for missing in [1, 2, 9, 100, span.source_len] {
        let span = Span { source_len: span.source_len - missing, ..span.clone() };
        let end = span.source_range().end;
        let error = decode(&span, checkpoint, source(&span, layer)).err();
        assert_eq!(error, Some(GzipError::Truncated { member: 0, offset: end }), "{missing} missing");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_indexed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), piece in 1..100usize) {
        let _ = index(&bytes, SPAN, piece);
        let _ = index(&[&PLAIN_HEADER[..], &bytes].concat(), SPAN, piece);
    }

    #[test]
    fn broken_source_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let (layer, data, span, checkpoint) = one_span();
        let mut source = source(span, layer).to_vec();
        for (at, value) in flips {
            let at = at.index(source.len());
            source[at] ^= value;
        }
        let good = &data[span.device_offset as usize..][..span.device_len as usize];
        if let Ok(out) = decode(span, checkpoint, &source) {
            prop_assert_eq!(out == good, *blake3::hash(&out).as_bytes() == span.blake3);
        }
    }

    #[test]
    fn broken_checkpoints_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        bit in 0..9u8,
        skip: u16,
    ) {
        let (layer, _, span, checkpoint) = one_span();
        let mut encoded = checkpoint.encode();
        for (at, value) in flips {
            let at = at.index(encoded.len().min(200));
            encoded[at] ^= value;
        }
        let span = Span { start: Start::Gzip { bit, skip, checkpoint: 0 }, ..span.clone() };
        if let Ok(checkpoint) = Checkpoint::decode(&encoded) {
            let _ = decode(&span, &checkpoint, source(&span, layer));
        }
    }

    #[test]
    fn broken_groups_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Checkpoint::decode(&bytes);
        let _ = decode_group(&bytes);
    }
}

#[test]
fn groups_say_what_is_wrong() {
    let (_, _, _, checkpoint) = one_span();
    let group = encode_group(&[checkpoint.clone(), checkpoint.clone()], 3);
    assert_eq!(decode_group(&group).unwrap().len(), 2);
    assert!(decode_group(&group[..group.len() - 1]).is_err());
    let encoded = checkpoint.encode();
    assert!(Checkpoint::decode(&encoded[..encoded.len() - 1]).is_err());
    assert!(Checkpoint::decode(&[&encoded[..], &[0]].concat()).is_err());
    assert!(Checkpoint::decode(&[]).is_err());
}
