//! `clipper-snapshotter`: Clipper's proxy plugin for containerd. This file wires its rooms together.
mod chain;
mod config;
mod containerd;
mod directories;
mod error;
mod filters;
mod lifecycle;
mod materialise;
mod ordinary;
mod overlay;
mod proto;
mod records;
mod remote;
mod server;
mod service;
mod snapshot;
mod traces;
mod trees;
mod unpack;
mod wanted;

use anyhow::{Context, Result};
use clap::Parser;
use clipper_mount::{Store, StoreOptions};
use clipper_registry::Client;
use config::{Arguments, Config};
use containerd::ContentStore;
use lifecycle::Lifecycle;
use ordinary::Ordinary;
use remote::Remote;
use service::Service;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use tokio::runtime::Handle;
use tracing_subscriber::EnvFilter;

/// Gives memory back soon after a mount has used much of it; its settings are in .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<()> {
    let config = Config::load(Arguments::parse())?;
    let filter = EnvFilter::try_new(&config.log_level).context("the log level")?;
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    // Two workers carry the conversation; everything that blocks runs elsewhere.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(run(config))
}

async fn run(config: Config) -> Result<()> {
    let socket = server::Socket::bind(&config.address).await?;
    let root = &config.root;
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
    make.with_context(|| format!("create {}", root.display()))?;
    let client = Client::new(config.registry.client_options()).context("set up the registry client")?;
    let options = StoreOptions { root: root.clone(), client: client.clone(), devices: config.fetch.device_options() };
    let store = Store::open(options, Handle::current()).context("open the store of cached data")?;
    // Now rather than at the first mount: who asks for a driver that can't work here should hear of it at once.
    let driver = store.drivers().choose(config.driver).await.context("set up the driver of mounts")?;
    let containerd = ContentStore::new(config.containerd_address.clone());
    let ordinary = Ordinary::open(root, client.clone(), containerd.clone())?;
    let remote = Remote::open(root, client, Arc::clone(&store), containerd, config.mount_options())?;
    let lifecycle = Lifecycle::open(root, remote, ordinary).await?;
    tracing::info!(address = %config.address.display(), root = %root.display(), %driver, "serving");
    let served = socket.serve(Service::new(lifecycle)).await;
    // What was fetched in the last seconds isn't known to be on disk yet: the next daemon shouldn't fetch it again.
    store.flush().await.context("record what is cached")?;
    served
}
