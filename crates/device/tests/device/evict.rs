//! Eviction: a cache smaller than what is read through it.
use crate::fixture::{Layer, SPAN, devices, options};
use clipper_device::{Device, DeviceOptions, Devices, FillState};
use clipper_format::Digest;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

fn limited(spans: u64) -> DeviceOptions {
    DeviceOptions { max_bytes: Some(spans * SPAN), ..options() }
}

/// Waits until the clock by which uses are told apart has moved.
async fn tick() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// What all devices take, in spans, once whoever has landed a span has seen to the limit.
async fn taken(devices: &Devices, at_most: u64) -> u64 {
    let taken = || devices.cache_usage().unwrap().disk_bytes.div_ceil(SPAN);
    for _ in 0..1000 {
        if taken() <= at_most {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    taken()
}

async fn read(layer: &Layer, device: &Device) {
    layer.check(device, 0..layer.size()).await.unwrap();
}

#[tokio::test]
async fn a_layer_much_larger_than_the_cache_is_read_right_and_the_limit_kept() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(100));
    let devices = devices(dir.path(), limited(10)).await;
    let source = layer.source("a");
    let device = devices.device(layer.spec(&source, None)).unwrap();
    let pieces: Vec<_> = (0..layer.size()).step_by(SPAN as usize * 3 / 2).collect();
    for start in pieces.iter().chain(pieces.iter().rev()) {
        layer.check(&device, *start..layer.size().min(start + SPAN * 3 / 2)).await.unwrap();
        // Two spans and the presence file may be over.
        let taken = taken(&devices, 13).await;
        assert!(taken <= 13, "{taken} spans");
    }
    let usage = devices.cache_usage().unwrap();
    assert!(usage.evicted >= 150 * SPAN, "{usage:?}");
    // One read of far more than the limit: nothing of it may go before it is all there.
    read(&layer, &device).await;
    assert!(taken(&devices, 13).await <= 13);
    device.flush().await.unwrap();
    let cached = device.cached_bytes();
    drop((device, devices));
    let devices = crate::fixture::devices(dir.path(), limited(10)).await;
    let device = devices.device(layer.spec(&source, None)).unwrap();
    assert!(device.cached_bytes() <= cached && taken(&devices, 13).await <= 13);
    read(&layer, &device).await;
}

#[tokio::test]
async fn what_no_container_needs_goes_first_then_what_is_cold() {
    let dir = tempfile::tempdir().unwrap();
    let devices = devices(dir.path(), limited(80)).await;
    let layers = [32, 33, 34].map(Layer::stored);
    let [a, b, c] = &layers;
    let open = |layer: &Layer| devices.device(layer.spec(&layer.source("a"), None)).unwrap();
    let (da, db, dc) = (open(a), open(b), open(c));
    devices.pin(HashSet::from([a.digest()]));
    read(a, &da).await;
    tick().await;
    read(b, &db).await;
    tick().await;
    read(c, &dc).await;
    assert!(taken(&devices, 81).await <= 81);
    assert!(da.is_complete(), "a container needs it, however cold it is");
    assert!(dc.is_complete() && db.cached_bytes() <= 14 * SPAN, "{} of b", db.cached_bytes());

    // Now the container is gone, and another has come.
    devices.pin(HashSet::from([b.digest(), c.digest()]));
    tick().await;
    // The second half of `a` is warm.
    assert!(da.try_read(16 * SPAN, &mut [0; 16 * SPAN as usize]).unwrap());
    tick().await;
    read(b, &db).await;
    assert!(taken(&devices, 81).await <= 81);
    let usages = devices.usages();
    assert!(db.is_complete() && dc.is_complete());
    assert!(!da.try_read(0, &mut [0; 1]).unwrap() && da.cached_bytes() <= 16 * SPAN);
    assert!(da.try_read(31 * SPAN, &mut [0; 1]).unwrap());
    let usage = |digest: Digest| usages.iter().find(|usage| usage.device == digest).unwrap();
    assert!(usage(a.digest()).open && !usage(a.digest()).pinned && usage(c.digest()).pinned);
    assert_eq!(usage(b.digest()).cached_bytes, b.size());
    assert!(usage(a.digest()).last_use < usage(b.digest()).last_use);
}

#[tokio::test]
async fn what_nobody_has_open_goes_in_the_order_of_its_last_use_and_then_altogether() {
    let dir = tempfile::tempdir().unwrap();
    let layers = [16, 24, 20].map(Layer::stored);
    let [old, newer, now] = &layers;
    let unlimited = devices(dir.path(), options()).await;
    for layer in [old, newer] {
        let device = unlimited.device(layer.spec(&layer.source("a"), None)).unwrap();
        read(layer, &device).await;
        device.flush().await.unwrap();
        tick().await;
    }
    drop(unlimited);
    let devices = devices(dir.path(), limited(38)).await;
    let usages = devices.usages();
    assert!(usages.iter().all(|usage| !usage.open && usage.last_use.is_some()), "{usages:?}");
    let device = devices.device(now.spec(&now.source("a"), None)).unwrap();
    for span in 0..20 {
        now.check(&device, span * SPAN..(span + 1) * SPAN).await.unwrap();
        tick().await;
    }
    assert!(taken(&devices, 39).await <= 39);
    let left = devices.list();
    assert!(!left.contains(&old.digest()) && left.contains(&newer.digest()), "{:?}", devices.usages());
    assert!((0..20).all(|span| device.try_read(span * SPAN, &mut [0; 1]).unwrap()), "what is being read stays");
    // What is left of it is right, and what isn't comes again.
    let source = newer.source("b");
    let device = devices.device(newer.spec(&source, None)).unwrap();
    assert!((SPAN..24 * SPAN).contains(&device.cached_bytes()), "{}", device.cached_bytes());
    read(newer, &device).await;
    assert!(!source.gets().is_empty());
    // A device of which nothing is known has nothing to give but all.
    let unknown = dir.path().join("devices").join(Digest::of(b"unknown").hex());
    std::fs::create_dir(&unknown).unwrap();
    std::fs::write(unknown.join("data"), vec![1; 1 << 20]).unwrap();
    assert!(devices.make_room(1) > 0);
    assert!(!unknown.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_every_byte_right_while_others_evict_all_they_can() {
    let layers = [Layer::gzip(2_000_000, usize::MAX), Layer::zstd(1_500_000, 20_000), Layer::stored(30)];
    let dir = tempfile::tempdir().unwrap();
    let tight = DeviceOptions { read_ahead: 400_000, flush_idle: Duration::from_millis(1), ..limited(6) };
    let devices = devices(dir.path(), tight).await;
    let done = Arc::new(AtomicBool::new(false));
    let evictor = {
        let (devices, done) = (Arc::clone(&devices), Arc::clone(&done));
        tokio::task::spawn_blocking(move || {
            while !done.load(Ordering::Relaxed) {
                devices.make_room(4 * SPAN);
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let mut readers = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
        let points = (!layer.checkpoints.is_empty()).then_some(&points);
        let device = devices.device(layer.spec(&source, points)).unwrap();
        device.start_fill();
        for seed in 0..3 {
            let (device, layer) = (Arc::clone(&device), layer.clone());
            let mut rng = StdRng::seed_from_u64(number as u64 * 10 + seed);
            readers.push(tokio::spawn(async move {
                for _ in 0..60 {
                    let start = rng.random_range(0..layer.size());
                    let end = layer.size().min(start + rng.random_range(1..300_000));
                    layer.check(&device, start..end).await.unwrap();
                }
            }));
        }
    }
    for reader in readers {
        reader.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    evictor.await.unwrap();
    assert!(devices.cache_usage().unwrap().evicted > 10 * SPAN);
    assert!(taken(&devices, 10).await <= 10);
}

#[tokio::test]
async fn fill_stops_at_the_limit_and_goes_on_when_there_is_room() {
    let (dir, layer, other) = (tempfile::tempdir().unwrap(), Layer::stored(128), Layer::stored(40));
    let devices = devices(dir.path(), limited(100)).await;
    let source = layer.source("a");
    let other_device = devices.device(other.spec(&other.source("a"), None)).unwrap();
    read(&other, &other_device).await;
    let device = devices.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    // A step is 32 spans; a second one doesn't fit beside the other layer.
    while device.cached_bytes() < 32 * SPAN {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A reader is served beyond the limit, and what was only filled goes for that.
    layer.check(&device, 72 * SPAN..122 * SPAN).await.unwrap();
    assert!(taken(&devices, 101).await <= 101);
    assert!(!device.try_read(0, &mut [0; 1]).unwrap() && device.try_read(121 * SPAN, &mut [0; 1]).unwrap());
    assert!(other_device.is_complete());
    let gets = source.gets().len();
    // Longer than fill waits until it tries again.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((source.gets().len(), device.fill_state()), (gets, FillState::Running), "evicted and not fetched again");
    drop(other_device);
    devices.remove(&other.digest()).unwrap();
    while source.gets().len() == gets {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    read(&layer, &device).await;
}
