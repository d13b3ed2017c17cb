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
    fs::write(&filler, vec![1; 29 * SPAN as usize]).unwrap();
    let source = layer.source("a");
    let device = devices(&disk.0, options()).await.device(layer.spec(&source, None)).unwrap();
    for _ in 0..2 {
        layer.check(&device, 0..layer.size()).await.unwrap();
        assert!(device.cached_bytes() <= 3 * SPAN, "{}", device.cached_bytes());
    }
    for span in (0..16).rev() {
        layer.check(&device, span * SPAN + 1..span * SPAN + 100).await.unwrap();
    }
    let error = device.ensure(0..layer.size(), Priority::Prefetch).await.unwrap_err();
    assert!(matches!(error, DeviceError::Storage { .. }), "{error}");
    assert_eq!(error.errno(), 28);
    fs::remove_file(&filler).unwrap();
    layer.check(&device, 8 * SPAN..10 * SPAN).await.unwrap();
    assert!(device.try_read(8 * SPAN, &mut [0; 2 * SPAN as usize]).unwrap());
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
