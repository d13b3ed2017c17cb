//! Measures the zstd codec on a layer: how fast it is indexed and its spans are decoded, and what its checkpoints cost.
//!
//! `cargo run --release -p clipper-format --example zstd_index -- LAYER.zst [SPAN_KIB]`
use clipper_format::{
    gzip::{IndexOptions, IndexedSpan, SpanCheckpoint},
    span::{Span, Start},
    zstd::{Checkpoint, Indexer, SpanDecoder, resume},
};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: zstd_index LAYER.zst [SPAN_KIB]")?;
    let span_kib: u32 = arguments.next().map_or(Ok(1024), |text| text.parse())?;
    let layer = std::fs::read(path)?;

    let (mut indexed, mut spans, mut checkpoints) = (Vec::new(), Vec::new(), Vec::new());
    let mut time = Duration::ZERO;
    let mut indexer = Indexer::new(IndexOptions { span_size: span_kib << 10 });
    for piece in layer.chunks(64 << 10) {
        let start = busy();
        indexer.push(piece, &mut indexed)?;
        time += busy() - start;
        take(&mut indexed, &mut spans, &mut checkpoints);
    }
    let start = busy();
    indexer.finish(&mut indexed)?;
    time += busy() - start;
    take(&mut indexed, &mut spans, &mut checkpoints);

    let device: u64 = spans.iter().map(|span| u64::from(span.device_len)).sum();
    // What a byte somewhere in the layer takes to read.
    let each: f64 = spans.iter().map(|span| f64::from(span.source_len).powi(2)).sum::<f64>() / layer.len() as f64;
    let longest = spans.iter().map(|span| span.device_len).max().unwrap_or_default();
    let stored: usize = checkpoints.iter().map(Vec::len).sum();
    let decoded: Vec<Checkpoint> =
        checkpoints.iter().map(|encoded| Checkpoint::decode(encoded)).collect::<Result<_, _>>()?;
    let kept: usize = decoded.iter().map(Checkpoint::window_bytes).sum();
    println!("index: {}", rate(device, time));
    println!(
        "{} bytes -> {device}; {} spans of {} KiB on average, {} at most, {:.2} MB to read for a byte; {} checkpoints of \
         {kept} window bytes, {stored} stored: {:.3} % of the layer",
        layer.len(),
        spans.len(),
        device / 1024 / spans.len().max(1) as u64,
        longest >> 10,
        each / 1e6,
        checkpoints.len(),
        stored as f64 * 100.0 / layer.len() as f64
    );

    let mut time = Duration::ZERO;
    for span in &spans {
        let range = span.source_range();
        let source = &layer[range.start as usize..range.end as usize];
        let start = busy();
        let bytes = match span.start {
            Start::ZstdBlock { checkpoint, .. } => {
                resume(span, &Checkpoint::decode(&checkpoints[checkpoint as usize])?, source)?
            }
            _ => {
                let mut bytes = vec![0; span.device_len as usize];
                SpanDecoder::start(span)?.decode(span, source, &mut bytes)?;
                bytes
            }
        };
        time += busy() - start;
        assert_eq!(*blake3::hash(&bytes).as_bytes(), span.blake3, "span at {}", span.device_offset);
    }
    println!("spans decoded alone: {}", rate(device, time));
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

fn take(indexed: &mut Vec<IndexedSpan>, spans: &mut Vec<Span>, checkpoints: &mut Vec<Vec<u8>>) {
    for span in indexed.drain(..) {
        spans.push(span.to_span());
        if let Some(SpanCheckpoint::Zstd(encoded)) = span.checkpoint {
            checkpoints.push(encoded);
        }
    }
}
