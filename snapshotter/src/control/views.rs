//! What the node knows, in the words of the control API.
use crate::{
    node::{ImageView, Node, NodeFigures},
    proto::clipper::control::v1 as api,
};
use clipper_device::{CacheUsage, FillState};
use clipper_mount::{DiskUsage, LayerProgress};
use std::time::{SystemTime, UNIX_EPOCH};

/// How the node is doing.
pub fn status(node: &Node, figures: NodeFigures, images: u64) -> api::StatusResponse {
    let NodeFigures { driver, devices, cache, hosts, snapshots, images: mounted, takeovers, .. } = figures;
    let traffic = devices.traffic.into_iter().map(|it| api::Traffic {
        host: it.host.to_string(),
        source: it.purpose.name().into(),
        bytes: it.bytes,
    });
    let hosts = hosts.into_iter().map(|host| api::Host {
        host: host.host,
        requests: host.requests,
        bytes: host.bytes_received,
        failures: host.failures,
        failovers: host.failovers,
        verification_failures: host.verification_failures,
        sick: host.sick,
    });
    api::StatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        driver,
        root: node.root.display().to_string(),
        started: seconds(node.started),
        not_ready: String::new(),
        images,
        mounts: mounted.len() as u64,
        snapshots: snapshots.values().sum(),
        waiting_readers: devices.waiting_readers,
        failed_reads: devices.failed_reads,
        slow_reads: devices.slow_reads,
        corrupt: devices.corrupt,
        takeovers,
        cache: cache.map(cache_usage),
        traffic: traffic.collect(),
        hosts: hosts.collect(),
    }
}

/// An image and how far its layers have been loaded.
pub fn image(image: ImageView, progress: &[LayerProgress]) -> api::Image {
    let layers = progress.iter().map(|layer| api::Layer {
        digest: layer.layer.to_string(),
        size: layer.size.unwrap_or_default(),
        cached: layer.cached,
        fill: layer.fill.map_or("", fill).into(),
        pinned: layer.pinned,
    });
    api::Image {
        chain: image.chain.to_string(),
        layers: layers.collect(),
        size: progress.iter().filter_map(|layer| layer.size).sum(),
        cached: progress.iter().map(|layer| layer.cached).sum(),
        mounted: image.mounted.is_some(),
        containers: image.containers,
        name: image.name,
    }
}

/// Where the disk went, and which of `images` each layer is of.
pub fn disk_usage(usage: DiskUsage, images: &[ImageView]) -> api::DiskUsageResponse {
    let layers = usage.layers.into_iter().map(|clipper_mount::LayerUsage { layer, device }| {
        let is_of = |image: &&ImageView| layer.is_some_and(|layer| image.layers.iter().any(|it| it.layer == layer));
        api::LayerUsage {
            device: device.device.to_string(),
            layer: layer.map(|layer| layer.to_string()).unwrap_or_default(),
            size: device.size.unwrap_or_default(),
            cached: device.cached_bytes,
            disk_bytes: device.disk_bytes,
            open: device.open,
            pinned: device.pinned,
            last_use: device.last_use.map_or(0, seconds),
            images: images.iter().filter(is_of).map(|image| image.name.clone()).collect(),
        }
    });
    api::DiskUsageResponse { layers: layers.collect(), cache: Some(cache_usage(usage.cache)) }
}

fn cache_usage(cache: CacheUsage) -> api::Cache {
    api::Cache {
        disk_bytes: cache.disk_bytes,
        max_bytes: cache.max_bytes,
        free_bytes: cache.free,
        min_free_bytes: cache.min_free,
        evictions: cache.evictions,
        evicted_bytes: cache.evicted,
        in_trouble: cache.in_trouble,
    }
}

fn fill(state: FillState) -> &'static str {
    match state {
        FillState::Idle => "idle",
        FillState::Running => "running",
        FillState::Stopped => "stopped",
        FillState::Done => "done",
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or_default())
}
