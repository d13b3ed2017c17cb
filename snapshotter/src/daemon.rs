//! The daemon: a wiring diagram of the rooms that serve containerd.
use crate::{
    config::Config,
    containerd::ContentStore,
    control::Control,
    credentials::Credentials,
    hints::Hints,
    lifecycle::Lifecycle,
    metrics::{Endpoint, Readiness},
    node::Node,
    ordinary::Ordinary,
    remote::Remote,
    server::{Ending, Socket},
    service::Service,
    supervision::{Supervision, leave_everything},
};
use anyhow::{Context, Result};
use clipper_device::DeviceError;
use clipper_mount::{Store, StoreError, StoreOptions};
use clipper_registry::Client;
use std::{
    os::unix::fs::DirBuilderExt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime::Handle, time::sleep};

/// How long what a dead daemon has open may stay locked.
const LOCKED: Duration = Duration::from_secs(10);

/// Serves until the daemon is told to stop, or to make room for another one.
pub async fn run(config: Config, mut supervision: Supervision) -> Result<()> {
    let started = Instant::now();
    let readiness = Readiness::default();
    let _metrics = match &config.metrics.address {
        Some(address) => Some(Endpoint::start(address, readiness.clone()).await),
        None => None,
    };
    let _control = Control::new(readiness.clone()).serve(&config.control_address());
    let root = &config.root;
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
    make.with_context(|| format!("create {}", root.display()))?;
    let credentials = Credentials::open(root, &config).context("set up the credentials of registries")?;
    let images = credentials.image_proxy(&config.containerd_address)?;
    let client = Client::with_credentials(config.registry.client_options(), Arc::<Credentials>::clone(&credentials));
    let client = client.context("set up the registry client")?;
    readiness.wait_for("opening the store of cached data");
    let store = open_store(&config, &client, &supervision).await.context("open the store of cached data")?;
    // Before anything looks at what is mounted: it doesn't answer yet.
    let kept = std::mem::take(&mut supervision.kept);
    let taken = store.take_over(kept, &config.mount_options()).await;
    let history = supervision.history;
    if history.last != 0 {
        let (mounts, after) = (taken.len(), started.elapsed());
        tracing::info!(mounts, ?after, takeovers = history.takeovers, upgrades = history.upgrades, "took over");
    }
    // Now rather than at the first mount: who asks for a driver that can't work here should hear of it at once.
    readiness.wait_for("trying out the driver of mounts");
    let driver = store.drivers().choose(config.driver).await.context("set up the driver of mounts")?;
    let containerd = ContentStore::new(config.containerd_address.clone());
    let ordinary = Ordinary::open(root, client.clone(), containerd.clone())?;
    let hints = Hints::new(&config.registry.follow_refs)?;
    let remote =
        Remote::open(root, client.clone(), Arc::clone(&store), containerd, hints, config.mount_options(), taken)?;
    readiness.wait_for("opening the records of snapshots");
    let lifecycle = Lifecycle::open(root, remote, ordinary).await?;
    tracing::info!(address = %config.address.display(), root = %root.display(), %driver, "serving");
    let socket = Socket::new(supervision.api.try_clone().context("set up the socket")?)?;
    supervision.serving().context("tell the supervisor")?;
    let service = Service::new(Arc::clone(&lifecycle), credentials.told());
    readiness.ready(Arc::new(Node {
        lifecycle: Arc::clone(&lifecycle),
        store: Arc::clone(&store),
        client,
        driver,
        root: root.clone(),
        started: SystemTime::now(),
        takeovers: history.takeovers,
    }));
    let served = socket.serve(service, images, supervision.leave).await;
    readiness.wait_for("stopping");
    // What was fetched in the last seconds isn't known to be on disk yet: the next daemon shouldn't fetch it again.
    store.flush().await.context("record what is cached")?;
    if served? == Ending::Leave {
        leave_everything(0);
    }
    store.unmount_dropped();
    drop(lifecycle);
    Ok(())
}

/// Opens the store, as soon as a daemon that died has let go of it.
async fn open_store(config: &Config, client: &Client, supervision: &Supervision) -> Result<Arc<Store>> {
    let deadline = Instant::now() + LOCKED;
    loop {
        let (root, devices) = (config.root.clone(), config.device_options());
        let options = StoreOptions { root, client: client.clone(), devices };
        match Store::open_kept(options, Handle::current(), supervision.keeper()) {
            Err(StoreError::Devices { source, .. })
                if matches!(*source, DeviceError::InUse { .. }) && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(10)).await;
            }
            opened => return Ok(opened?),
        }
    }
}
