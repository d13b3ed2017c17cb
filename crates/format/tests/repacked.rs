//! gzip layers repacked by the matches that their own compressor found: the same bytes come out, whatever is claimed of
//! them, and no more of them than a search would leave.
mod gzip_support;

use clipper_format::chunked::{Assembler, Compression, Cutter, Packer};
use clipper_format::gzip::{IndexOptions, IndexedSpan, Indexer};
use clipper_format::parse::{Match, Parse};
use clipper_format::tar::{LayerWalker, Limits};
use clipper_format::{stored::StoredIndexer, zstd};
use gzip_support::*;
use proptest::prelude::*;

const SPAN: u32 = 256 << 10;

/// The spans of a gzip layer with what is known of them, pushed in pieces of `piece` bytes.
fn known(layer: &[u8], piece: usize) -> Vec<IndexedSpan> {
    let mut indexer = Indexer::with_parse(IndexOptions { span_size: SPAN });
    let mut spans = Vec::new();
    layer.chunks(piece).for_each(|part| indexer.push(part, &mut spans).unwrap());
    indexer.finish(&mut spans).unwrap();
    spans
}

/// The same bytes, of which nothing is known.
fn unknown(bytes: &[u8]) -> Vec<IndexedSpan> {
    let mut indexer = StoredIndexer::new(IndexOptions { span_size: SPAN });
    let mut spans = Vec::new();
    indexer.push(bytes, &mut spans);
    indexer.finish(&mut spans);
    spans
}

/// The blob that spans are repacked to.
fn repack(spans: Vec<IndexedSpan>) -> Vec<u8> {
    let mut walker = LayerWalker::listing(Limits::default());
    let (mut cutter, mut groups) = (Cutter::new(SPAN), Vec::new());
    for span in spans {
        // What isn't a tar has no files; that is all the same here.
        let listed = walker.push(&span.bytes).map(|()| walker.take_listed()).unwrap_or_default();
        span.parse.into_iter().for_each(|parse| cutter.learn(parse));
        cutter.push(&span.bytes, listed, &mut groups);
    }
    cutter.finish(&mut groups);
    let compression = Compression::Zstd(5);
    let (mut packer, mut assembler) = (Packer::new(compression).unwrap(), Assembler::new(compression));
    let mut blob = Vec::new();
    for group in groups {
        blob.extend(assembler.push(packer.pack(group).unwrap()).unwrap());
    }
    blob.extend(assembler.finish().unwrap().tail);
    blob
}

/// What a repacked blob decodes to.
fn decoded(blob: &[u8]) -> Vec<u8> {
    let mut indexer = zstd::Indexer::new(IndexOptions { span_size: SPAN });
    let mut spans: Vec<IndexedSpan> = Vec::new();
    indexer.push(blob, &mut spans).unwrap();
    indexer.finish(&mut spans).unwrap();
    spans.into_iter().flat_map(|span| span.bytes).collect()
}

/// A tar of files of many sizes.
fn tar(seed: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for n in 0..120u64 {
        let size = [700, 9_000, 90, 40_000, 300_000, 0, 130_000, 5_000][(n % 8) as usize] + n as usize;
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("dir/{n}"), &layer_like(seed + n, size)[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// How many bytes the matches of a span cover; all of them are right.
fn covered(bytes: &[u8], start: usize, parse: &Parse) -> usize {
    let mut covered = 0;
    for Match { at, len, distance } in parse.matches() {
        let (at, len, distance) = (start + at as usize, usize::from(len), usize::from(distance));
        for place in at..at + len {
            assert_eq!(bytes[place], bytes[place - distance], "{len} bytes at {at} from {distance} before");
        }
        covered += len;
    }
    covered
}

#[test]
fn spans_tell_the_matches_of_every_gzip_flavour() {
    let data = tar(1);
    let layers = [member(&data, 1), member(&data, 6), member(&data, 9), pigz_like(&data, 128 << 10), bgzip_like(&data)];
    for layer in layers {
        let mut all = Vec::new();
        for piece in [1000, layer.len()] {
            let spans = known(&layer, piece);
            let (mut at, mut matched) = (0, 0);
            for span in &spans {
                let parse = span.parse.as_ref().unwrap();
                assert_eq!(parse.len(), span.bytes.len());
                matched += covered(&data, at, parse);
                at += span.bytes.len();
            }
            assert_eq!(at, data.len());
            assert!(matched * 2 > data.len(), "{matched} of {} bytes are matched", data.len());
            all.push(spans.into_iter().map(|span| span.parse).collect::<Vec<_>>());
        }
        assert_eq!(all[0], all[1], "whatever the pieces in which it is pushed");
    }
}

#[test]
fn they_are_not_kept_unasked() {
    let spans = index(&member(&tar(2), 6), SPAN, 1000).unwrap();
    assert!(spans.iter().all(|span| span.parse.is_none()));
}

#[test]
fn repacked_layers_are_the_same_bytes_and_no_larger_for_not_searching() {
    let data = tar(3);
    let searched = repack(unknown(&data));
    assert_eq!(decoded(&searched), data);
    let mut sizes = Vec::new();
    for layer in [member(&data, 6), member(&data, 0), member(&data, 9), bgzip_like(&data)] {
        let blob = repack(known(&layer, 100_000));
        assert!(decoded(&blob) == data);
        assert!(blob == repack(known(&layer, 7777)), "the same layer gives the same blob");
        sizes.push(blob.len());
    }
    let percent = sizes[0] * 100 / searched.len();
    assert!((90..=103).contains(&percent), "{percent} % of what a search leaves");
    // A layer that is only stored knows no matches, and those of all distances are found here: not as many.
    assert!(sizes[1] < data.len() * 9 / 10 && sizes[1] >= sizes[0], "{sizes:?} of {}", data.len());
}

/// Bytes with much to find, and something that claims to know how they were made.
fn claims() -> impl Strategy<Value = (Vec<u8>, Parse)> {
    let bytes =
        (0u64..1000, prop_oneof![0usize..2000, 100_000usize..600_000]).prop_map(|(seed, len)| layer_like(seed, len));
    let steps = prop::collection::vec((0usize..3000, 0usize..=258, 1usize..=32768), 0..600);
    (bytes, steps).prop_map(|(bytes, steps)| {
        let mut parse = Parse::default();
        for (literals, len, distance) in steps {
            parse.literals(literals);
            parse.matched(len, distance);
        }
        (bytes, parse)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn lies_do_no_harm((bytes, parse) in claims()) {
        let mut spans = unknown(&bytes);
        if let Some(first) = spans.first_mut() {
            first.parse = Some(parse);
        }
        prop_assert!(decoded(&repack(spans)) == bytes);
    }
}
