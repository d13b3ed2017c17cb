//! Limits: a full disk, and memory for spans on their way.
use crate::fixture::{Layer, SPAN, devices, options};
use clipper_device::{DeviceError, DeviceOptions, Priority};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{ffi::CString, fs, path::PathBuf, sync::Arc};

/// A small file system in memory; needs root, as CI and the node have it.
struct Tmpfs(PathBuf, #[allow(dead_code)] tempfile::TempDir);

impl Tmpfs {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::create_dir(&path).unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("mounting a tmpfs, as root");
        Self(path, dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_serves_from_memory_and_caches_again_when_there_is_room() {
    let (disk, layer) = (Tmpfs::new(32 * SPAN), Layer::stored(16));
    let filler = disk.0.join("filler");
    // There is room for a part of a span.
    fs::write(&filler, vec![1; 32 * SPAN as usize - (32 << 10)]).unwrap();
    let source = layer.source("a");
    let device = devices(&disk.0, options()).await.device(layer.spec(&source, None)).unwrap();
    for _ in 0..2 {
        layer.check(&device, 0..layer.size()).await.unwrap();
        assert!(device.cached_bytes() <= SPAN / 2, "{}", device.cached_bytes());
    }
    for span in (0..16).rev() {
        layer.check(&device, span * SPAN + 1..span * SPAN + 100).await.unwrap();
    }
    let error = device.ensure(0..layer.size(), Priority::Prefetch).await.unwrap_err();
    assert!(matches!(error, DeviceError::Storage { .. }), "{error}");
    assert_eq!(error.errno(), 28);
    // What couldn't be written whole takes no room.
    fs::write(disk.0.join("small"), [1; 16 << 10]).unwrap();
    fs::remove_file(&filler).unwrap();
    layer.check(&device, 8 * SPAN..10 * SPAN).await.unwrap();
    assert!(device.try_read(8 * SPAN, &mut [0; 2 * SPAN as usize]).unwrap());
}

#[tokio::test]
async fn on_a_full_disk_cold_data_go_and_what_is_read_is_cached_and_recorded() {
    let (disk, old, new) = (Tmpfs::new(40 * SPAN), Layer::stored(16), Layer::stored(20));
    let devices = devices(&disk.0, options()).await;
    let (old_source, new_source) = (old.source("a"), new.source("b"));
    let old_device = devices.device(old.spec(&old_source, None)).unwrap();
    old.check(&old_device, 0..old.size()).await.unwrap();
    old_device.flush().await.unwrap();
    fs::write(disk.0.join("filler"), vec![1; 16 * SPAN as usize]).unwrap();
    let new_device = devices.device(new.spec(&new_source, None)).unwrap();
    for span in 0..20 {
        new.check(&new_device, span * SPAN..(span + 1) * SPAN).await.unwrap();
        assert!(new_device.try_read(span * SPAN, &mut [0; SPAN as usize]).unwrap(), "span {span} is cached");
    }
    let usage = devices.cache_usage().unwrap();
    assert!(usage.evicted >= 12 * SPAN && !usage.in_trouble, "{usage:?}");
    assert!(old_device.cached_bytes() <= 4 * SPAN, "{}", old_device.cached_bytes());
    // Now there is no room for so much as a presence file.
    let mut rest = Vec::new();
    while fs::write(disk.0.join(format!("rest-{}", rest.len())), [1; 4096]).is_ok() {
        rest.push(());
    }
    new_device.flush().await.unwrap();
    let (there, size) = (new_device.cached_bytes(), new.size());
    assert!(there > 0);
    drop((new_device, old_device, devices));
    let devices = crate::fixture::devices(&disk.0, options()).await;
    let new_device = devices.device(new.spec(&new_source, None)).unwrap();
    assert_eq!(new_device.cached_bytes(), there);
    new.check(&new_device, 0..size).await.unwrap();
    let old_device = devices.device(old.spec(&old_source, None)).unwrap();
    old.check(&old_device, 0..old.size()).await.unwrap();
}

#[tokio::test]
async fn many_readers_with_little_memory_and_few_connections_all_get_there() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::gzip(2_000_000, usize::MAX));
    let tight = DeviceOptions {
        memory: 1,
        foreground_connections: 1,
        prefetch_connections: 1,
        background_connections: 1,
        decoders: 1,
        checkpoint_memory: 0,
        ..DeviceOptions::default()
    };
    let (source, points) = (layer.source("a"), layer.checkpoint_source("a"));
    let device = devices(dir.path(), tight).await.device(layer.spec(&source, Some(&points))).unwrap();
    device.start_fill();
    let read = |i: u64| {
        let (device, layer) = (Arc::clone(&device), layer.clone());
        tokio::spawn(async move { layer.check(&device, i * 31_000..i * 31_000 + 130_000).await })
    };
    for reader in (0..60).rev().map(read).collect::<Vec<_>>() {
        reader.await.unwrap().unwrap();
    }
    layer.check(&device, 0..layer.size()).await.unwrap();
}
