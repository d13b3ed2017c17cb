//! The node as it is looked at from outside: its figures and its images, for metrics and for the control API.
mod figures;
mod images;

use crate::{error::Result, lifecycle::Lifecycle};
use clipper_mount::{Driver, Store};
use clipper_registry::Client;
use std::{path::PathBuf, sync::Arc, time::SystemTime};

pub use figures::{ImageFigures, NodeFigures};
pub use images::{ImageView, NoSuchImage, find};

/// All that is looked at.
pub struct Node {
    /// Snapshots and what is mounted.
    pub lifecycle: Arc<Lifecycle>,
    /// What is cached.
    pub store: Arc<Store>,
    /// What registries are asked.
    pub client: Client,
    /// What shows images to the kernel.
    pub driver: Driver,
    /// The daemon's root.
    pub root: PathBuf,
    /// When it started.
    pub started: SystemTime,
    /// How often a new process took mounts over from the one before.
    pub takeovers: u64,
}

impl Node {
    /// All lazy images, sorted by name.
    pub async fn images(&self) -> Result<Vec<ImageView>> {
        let (records, mounted) = (self.lifecycle.records().await?, self.lifecycle.mounted());
        Ok(images::views(&records, &mounted))
    }
}
