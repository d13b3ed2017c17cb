//! Sources that are away, slow or silent for a while: readers wait for as long as they may, and then get an error.
use crate::fixture::{CHUNK, Fault, Layer, SPAN, devices, options};
use clipper_device::{DeviceError, DeviceOptions, FillState, Priority};
use std::{sync::Arc, time::Duration};

/// Options under which readers wait for so long.
fn waiting(read: Duration) -> DeviceOptions {
    DeviceOptions { read_timeout: read, retry_after: Duration::from_millis(1), ..options() }
}

/// As [`waiting`], with sources that may be silent for no longer than this.
fn impatient(stall: Duration, read: Duration) -> DeviceOptions {
    DeviceOptions { stall_timeout: stall, ..waiting(read) }
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn readers_wait_until_the_source_is_back() {
    for fault in [Fault::Away, Fault::Break(100), Fault::Short(100)] {
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
        let source = layer.source("a");
        source.always(fault);
        let device = devices(dir.path(), waiting(LONG)).await.device(layer.spec(&source, None)).unwrap();
        let readers: Vec<_> = (0..8)
            .map(|n| {
                let (device, layer) = (Arc::clone(&device), layer.clone());
                tokio::spawn(async move { layer.check(&device, n % 4 * SPAN..n % 4 * SPAN + 10).await })
            })
            .collect();
        // Far more often than one flight tries.
        source.sent(40).await;
        assert!(readers.iter().all(|reader| !reader.is_finished()), "{fault:?}");
        source.always(Fault::None);
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        // What failed to come for long isn't held against the source.
        layer.check(&device, 0..layer.size()).await.unwrap();
    }
}

#[tokio::test]
async fn after_their_time_readers_get_the_source_s_own_error_and_the_next_may_succeed() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("registry.example");
    source.always(Fault::Away);
    let device = devices(dir.path(), waiting(SHORT)).await.device(layer.spec(&source, None)).unwrap();
    let error = layer.check(&device, SPAN..SPAN + 10).await.unwrap_err();
    assert!(matches!(error, DeviceError::Fetch { span: 1, .. }), "{error}");
    assert_eq!(error.errno(), 5);
    assert!(error.to_string().contains("registry.example"), "{error}");
    source.always(Fault::None);
    layer.check(&device, SPAN..SPAN + 10).await.unwrap();
}

#[tokio::test]
async fn what_is_cached_is_read_while_the_source_is_away() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    let device = devices(dir.path(), waiting(LONG)).await.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 0..2 * SPAN).await.unwrap();
    source.always(Fault::Away);
    let missing = tokio::spawn({
        let (device, layer) = (Arc::clone(&device), layer.clone());
        async move { layer.check(&device, 5 * SPAN..6 * SPAN).await }
    });
    source.sent(10).await;
    layer.check(&device, 0..2 * SPAN).await.unwrap();
    assert!(device.try_read(SPAN, &mut [0; 100]).unwrap() && !missing.is_finished());
    source.always(Fault::None);
    missing.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_waits_for_what_is_not_there() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.always(Fault::Refuse);
    let device = devices(dir.path(), waiting(LONG)).await.device(layer.spec(&source, None)).unwrap();
    let error = layer.check(&device, 0..10).await.unwrap_err();
    assert!(matches!(error, DeviceError::Fetch { .. }) && source.gets().len() == 2, "{error}");
    // Nor for what only prefetch wants.
    source.always(Fault::Away);
    device.ensure(SPAN..2 * SPAN, Priority::Prefetch).await.unwrap_err();
}

#[tokio::test]
async fn a_silent_source_is_left_for_another_or_ends_in_an_error() {
    for other in [false, true] {
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
        let (stalled, good) = (layer.source("stalled"), layer.source("good"));
        stalled.always(Fault::Stall(100));
        let read = if other { LONG } else { 4 * SHORT };
        let devices = devices(dir.path(), impatient(SHORT, read)).await;
        let device = devices.device(layer.spec(&stalled, None)).unwrap();
        if other {
            devices.device(layer.spec(&good, None)).unwrap();
            layer.check(&device, 0..10).await.unwrap();
        } else {
            let error = layer.check(&device, 0..10).await.unwrap_err();
            assert!(matches!(error, DeviceError::Timeout { span: 0, .. }), "{error}");
            assert_eq!(error.errno(), 5);
        }
    }
}

#[tokio::test]
async fn a_slow_source_is_not_a_silent_one() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), impatient(SHORT, LONG)).await.device(layer.spec(&source, None)).unwrap();
    let read = tokio::spawn({
        let (device, layer) = (Arc::clone(&device), layer.clone());
        async move { layer.check(&device, 0..SPAN).await }
    });
    source.sent(1).await;
    // A chunk every 200 ms: the span takes longer than any silence may.
    for _ in 0..SPAN as usize / CHUNK {
        tokio::time::sleep(SHORT * 2 / 3).await;
        source.step();
    }
    source.open();
    read.await.unwrap().unwrap();
    assert_eq!(source.gets(), [0..SPAN]);
}

#[tokio::test]
async fn a_reader_gives_up_in_the_end() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), waiting(SHORT)).await.device(layer.spec(&source, None)).unwrap();
    let error = layer.check(&device, SPAN..SPAN + 10).await.unwrap_err();
    assert!(matches!(error, DeviceError::Timeout { span: 1, .. }), "{error}");
    source.open();
    layer.check(&device, SPAN..SPAN + 10).await.unwrap();
    assert_eq!(source.gets().len(), 1, "the flight went on without it");
}

#[tokio::test]
async fn background_fill_goes_on_by_itself_after_an_outage() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.plan([Fault::Away, Fault::Away, Fault::Break(SPAN)]);
    let device = devices(dir.path(), waiting(LONG)).await.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    assert_eq!(device.filled().await, FillState::Done);
}
