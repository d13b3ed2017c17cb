//! Measures the gzip codec on a layer: how fast it is indexed and decoded, and what its checkpoints cost.
//!
//! `cargo run --release -p clipper-format --example gzip_index -- LAYER.gz [SPAN_KIB [ZSTD_LEVEL]]`
use clipper_format::{
    gzip::{
        CHECKPOINTS_PER_GROUP, Checkpoint, GzipError, IndexOptions, Indexer, SpanDecoder, decode_group, encode_group,
    },
    span::{Span, Start},
};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: gzip_index LAYER.gz [SPAN_KIB [ZSTD_LEVEL]]")?;
    let span_kib: u32 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let level: i32 = arguments.next().map_or(Ok(12), |text| text.parse())?;
    let layer = std::fs::read(path)?;

    let mut indexer = Indexer::new(IndexOptions { span_size: span_kib << 10 });
    let mut indexed = Vec::new();
    let mut spans = Vec::new();
    let mut checkpoints = Vec::new();
    let mut busy = Duration::ZERO;
    for piece in layer.chunks(64 << 10) {
        let start = Instant::now();
        indexer.push(piece, &mut indexed)?;
        busy += start.elapsed();
        take(&mut indexed, &mut spans, &mut checkpoints);
    }
    indexer.finish(&mut indexed)?;
    take(&mut indexed, &mut spans, &mut checkpoints);
    let device: u64 = spans.iter().map(|span| u64::from(span.device_len)).sum();
    println!("index: {}", rate(device, busy));

    let start = Instant::now();
    let groups: Vec<Vec<u8>> =
        checkpoints.chunks(CHECKPOINTS_PER_GROUP).map(|group| encode_group(group, level)).collect();
    let encoding = start.elapsed();
    let kept: usize = checkpoints.iter().map(Checkpoint::window_bytes).sum();
    let encoded: usize = checkpoints.iter().map(|checkpoint| checkpoint.encode().len()).sum();
    let stored: usize = groups.iter().map(Vec::len).sum();
    println!(
        "{} bytes -> {device}; {} spans of {} KiB on average, {} checkpoints",
        layer.len(),
        spans.len(),
        device / 1024 / spans.len().max(1) as u64,
        checkpoints.len()
    );
    println!(
        "checkpoints: {kept} window bytes, {encoded} encoded, {stored} as zstd -{level} in {encoding:.1?}: {} each, {:.3} % of the layer",
        stored / checkpoints.len().max(1),
        stored as f64 * 100.0 / layer.len() as f64
    );

    let start = Instant::now();
    let mut decoded = Vec::new();
    for group in &groups {
        decoded.extend(decode_group(group)?);
    }
    println!("checkpoints decoded in {:.1?}", start.elapsed());
    if decoded != checkpoints {
        return Err("checkpoints don't round-trip".into());
    }

    let alone = decode(&layer, &spans, &decoded, 1)?;
    let runs = decode(&layer, &spans, &decoded, usize::MAX)?;
    println!("spans decoded alone: {}; in one run: {}", rate(device, alone), rate(device, runs));
    Ok(())
}

fn rate(bytes: u64, time: Duration) -> String {
    format!("{:.0} MB/s ({time:.2?})", bytes as f64 / 1e6 / time.as_secs_f64())
}

fn take(
    indexed: &mut Vec<clipper_format::gzip::IndexedSpan>,
    spans: &mut Vec<Span>,
    checkpoints: &mut Vec<Checkpoint>,
) {
    for span in indexed.drain(..) {
        spans.push(Span {
            device_offset: span.device_offset,
            device_len: span.bytes.len() as u32,
            source_offset: span.source_offset,
            source_len: span.source_len,
            start: span.start,
            blake3: blake3::hash(&span.bytes).into(),
        });
        checkpoints.extend(span.checkpoint);
    }
}

/// Decodes all spans in runs of `run`, and checks what comes out.
fn decode(layer: &[u8], spans: &[Span], checkpoints: &[Checkpoint], run: usize) -> Result<Duration, GzipError> {
    let mut busy = Duration::ZERO;
    let mut out = Vec::new();
    for run in spans.chunks(run) {
        let start = Instant::now();
        let mut decoder = SpanDecoder::start(&run[0], checkpoint(&run[0], checkpoints))?;
        busy += start.elapsed();
        for span in run {
            out.resize(span.device_len as usize, 0);
            let range = span.source_range();
            let start = Instant::now();
            decoder.decode(span, &layer[range.start as usize..range.end as usize], &mut out)?;
            busy += start.elapsed();
            assert_eq!(*blake3::hash(&out).as_bytes(), span.blake3, "span at {}", span.device_offset);
        }
    }
    Ok(busy)
}

fn checkpoint<'a>(span: &Span, checkpoints: &'a [Checkpoint]) -> Option<&'a Checkpoint> {
    match span.start {
        Start::Gzip { checkpoint, .. } => checkpoints.get(checkpoint as usize),
        _ => None,
    }
}
