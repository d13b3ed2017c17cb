//! Devices over blobs of the registry client; here of an OCI layout, which needs no server.
use crate::fixture::{Layer, devices, options};
use clipper_device::{DeviceError, DeviceSpec};
use clipper_format::Digest;
use clipper_registry::{Client, ClientOptions};
use std::{fs, sync::Arc};

#[tokio::test]
async fn a_layer_is_read_from_blobs_and_a_damaged_one_is_told_by_name() {
    let (dir, layer) = (tempfile::tempdir().unwrap(), Layer::gzip(700_000, usize::MAX));
    let layout = dir.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(layout.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    let points = Digest::of(&layer.checkpoints);
    fs::write(blobs.join(points.hex()), &layer.checkpoints[..]).unwrap();
    let mut damaged = layer.blob.to_vec();
    let end = damaged.len() - 5000;
    damaged[end] ^= 1;
    fs::write(blobs.join(layer.digest().hex()), damaged).unwrap();

    let client = Client::new(ClientOptions::default()).unwrap();
    let repository = client.repository(&format!("oci:{}", layout.display()).parse().unwrap()).unwrap();
    let source_size = layer.blob.len() as u64;
    let device = devices(dir.path(), options()).await.device(DeviceSpec {
        digest: Digest::of(b"key"),
        source_size,
        spans: layer.spans.clone(),
        checkpoint_groups: layer.groups.clone(),
        layer: Arc::new(repository.blob(layer.digest(), source_size)),
        checkpoints: Some(Arc::new(repository.blob(points, layer.checkpoints.len() as u64))),
        log: tracing::Span::none(),
    });
    let device = device.unwrap();
    layer.check(&device, 300_000..500_000).await.unwrap();
    let error = layer.check(&device, 0..layer.size()).await.unwrap_err();
    assert!(matches!(error, DeviceError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains(&layer.digest().to_string()), "{error}");
}
