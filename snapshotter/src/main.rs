//! `clipper-snapshotter`: Clipper's proxy plugin for containerd. This file wires its rooms together.
mod config;
mod directories;
mod error;
mod filters;
mod lifecycle;
mod overlay;
mod proto;
mod records;
mod server;
mod service;
mod snapshot;

use anyhow::{Context, Result};
use clap::Parser;
use config::{Arguments, Config};
use lifecycle::Lifecycle;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

fn main() -> Result<()> {
    let config = Config::load(Arguments::parse())?;
    let filter = EnvFilter::try_new(&config.log_level).context("the log level")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
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
    let lifecycle = Arc::new(Lifecycle::open(&config.root)?);
    tracing::info!(address = %config.address.display(), root = %config.root.display(), "serving");
    socket.serve(service::Service::new(lifecycle)).await
}
