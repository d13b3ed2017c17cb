//! The figures of a node at one moment.
use super::Node;
use crate::{error::with_causes, snapshot::Kind};
use clipper_device::{CacheUsage, Figures};
use clipper_registry::{HostStats, Stats};
use std::collections::BTreeMap;

/// What all rooms have counted.
pub struct NodeFigures {
    /// The driver's name.
    pub driver: String,
    /// Devices.
    pub devices: Figures,
    /// The cache; `None` if the disk doesn't tell.
    pub cache: Option<CacheUsage>,
    /// Registries, all together.
    pub registry: Stats,
    /// Each of their servers.
    pub hosts: Vec<HostStats>,
    /// Snapshots by kind.
    pub snapshots: BTreeMap<&'static str, u64>,
    /// Mounted images: name, chain, uncompressed bytes, and those of them that are here.
    pub images: Vec<ImageFigures>,
    /// Takeovers.
    pub takeovers: u64,
}

/// How far a mounted image has come.
pub struct ImageFigures {
    /// What it is called.
    pub name: String,
    /// The first digits of its chain ID.
    pub chain: String,
    /// Uncompressed bytes of its layers.
    pub size: u64,
    /// Those of them that are here.
    pub cached: u64,
}

impl Node {
    /// Collects the figures. What can't be had is left out.
    pub async fn figures(&self) -> NodeFigures {
        let records = self.lifecycle.records().await.unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), "snapshots can't be counted");
            Vec::new()
        });
        let mut snapshots = BTreeMap::from([("active", 0), ("view", 0), ("committed", 0)]);
        for (_, record) in &records {
            let kind = match record.kind {
                Kind::Active => "active",
                Kind::View => "view",
                Kind::Committed => "committed",
            };
            *snapshots.entry(kind).or_default() += 1;
        }
        let views = super::images::views(&records, &self.lifecycle.mounted());
        let images = views.into_iter().filter_map(|view| {
            let chain = view.short_chain();
            let devices = view.mounted?;
            let sum = |bytes: fn(&clipper_device::Device) -> u64| {
                devices.devices().iter().map(|lazy| bytes(&lazy.device)).sum()
            };
            let (size, cached) = (sum(|device| device.size()), sum(|device| device.cached_bytes()));
            Some(ImageFigures { name: view.name, chain, size, cached })
        });
        NodeFigures {
            driver: self.driver.to_string(),
            devices: self.store.figures(),
            cache: self.store.cache_usage().await.ok(),
            registry: self.client.stats(),
            hosts: self.client.host_stats(),
            snapshots,
            images: images.collect(),
            takeovers: self.takeovers,
        }
    }
}
