//! What survives: restarts, removal, two programs at one directory.
use crate::fixture::{Fault, Layer, SPAN, devices, options};
use clipper_device::{DeviceError, DeviceOptions, Devices, FillState};
use std::{fs, path::Path, time::Duration};
use tokio::runtime::Handle;

fn presence(root: &Path, layer: &Layer) -> std::path::PathBuf {
    root.join("devices").join(layer.digest().hex()).join("presence")
}

#[tokio::test]
async fn what_was_flushed_is_served_offline_after_a_restart() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::gzip(1_000_000, usize::MAX));
    let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
    let first = devices(dir.path(), options()).await;
    let device = first.device(layer.spec(&source, Some(&points))).unwrap();
    layer.check(&device, 100_000..500_000).await.unwrap();
    let cached = device.cached_bytes();
    first.flush().await.unwrap();
    drop((device, first));
    source.always(Fault::Refuse);
    let gets = source.gets().len();
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, Some(&points))).unwrap();
    assert_eq!(device.cached_bytes(), cached);
    layer.check(&device, 100_000..500_000).await.unwrap();
    assert_eq!(source.gets().len(), gets);
    assert!(matches!(layer.check(&device, 900_000..900_001).await, Err(DeviceError::Fetch { .. })));
}

#[tokio::test]
async fn dropping_the_last_handle_records_what_is_here() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    let devices = devices(dir.path(), DeviceOptions { flush_idle: Duration::from_secs(3600), ..options() }).await;
    let device = devices.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 0..layer.size()).await.unwrap();
    assert!(!presence(dir.path(), &layer).exists());
    drop(device);
    // Whoever opens it at once finds what it had.
    let device = devices.device(layer.spec(&source, None)).unwrap();
    assert!(device.is_complete());
    drop(device);
    // And once all is flushed it is on disk, however lately somebody let go of it.
    devices.flush().await.unwrap();
    assert!(presence(dir.path(), &layer).exists());
}

#[tokio::test]
async fn presence_is_recorded_soon_after_activity_stops_and_during_long_activity() {
    for (flush_idle, flush_interval) in [(1, 3_600_000), (50, 0)] {
        let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
        let soon = DeviceOptions {
            flush_idle: Duration::from_millis(flush_idle),
            flush_interval: Duration::from_millis(flush_interval),
            ..options()
        };
        let device = devices(dir.path(), soon).await.device(layer.spec(&layer.source("a"), None)).unwrap();
        for span in 0..8 {
            layer.check(&device, span * SPAN..span * SPAN + 1).await.unwrap();
            while !presence(dir.path(), &layer).exists() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            fs::remove_file(presence(dir.path(), &layer)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_cache_is_fetched_again() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    let file = presence(dir.path(), &layer);
    for damage in 0..3 {
        let before = devices(dir.path(), options()).await;
        let device = before.device(layer.spec(&source, None)).unwrap();
        layer.check(&device, 0..layer.size()).await.unwrap();
        device.flush().await.unwrap();
        drop((device, before));
        match damage {
            0 => fs::write(&file, b"torn").unwrap(),
            1 => fs::write(&file, fs::read(&file).unwrap().iter().rev().copied().collect::<Vec<_>>()).unwrap(),
            _ => fs::File::options().write(true).open(file.with_file_name("data")).unwrap().set_len(SPAN + 1).unwrap(),
        }
        let after = devices(dir.path(), options()).await;
        let device = after.device(layer.spec(&source, None)).unwrap();
        assert_eq!(device.cached_bytes(), 0, "{damage}");
        layer.check(&device, 0..layer.size()).await.unwrap();
    }
}

#[tokio::test]
async fn data_truncated_under_our_hands_are_fetched_again() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(8));
    let source = layer.source("a");
    let device = devices(dir.path(), options()).await.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 0..layer.size()).await.unwrap();
    let data = presence(dir.path(), &layer).with_file_name("data");
    fs::File::options().write(true).open(data).unwrap().set_len(SPAN).unwrap();
    layer.check(&device, 2 * SPAN..5 * SPAN).await.unwrap();
    layer.check(&device, 0..layer.size()).await.unwrap();
    assert_eq!(device.stats().fetched_bytes, 2 * layer.size());
}

#[tokio::test]
async fn a_removed_device_is_gone_from_disk_but_not_for_those_who_hold_it() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(16));
    let devices = devices(dir.path(), options()).await;
    let source = layer.source("a");
    let device = devices.device(layer.spec(&source, None)).unwrap();
    layer.check(&device, 0..8 * SPAN).await.unwrap();
    device.flush().await.unwrap();
    assert_eq!(devices.list(), [layer.digest()]);
    let usage = devices.usage(&layer.digest());
    assert!((8 * SPAN..12 * SPAN).contains(&usage), "{usage}");
    devices.remove(&layer.digest()).unwrap();
    devices.remove(&layer.digest()).unwrap();
    assert_eq!((devices.list().len(), devices.usage(&layer.digest())), (0, 0));
    let names = fs::read_dir(dir.path().join("devices")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["lock"]);
    layer.check(&device, 0..layer.size()).await.unwrap();
    device.flush().await.unwrap();
    let fresh = devices.device(layer.spec(&source, None)).unwrap();
    assert_eq!((fresh.cached_bytes(), device.cached_bytes()), (0, layer.size()));
    layer.check(&fresh, 0..10).await.unwrap();
}

#[tokio::test]
async fn removal_stops_the_fill() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::stored(16));
    let devices = devices(dir.path(), options()).await;
    let source = layer.source("a");
    source.close();
    let device = devices.device(layer.spec(&source, None)).unwrap();
    device.start_fill();
    source.sent(1).await;
    devices.remove(&layer.digest()).unwrap();
    assert_eq!(device.filled().await, FillState::Stopped);
}

#[tokio::test]
async fn a_directory_belongs_to_one_and_leftovers_are_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let first = devices(dir.path(), options()).await;
    let open = || Devices::open(dir.path().join("devices"), options(), Handle::current());
    assert!(matches!(open(), Err(DeviceError::InUse { .. })));
    drop(first);
    let leftover = dir.path().join("devices/removed-1234-1");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("data"), b"x").unwrap();
    let second = open().unwrap();
    assert!(!leftover.exists() && second.list().is_empty());
}
