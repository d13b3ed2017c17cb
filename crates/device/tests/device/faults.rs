//! Sources that fail or lie: an error or the right bytes, never anything else.
use crate::fixture::{Fault, Layer, SPAN, TestSource, devices, options};
use clipper_device::{DeviceError, DeviceOptions, Priority};
use std::{sync::Arc, time::Duration};

#[tokio::test]
async fn a_wrong_byte_is_an_error_and_nothing_of_its_span_is_kept() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("registry.example");
    source.always(Fault::Flip(3 * SPAN + 77));
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    let error = layer.check(&device, 3 * SPAN..3 * SPAN + 10).await.unwrap_err();
    assert!(matches!(error, DeviceError::Corrupt { span: 3, .. }), "{error}");
    assert_eq!(std::io::Error::from(error.clone()).kind(), std::io::Error::from_raw_os_error(5).kind());
    assert_eq!(error.errno(), 5);
    assert!(error.to_string().contains("registry.example") && error.to_string().contains(&layer.digest().hex()));
    assert_eq!((device.cached_bytes(), source.gets().len()), (0, 2));
    assert_eq!((device.stats().corrupt_spans, source.distrusted()), (2, vec![3 * SPAN..4 * SPAN; 2]));
    assert!(!device.try_read(3 * SPAN, &mut [0; 10]).unwrap());
    // Its neighbours are fine, before and behind it.
    device.ensure(0..8 * SPAN, Priority::Foreground).await.unwrap_err();
    layer.check(&device, 4 * SPAN..8 * SPAN).await.unwrap();
    assert_eq!(device.cached_bytes(), 7 * SPAN);
    // The error isn't remembered.
    source.always(Fault::None);
    layer.check(&device, 0..layer.size()).await.unwrap();
}

#[tokio::test]
async fn every_flipped_byte_of_blob_and_checkpoints_is_noticed_or_harmless() {
    for layer in [Layer::gzip(400_000, usize::MAX), Layer::zstd_blocks(1_000_000)] {
        let blob = layer.blob.len() as u64;
        let points = layer.checkpoints.len() as u64;
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path(), options()).await;
        let mut failed = 0;
        for i in 0..60 {
            let (source, checkpoints) = (layer.source("a"), layer.checkpoint_source("a"));
            if i % 2 == 0 {
                source.always(Fault::Flip((i * 7919 + 3) * 104_729 % blob));
            } else {
                checkpoints.always(Fault::Flip(77 + (i * 7919) * 104_729 % (points - 77)));
            }
            let device = devices.device(layer.spec(&source, Some(&checkpoints))).unwrap();
            for at in (0..layer.size()).rev().step_by(60_000) {
                failed += usize::from(layer.check(&device, at..layer.size().min(at + 1000)).await.is_err());
            }
            devices.remove(&device.digest()).unwrap();
        }
        assert!(failed >= 30, "{failed}");
    }
}

#[tokio::test]
async fn a_lying_source_of_frames_or_members_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let devices = devices(dir.path(), options()).await;
    for layer in [Layer::zstd(400_000, 5000), Layer::zstd(400_000, 200_200), Layer::gzip(400_000, 5000)] {
        let mut failed = 0;
        for i in 0..40 {
            let source = layer.source("a");
            source.always(Fault::Flip((i * 7919 + 3) * 104_729 % layer.blob.len() as u64));
            let device = devices.device(layer.spec(&source, None)).unwrap();
            for at in (0..layer.size()).rev().step_by(60_000) {
                let read = layer.check(&device, at..layer.size().min(at + 1000)).await;
                assert!(matches!(read, Ok(()) | Err(DeviceError::Corrupt { .. })), "{read:?}");
                failed += usize::from(read.is_err());
            }
            devices.remove(&device.digest()).unwrap();
        }
        assert!(failed >= 30, "{failed}");
    }
    // Sound frames, but others than those that were indexed: only the digest of the span can tell.
    let (layer, other) = (Layer::zstd(400_000, 5000), Layer::zstd(399_999, 5000));
    let end = layer.blob.len().min(other.blob.len());
    let mut lie = layer.blob.to_vec();
    lie[..end].copy_from_slice(&other.blob[..end]);
    let source = TestSource::new("liar".into(), Arc::new(lie));
    let device = devices.device(layer.spec(&source, None)).unwrap();
    assert!(matches!(layer.check(&device, 0..1000).await, Err(DeviceError::Corrupt { .. })));
}

#[tokio::test]
async fn a_wrong_checkpoint_is_fetched_again() {
    for layer in [Layer::gzip(400_000, usize::MAX), Layer::zstd_blocks(1_000_000)] {
        let dir = tempfile::tempdir().unwrap();
        let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
        points.plan([Fault::Flip(layer.groups.last().unwrap().start + 20)]);
        let device = devices(dir.path(), options()).await.device(layer.spec(&source, Some(&points))).unwrap();
        layer.check(&device, layer.size() - 10_000..layer.size()).await.unwrap();
        assert_eq!((points.gets().len(), points.distrusted()), (2, points.gets()[..1].to_vec()));
    }
}

#[tokio::test]
async fn as_many_places_are_asked_as_there_are_before_wrong_bytes_are_an_error() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let devices = devices(dir.path(), options()).await;
    for (wrong, mirrors, good) in [(5, 5, true), (3, 2, false), (2, 0, false), (8, usize::MAX, false)] {
        let source = layer.source("a");
        source.plan(vec![Fault::Flip(2 * SPAN); wrong]);
        source.mirrors(mirrors);
        let device = devices.device(layer.spec(&source, None)).unwrap();
        let read = layer.check(&device, 2 * SPAN..2 * SPAN + 9).await;
        assert_eq!(read.is_ok(), good, "{wrong} {mirrors}: {read:?}");
        assert_eq!(source.gets().len(), wrong + usize::from(good), "{wrong} {mirrors}");
        devices.remove(&layer.digest()).unwrap();
    }
}

#[tokio::test]
async fn another_source_is_tried_and_then_preferred() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let devices = devices(dir.path(), options()).await;
    for fault in [Fault::Refuse, Fault::Break(100), Fault::Short(100), Fault::Flip(2 * SPAN)] {
        let (bad, good) = (layer.source("bad"), layer.source("good"));
        bad.always(fault);
        let device = devices.device(layer.spec(&bad, None)).unwrap();
        assert!(Arc::ptr_eq(&device, &devices.device(layer.spec(&good, None)).unwrap()));
        devices.device(layer.spec(&layer.source("good"), None)).unwrap();
        layer.check(&device, 2 * SPAN..2 * SPAN + 1).await.unwrap();
        layer.check(&device, 6 * SPAN..6 * SPAN + 1).await.unwrap();
        assert_eq!(bad.gets().len(), 1, "{fault:?}");
        assert_eq!(good.gets(), [2 * SPAN..3 * SPAN, 6 * SPAN..7 * SPAN], "{fault:?}");
        devices.remove(&layer.digest()).unwrap();
    }
}

#[tokio::test]
async fn spans_before_a_break_are_kept_and_the_rest_is_fetched_from_there() {
    for fault in [Fault::Break(3 * SPAN + 10), Fault::Short(3 * SPAN + 10)] {
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
        let source = layer.source("a");
        source.plan([fault]);
        let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
        layer.check(&device, 0..8 * SPAN).await.unwrap();
        assert_eq!(source.gets(), [0..8 * SPAN, 3 * SPAN..8 * SPAN], "{fault:?}");
    }
}

#[tokio::test]
async fn spans_before_the_source_died_are_kept() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.plan([Fault::Break(3 * SPAN + 10)]);
    source.always(Fault::Refuse);
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    let error = layer.check(&device, 0..8 * SPAN).await.unwrap_err();
    assert!(matches!(error, DeviceError::Fetch { span: 3, .. }), "{error}");
    assert_eq!(device.cached_bytes(), 3 * SPAN);
    layer.check(&device, 0..3 * SPAN).await.unwrap();
    source.always(Fault::None);
    layer.check(&device, 0..layer.size()).await.unwrap();
}

#[tokio::test]
async fn surplus_bytes_are_ignored() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.always(Fault::Long(100_000));
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, SPAN..5 * SPAN).await.unwrap();
    assert_eq!((source.gets().len(), device.cached_bytes()), (1, 4 * SPAN));
}

#[tokio::test]
async fn a_failure_is_remembered_for_a_while_so_that_nobody_hammers_the_source() {
    let patient = DeviceOptions { retry_after: Duration::from_secs(3600), ..options() };
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.plan([Fault::Refuse, Fault::Refuse]);
    let device = devices(dir.path(), patient).await.device(layer.spec(&source, None)).unwrap();
    for _ in 0..3 {
        assert!(matches!(layer.check(&device, 0..10).await, Err(DeviceError::Fetch { span: 0, .. })));
    }
    assert_eq!(source.gets().len(), 2);
    layer.check(&device, SPAN..SPAN + 10).await.unwrap();
    // What failed for nobody in particular is tried at once when somebody wants it.
    source.plan([Fault::Refuse, Fault::Refuse]);
    assert!(device.ensure(4 * SPAN..5 * SPAN, Priority::Prefetch).await.is_err());
    layer.check(&device, 4 * SPAN..5 * SPAN).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_the_flight_to_the_others() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    source.close();
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    let read = || {
        let (device, layer) = (Arc::clone(&device), layer.clone());
        tokio::spawn(async move { layer.check(&device, 0..2 * SPAN).await })
    };
    let (first, second) = (read(), read());
    source.sent(1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    source.open();
    second.await.unwrap().unwrap();
    assert_eq!(source.gets(), [0..2 * SPAN]);
}

#[tokio::test]
async fn specs_that_cannot_be_right_are_refused() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let devices = devices(dir.path(), options()).await;
    let source = layer.source("a");
    let mut short = layer.spec(&source, None);
    short.source_size -= 1;
    assert!(matches!(devices.device(short), Err(DeviceError::Spec { .. })));
    let mut backwards = layer.spec(&source, None);
    backwards.checkpoint_groups = vec![std::ops::Range { start: 9, end: 3 }];
    assert!(matches!(devices.device(backwards), Err(DeviceError::Spec { .. })));
    let device = devices.device(layer.spec(&source, None)).unwrap();
    let mut lying = Layer::stored(8);
    let mut spans = lying.spans.spans().to_vec();
    spans[0].blake3[0] ^= 1;
    lying.spans = clipper_format::span::SpanTable::new(spans, lying.blob.len() as u64).unwrap();
    assert!(matches!(devices.device(lying.spec(&source, None)), Err(DeviceError::Spec { .. })));
    layer.check(&device, 0..layer.size()).await.unwrap();
    drop(device);
    // Nor does it inherit what was verified against the other table.
    let nothing = TestSource::new("nothing".into(), Arc::default());
    let opened = loop {
        match devices.device(lying.spec(&nothing, None)) {
            // The last run is still landing.
            Err(DeviceError::Spec { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(opened.cached_bytes(), 0);
}
