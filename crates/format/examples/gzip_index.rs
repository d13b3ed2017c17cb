//! Measures the gzip codec on a layer: how fast it is indexed and decoded, and what its checkpoints cost.
//!
//! `cargo run --release -p clipper-format --example gzip_index -- LAYER.gz [SPAN_KIB [ZSTD_LEVEL]]`
use clipper_format::{
    gzip::{
        CHECKPOINT_LEVEL, CHECKPOINTS_PER_GROUP, Checkpoint, GzipError, IndexOptions, Indexer, SpanDecoder,
        decode_group, encode_group,
    },
    span::{Span, Start},
};
use std::time::Duration;

/// Times are the best of so many rounds.
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: gzip_index LAYER.gz [SPAN_KIB [ZSTD_LEVEL]]")?;
    let span_kib: u32 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let level: i32 = arguments.next().map_or(Ok(CHECKPOINT_LEVEL), |text| text.parse())?;
    let layer = std::fs::read(path)?;

    let options = IndexOptions { span_size: span_kib << 10 };
    let mut fastest = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = busy();
        let mut indexer = Indexer::new(options);
        let mut indexed = Vec::new();
        for piece in layer.chunks(64 << 10) {
            indexer.push(piece, &mut indexed)?;
            indexed.clear();
        }
        indexer.finish(&mut indexed)?;
        fastest = fastest.min(busy() - start);
    }
    let mut indexer = Indexer::new(options);
    let mut indexed = Vec::new();
    let mut spans = Vec::new();
    let mut checkpoints = Vec::new();
    for piece in layer.chunks(64 << 10) {
        indexer.push(piece, &mut indexed)?;
        take(&mut indexed, &mut spans, &mut checkpoints);
    }
    indexer.finish(&mut indexed)?;
    take(&mut indexed, &mut spans, &mut checkpoints);
    let device: u64 = spans.iter().map(|span| u64::from(span.device_len)).sum();
    println!("index: {}", rate(device, fastest));

    let start = busy();
    let groups: Vec<Vec<u8>> =
        checkpoints.chunks(CHECKPOINTS_PER_GROUP).map(|group| encode_group(group, level)).collect();
    let encoding = busy() - start;
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

    let start = busy();
    let mut decoded = Vec::new();
    for group in &groups {
        decoded.extend(decode_group(group)?);
    }
    println!("checkpoints decoded in {:.1?}", busy() - start);
    if decoded != checkpoints {
        return Err("checkpoints don't round-trip".into());
    }

    for (name, run) in [("alone", 1), ("in one run", usize::MAX)] {
        decode(&layer, &spans, &decoded, run, true)?;
        let mut fastest = Duration::MAX;
        for _ in 0..ROUNDS {
            let start = busy();
            decode(&layer, &spans, &decoded, run, false)?;
            fastest = fastest.min(busy() - start);
        }
        println!("spans decoded {name}: {}", rate(device, fastest));
    }
    Ok(())
}

/// CPU time of this process so far (Linux, Documentation/scheduler/sched-stats.rst: the first field is in nanoseconds),
/// so that what else the machine does matters less.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default())
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
        checkpoints.extend(span.checkpoint.as_ref().and_then(|checkpoint| checkpoint.as_gzip()).cloned());
    }
}

/// Decodes all spans in runs of `run`, and checks what comes out if so wanted.
fn decode(layer: &[u8], spans: &[Span], checkpoints: &[Checkpoint], run: usize, check: bool) -> Result<(), GzipError> {
    let mut out = Vec::new();
    for run in spans.chunks(run) {
        let mut decoder = SpanDecoder::start(&run[0], checkpoint(&run[0], checkpoints))?;
        for span in run {
            out.resize(span.device_len as usize, 0);
            let range = span.source_range();
            decoder.decode(span, &layer[range.start as usize..range.end as usize], &mut out)?;
            if check {
                assert_eq!(*blake3::hash(&out).as_bytes(), span.blake3, "span at {}", span.device_offset);
            }
        }
    }
    Ok(())
}

fn checkpoint<'a>(span: &Span, checkpoints: &'a [Checkpoint]) -> Option<&'a Checkpoint> {
    match span.start {
        Start::Gzip { checkpoint, .. } => checkpoints.get(checkpoint as usize),
        _ => None,
    }
}
