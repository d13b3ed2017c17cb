//! What several commands need of accelerated images: finding them, and a store to read them through.
use anyhow::{Context, Result};
use clipper_device::DeviceOptions;
use clipper_mount::accelerated::{self, AcceleratedImage};
use clipper_mount::{Store, StoreOptions};
use clipper_registry::image::ImageSet;
use clipper_registry::{Client, PlatformName, Reference};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The accelerated images that `reference` leads to: the one of `platform`, or all.
pub async fn accelerated(
    client: &Client,
    reference: &Reference,
    platform: Option<&str>,
) -> Result<Vec<AcceleratedImage>> {
    if platform.is_some() {
        return Ok(vec![accelerated::resolve(client, reference, platform).await?]);
    }
    let set = ImageSet::resolve(&client.repository(reference)?, reference).await?;
    let mut images = Vec::new();
    for image in &set.images {
        let platform = PlatformName::of(&image.platform).to_string();
        images.push(accelerated::resolve(client, reference, Some(&platform)).await?);
    }
    Ok(images)
}

/// The platform that the user named, or else this machine's.
pub fn platform(name: Option<&str>) -> Result<PlatformName> {
    Ok(name.map_or_else(|| Ok(PlatformName::host()), str::parse)?)
}

/// Opens a store in `root`.
pub fn store(client: &Client, root: &Path) -> Result<Arc<Store>> {
    let options = StoreOptions { root: root.to_owned(), client: client.clone(), devices: DeviceOptions::default() };
    Store::open(options, tokio::runtime::Handle::current())
        .with_context(|| format!("opening the cache {}", root.display()))
}

/// How often the removal of a cache is tried again, and how long after.
const REMOVALS: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);

/// A store that goes with the command.
pub struct TemporaryStore {
    // Before the directory, so that it is closed before that goes.
    store: Arc<Store>,
    directory: TempDir,
}

impl TemporaryStore {
    /// Opens a store in a new directory under `$TMPDIR` or else /var/tmp, which is on a disk where /tmp may be memory.
    pub fn open(client: &Client) -> Result<Self> {
        let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let directory = tempfile::Builder::new()
            .prefix("clipper-")
            .tempdir_in(&base)
            .with_context(|| format!("making a cache in {}", base.display()))?;
        Ok(Self { store: store(client, directory.path())?, directory })
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Removes it, and says so if that fails; otherwise it is removed silently when dropped.
    pub async fn remove(self) -> Result<()> {
        let Self { store, directory } = self;
        // Devices record what they have when they go; they may outlive the store by a moment, but not the directory.
        store.flush().await.context("closing the cache")?;
        drop(store);
        // The last holders of a device let go of it on threads of their own, and may write its presence once more.
        let path = directory.keep();
        for _ in 0..REMOVALS {
            match std::fs::remove_dir_all(&path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => tokio::time::sleep(PAUSE).await,
                done => return done.with_context(|| format!("removing the cache {}", path.display())),
            }
        }
        std::fs::remove_dir_all(&path).with_context(|| format!("removing the cache {}", path.display()))
    }
}
