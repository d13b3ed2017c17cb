//! Who goes first: readers before prefetch before background fill. Everything is asserted by order, nothing by time.
use crate::fixture::{CHUNK, Layer, SPAN, devices, options};
use clipper_device::{DeviceOptions, FillState, Priority};
use std::{sync::Arc, time::Duration};

/// Lets other tasks come to rest.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_miss_is_not_stuck_behind_fill_and_prefetch() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(64));
    let one = DeviceOptions { background_connections: 1, prefetch_connections: 1, join_distance: 0, ..options() };
    let devices = devices(dir.path(), one).await;
    let source = layer.source("a");
    source.close();
    let device = devices.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    source.sent(1).await;
    device.prefetch(20 * SPAN..30 * SPAN);
    device.prefetch(40 * SPAN..50 * SPAN);
    source.sent(2).await;
    assert_eq!(source.gets(), [0..32 * SPAN, 20 * SPAN..32 * SPAN]);
    // Inside the fill, inside the prefetch under way, inside the one that waits for a connection, and elsewhere.
    for span in [10, 25, 45, 60] {
        source.open_at(span * SPAN);
        layer.check(&device, span * SPAN..span * SPAN + 10).await.unwrap();
    }
    assert!(source.chunks().iter().all(|(get, _)| *get >= 10 * SPAN && *get != 20 * SPAN), "{:?}", source.chunks());
    source.open();
    assert_eq!(device.filled().await, FillState::Done);
    layer.check(&device, 0..layer.size()).await.unwrap();
    assert_eq!(device.stats().fetched_bytes, layer.size(), "every span was fetched once");
}

#[tokio::test]
async fn a_miss_close_ahead_in_a_run_joins_it() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(16));
    let near = DeviceOptions { join_distance: 3 * SPAN, ..options() };
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), near).await.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    source.sent(1).await;
    let (reader, bytes) = (Arc::clone(&device), layer.clone());
    let reader = tokio::spawn(async move { bytes.check(&reader, 3 * SPAN..4 * SPAN).await });
    settle().await;
    assert_eq!(source.gets().len(), 1);
    source.open();
    reader.await.unwrap().unwrap();
    assert_eq!(device.filled().await, FillState::Done);
    assert_eq!(source.gets().len(), 1);
}

#[tokio::test]
async fn a_miss_waits_for_nothing_that_fill_only_means_to_fetch() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(40));
    let hour = Duration::from_secs(3600);
    let quiet = DeviceOptions { background_grace: hour, join_distance: 40 * SPAN, ..options() };
    let source = layer.source("a");
    let device = devices(dir.path(), quiet).await.device(layer.spec(&source, None)).unwrap();
    // From now on there is a reader whose end fill waits for.
    layer.check(&device, 39 * SPAN..40 * SPAN).await.unwrap();
    let filled = Arc::clone(&device);
    let fill = tokio::spawn(async move { filled.ensure(0..32 * SPAN, Priority::Background).await });
    settle().await;
    layer.check(&device, 10 * SPAN..11 * SPAN).await.unwrap();
    assert_eq!(source.gets(), [39 * SPAN..40 * SPAN, 10 * SPAN..11 * SPAN]);
    assert_eq!(device.cached_bytes(), 2 * SPAN);
    fill.abort();
}

#[tokio::test]
async fn fill_can_be_put_off_where_no_reader_waits() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(40));
    let quiet = DeviceOptions { background_grace: Duration::from_secs(3600), ..options() };
    let source = layer.source("a");
    let device = devices(dir.path(), quiet).await.device(layer.spec(&source, None)).unwrap();
    // Nobody has read yet.
    device.ensure(0..SPAN, Priority::Background).await.unwrap();
    device.put_off_fill();
    let filled = Arc::clone(&device);
    let fill = tokio::spawn(async move { filled.ensure(8 * SPAN..32 * SPAN, Priority::Background).await });
    settle().await;
    assert_eq!(source.gets(), [0..SPAN]);
    fill.abort();
}

#[tokio::test]
async fn fill_stands_still_while_a_reader_waits_or_a_prefetch_runs() {
    for priority in [Priority::Foreground, Priority::Prefetch] {
        // No more than one step: with the next one, there would be two spans under way.
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(30));
        let other = Layer::stored(33);
        let devices = devices(dir.path(), options()).await;
        let (source, slow) = (layer.source("a"), other.source("b"));
        source.close();
        slow.close();
        let device = devices.device(layer.spec(&source, None)).unwrap();
        let other_device = devices.device(other.spec(&slow, None)).unwrap();
        device.start_fill();
        source.sent(1).await;
        let urgent = tokio::spawn(async move { other_device.ensure(0..8 * SPAN, priority).await });
        slow.sent(1).await;
        source.open();
        while device.cached_bytes() < SPAN {
            tokio::task::yield_now().await;
        }
        settle().await;
        // The span that was under way came, and no other.
        assert_eq!(source.chunks().last(), Some(&(0, SPAN)), "{priority:?}");
        assert_eq!(device.cached_bytes(), SPAN);
        slow.open();
        urgent.await.unwrap().unwrap();
        assert_eq!(device.filled().await, FillState::Done);
    }
}

#[tokio::test]
async fn prefetch_waits_for_readers_but_not_for_ever() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(32));
    let patient = DeviceOptions { prefetch_patience: Duration::from_millis(20), ..options() };
    let devices = devices(dir.path(), patient).await;
    let source = layer.source("a");
    source.close();
    source.open_at(8 * SPAN);
    let device = devices.device(layer.spec(&source, None)).unwrap();
    let (reader, bytes) = (Arc::clone(&device), layer.clone());
    let reader = tokio::spawn(async move { bytes.check(&reader, 0..10).await });
    source.sent(1).await;
    device.ensure(8 * SPAN..12 * SPAN, Priority::Prefetch).await.unwrap();
    assert!(!reader.is_finished());
    source.open();
    reader.await.unwrap().unwrap();
}

#[tokio::test]
async fn fill_can_be_stopped_and_started_again() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(32));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    assert_eq!(device.fill_state(), FillState::Idle);
    device.start_fill();
    device.start_fill();
    source.sent(1).await;
    assert_eq!(device.fill_state(), FillState::Running);
    device.stop_fill();
    assert_eq!(device.filled().await, FillState::Stopped);
    source.open();
    settle().await;
    // What a reader wants is fetched nevertheless, and the span under way isn't wasted.
    layer.check(&device, 0..10).await.unwrap();
    assert!(device.cached_bytes() <= 2 * SPAN, "{}", device.cached_bytes());
    device.start_fill();
    assert_eq!(device.filled().await, FillState::Done);
    assert!(device.is_complete());
    assert_eq!(device.stats().fetched_bytes, layer.size());
}

#[tokio::test]
async fn a_reader_is_served_while_the_fill_it_shares_a_span_with_is_stopped() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(16));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    source.sent(1).await;
    let (reader, bytes) = (Arc::clone(&device), layer.clone());
    let reader = tokio::spawn(async move { bytes.check(&reader, 2 * SPAN..3 * SPAN).await });
    settle().await;
    device.stop_fill();
    source.open();
    reader.await.unwrap().unwrap();
    settle().await;
    assert_eq!(device.cached_bytes(), 3 * SPAN);
    assert_eq!(source.chunks().last().map(|(_, end)| end.div_ceil(CHUNK as u64)), Some(3 * SPAN / CHUNK as u64));
}

#[tokio::test]
async fn fill_survives_a_source_that_fails_for_a_while() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(16));
    let source = layer.source("a");
    source.plan([crate::fixture::Fault::Break(5 * SPAN + 1), crate::fixture::Fault::Refuse]);
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    assert_eq!(device.filled().await, FillState::Done);
    layer.check(&device, 0..layer.size()).await.unwrap();
}

#[tokio::test]
async fn fill_can_be_switched_off() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(1));
    let source = layer.source("a");
    let off = DeviceOptions { fill: false, ..options() };
    let device = devices(dir.path(), off).await.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    assert_eq!(device.filled().await, FillState::Idle);
    settle().await;
    assert!(source.gets().is_empty());
    layer.check(&device, 0..layer.size()).await.unwrap();
    device.start_fill();
    assert_eq!(device.fill_state(), FillState::Done);
}
