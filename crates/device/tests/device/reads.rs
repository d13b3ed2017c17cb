//! Reads: every byte right, every span fetched once, whatever the order and however many readers.
use crate::fixture::{CHUNK, Fault, Layer, SPAN, devices, options};
use clipper_device::{DeviceError, DeviceOptions, Priority};
use proptest::{prelude::*, test_runner::TestRunner};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{io::ErrorKind, sync::Arc};

fn layers() -> [Layer; 7] {
    [
        Layer::stored(20),
        Layer::gzip(1_500_000, usize::MAX),
        Layer::gzip(1_000_001, 150_000),
        Layer::gzip(1_000_001, 7001),
        Layer::zstd(1_000_001, 7001),
        Layer::zstd(1_500_001, 300_300),
        Layer::zstd_blocks(2_000_001),
    ]
}

#[tokio::test]
async fn a_read_past_the_end_is_refused_and_a_read_of_nothing_is_not() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(1));
    let device = devices(dir.path(), options()).await.device(layer.spec(&layer.source("a"), None)).unwrap();
    let size = device.size();
    assert_eq!(size, layer.size());
    for offset in [size, u64::MAX, size - 1] {
        let mut buf = [0; 2];
        assert_eq!(device.try_read(offset, &mut buf).unwrap_err().kind(), ErrorKind::InvalidInput, "{offset}");
        assert!(matches!(device.read(offset, &mut buf).await, Err(DeviceError::Outside { .. })), "{offset}");
    }
    assert!(device.try_read(size, &mut []).unwrap());
    device.read(size, &mut []).await.unwrap();
    assert_eq!(device.read_bytes(size - 3, 10).await.unwrap()[..], layer.device[layer.device.len() - 3..]);
    assert!(device.read_bytes(u64::MAX, 10).await.unwrap().is_empty());
    device.ensure(size..u64::MAX, Priority::Foreground).await.unwrap();
}

#[tokio::test]
async fn an_empty_layer_is_complete_from_the_start() {
    let (dir, mut layer) = (tempfile::tempdir().unwrap(), Layer::stored(1));
    layer.spans = Default::default();
    let device = devices(dir.path(), options()).await.device(layer.spec(&layer.source("a"), None)).unwrap();
    assert!(device.is_complete() && device.try_read(0, &mut []).unwrap());
    device.start_fill();
    assert_eq!(device.filled().await, clipper_device::FillState::Done);
}

#[tokio::test]
async fn try_read_answers_only_what_is_here() {
    for layer in layers() {
        let dir = tempfile::tempdir().unwrap();
        let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
        let device = devices(dir.path(), options()).await.device(layer.spec(&source, Some(&points))).unwrap();
        let mut buf = vec![0; 10_000];
        assert!(!device.try_read(300_000, &mut buf).unwrap());
        assert!(source.gets().is_empty(), "try_read fetches nothing");
        layer.check(&device, 300_000..310_000).await.unwrap();
        assert!(device.try_read(300_000, &mut buf).unwrap());
        assert_eq!(buf, layer.device[300_000..310_000]);
        assert!(!device.try_read(0, &mut buf).unwrap());
        assert_eq!(source.gets().len(), 1);
        assert!(device.cached_bytes() >= 10_000 && device.cached_bytes() < layer.size() / 2);
    }
}

#[test]
fn all_bytes_are_right_under_concurrent_random_reads_with_faults() {
    let layers = layers();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let faults = prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Refuse),
        1 => (0u64..300_000).prop_map(Fault::Break),
        1 => (0u64..300_000).prop_map(Fault::Short),
        1 => (1usize..100_000).prop_map(Fault::Long),
        1 => (0u64..1_000_000).prop_map(Fault::Flip),
    ];
    let cases = (0..layers.len(), prop::collection::vec(faults, 0..30), any::<u64>(), any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, ..ProptestConfig::default() });
    let run = |(layer, faults, seed, ahead, fill): (usize, Vec<Fault>, u64, bool, bool)| {
        runtime.block_on(async {
            let (dir, layer) = (tempfile::tempdir().unwrap(), &layers[layer]);
            let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
            source.plan(faults.clone());
            points.plan(faults.iter().rev().take(4).copied().filter(|fault| !matches!(fault, Fault::Flip(_))));
            let options =
                DeviceOptions { read_ahead: if ahead { 500_000 } else { 0 }, join_distance: 100_000, ..options() };
            let device = devices(dir.path(), options).await.device(layer.spec(&source, Some(&points))).unwrap();
            if fill {
                device.start_fill();
            }
            let readers = (0..8u64).map(|i| {
                let (device, layer) = (Arc::clone(&device), layer.clone());
                let mut rng = StdRng::seed_from_u64(seed ^ i);
                tokio::spawn(async move {
                    for _ in 0..10 {
                        let start = rng.random_range(0..layer.size());
                        let end = layer.size().min(start + rng.random_range(1..200_000));
                        // Errors are allowed while faults are planned; wrong bytes aren't.
                        let _ = layer.check(&device, start..end).await;
                    }
                })
            });
            for reader in futures::future::join_all(readers).await {
                reader.unwrap();
            }
            source.plan([]);
            points.plan([]);
            layer.check(&device, 0..layer.size()).await.unwrap();
            assert!(device.is_complete());
        });
        Ok(())
    };
    runner.run(&cases, run).unwrap();
}

#[tokio::test]
async fn many_readers_of_a_span_share_one_flight() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    let read = |i: u64| {
        let (device, layer) = (Arc::clone(&device), layer.clone());
        tokio::spawn(async move { layer.check(&device, 3 * SPAN + i..4 * SPAN).await })
    };
    let readers: Vec<_> = (0..32).map(read).collect();
    source.sent(1).await;
    source.open();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(source.gets(), [3 * SPAN..4 * SPAN]);
}

#[tokio::test]
async fn neighbouring_misses_of_a_read_are_one_get_and_what_is_here_is_not_fetched_again() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 4 * SPAN..4 * SPAN + 1).await.unwrap();
    layer.check(&device, SPAN + 5..7 * SPAN - 5).await.unwrap();
    let mut gets = source.gets();
    gets.sort_by_key(|range| range.start);
    assert_eq!(gets, [SPAN..4 * SPAN, 4 * SPAN..5 * SPAN, 5 * SPAN..7 * SPAN]);
    assert_eq!(device.stats().fetched_bytes, 6 * SPAN);
}

#[tokio::test]
async fn a_reader_is_answered_before_the_rest_of_the_run_is_here() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    // Spans 0 and 1 come; then the body stalls for good.
    source.plan([Fault::Stall(2 * SPAN + CHUNK as u64)]);
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    let (all, part) = (Arc::clone(&device), Arc::clone(&device));
    let all = tokio::spawn(async move { all.ensure(0..8 * SPAN, Priority::Foreground).await });
    source.sent(1).await;
    layer.check(&part, 0..2 * SPAN).await.unwrap();
    assert_eq!(source.gets(), [0..8 * SPAN]);
    assert!(!all.is_finished());
    all.abort();
}

#[tokio::test]
async fn a_sequential_reader_gets_a_growing_window_and_a_random_one_none() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(64));
    let source = layer.source("a");
    let ahead = DeviceOptions { read_ahead: 16 * SPAN, ..options() };
    let devices = devices(dir.path(), ahead).await;
    let device = devices.device(layer.spec(&source, None)).unwrap();
    let mut at = 0;
    let mut buf = vec![0; 16 << 10];
    while at < layer.size() {
        let len = buf.len().min((layer.size() - at) as usize);
        if !device.try_read(at, &mut buf[..len]).unwrap() {
            layer.check(&device, at..at + len as u64).await.unwrap();
        }
        at += len as u64;
    }
    let mut gets = source.gets();
    let longest = gets.iter().map(|range| range.end - range.start).max();
    assert_eq!(longest, Some(16 * SPAN));
    assert!(gets.len() <= 10, "{gets:?}");
    gets.sort_by_key(|range| range.start);
    assert!(gets.windows(2).all(|pair| pair[0].end == pair[1].start), "every byte once: {gets:?}");

    devices.remove(&device.digest()).unwrap();
    let source = layer.source("b");
    let device = devices.device(layer.spec(&source, None)).unwrap();
    for span in [40, 3, 21, 55, 12, 33] {
        layer.check(&device, span * SPAN..span * SPAN + 10).await.unwrap();
    }
    assert!(source.gets().iter().all(|range| range.end - range.start == SPAN), "{:?}", source.gets());
}

#[tokio::test]
async fn checkpoints_are_fetched_in_batches_and_kept() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::gzip(3_000_000, usize::MAX));
    assert!(layer.groups.len() > 1);
    let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, Some(&points))).unwrap();
    for i in (1..20).rev() {
        layer.check(&device, i * 140_000..i * 140_000 + 1).await.unwrap();
    }
    let bytes: u64 = points.gets().iter().map(|range| range.end - range.start).sum();
    assert!(bytes <= layer.checkpoints.len() as u64, "{:?}", points.gets());
    assert!(points.gets().len() < source.gets().len() / 2, "{:?}", points.gets());
    assert_eq!(device.stats().checkpoint_bytes, bytes);
}

#[tokio::test]
async fn inside_a_zstd_frame_every_span_takes_a_checkpoint_of_its_own() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::zstd_blocks(2_000_001));
    let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, Some(&points))).unwrap();
    device.ensure(0..layer.size(), Priority::Foreground).await.unwrap();
    layer.check(&device, 0..layer.size()).await.unwrap();
    let bytes: u64 = points.gets().iter().map(|range| range.end - range.start).sum();
    assert_eq!(bytes, layer.checkpoints.len() as u64 - 77, "each once: {:?}", points.gets());
    let fetched: u64 = source.gets().iter().map(|range| range.end - range.start).sum();
    assert!(fetched <= layer.blob.len() as u64, "{:?}", source.gets());
}

#[tokio::test]
async fn frames_that_spans_share_are_fetched_once_by_who_reads_on() {
    for frame in [7001, 300_300] {
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::zstd(1_500_001, frame));
        let source = layer.source("a");
        let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
        device.ensure(0..layer.size(), Priority::Foreground).await.unwrap();
        layer.check(&device, 0..layer.size()).await.unwrap();
        let fetched: u64 = source.gets().iter().map(|range| range.end - range.start).sum();
        assert!(fetched <= layer.blob.len() as u64, "{:?}", source.gets());
    }
}

#[tokio::test]
async fn without_a_source_of_checkpoints_a_span_is_reached_from_its_member() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::gzip(1_000_000, 6 * SPAN as usize));
    let source = layer.source("a");
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 700_000..700_001).await.unwrap();
    assert_eq!(source.gets().len(), 1);
    let here = device.cached_bytes();
    assert!(
        (4 * SPAN..=6 * SPAN).contains(&here),
        "the spans on the way are kept, those of other members aren't: {here}"
    );
    layer.check(&device, 0..layer.size()).await.unwrap();
}
