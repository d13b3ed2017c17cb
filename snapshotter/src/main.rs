//! `clipper-snapshotter`: Clipper's proxy plugin for containerd. This file starts it.
mod chain;
mod config;
mod containerd;
mod control;
mod credentials;
mod daemon;
mod directories;
mod error;
mod filters;
mod hints;
mod lifecycle;
mod logs;
mod mapped;
mod materialise;
mod metrics;
mod node;
mod notify;
mod ordinary;
mod overlay;
mod proto;
mod records;
mod remote;
mod server;
mod service;
mod side_socket;
mod size;
mod snapshot;
mod socket_file;
mod supervision;
mod supervisor;
mod traces;
mod trees;
mod unpack;
mod wanted;

use anyhow::{Context, Result};
use clap::Parser;
use config::{Action, Arguments, Config, Role};
use std::process::ExitCode;
use supervision::{Supervision, leave_everything};
use tokio::runtime::Builder;

/// Gives memory back soon after a mount has used much of it; its settings are in .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (role, command, check) = (arguments.role, arguments.command, arguments.check);
    let config = Config::load(arguments)?;
    let filter = logs::filter(&config.log_level)?;
    if check {
        println!("the configuration is valid");
        return Ok(ExitCode::SUCCESS);
    }
    if command == Some(Action::Upgrade) {
        println!("{}", supervisor::upgrade(&config)?);
        return Ok(ExitCode::SUCCESS);
    }
    logs::start(filter, config.log_format);
    match role {
        Role::Supervisor | Role::Resumed => {
            let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
            runtime.block_on(supervisor::run(config, role))
        }
        Role::Daemon => {
            let supervision = Supervision::begin()?;
            // Two workers carry the conversation; everything that blocks runs elsewhere.
            let mut runtime = Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).max_blocking_threads(32).enable_all().build();
            let runtime = runtime.context("start the runtime")?;
            if let Err(error) = runtime.block_on(daemon::run(config, supervision)) {
                eprintln!("Error: {error:?}");
                // Else reads under way would be answered with an error, and not by the next daemon.
                leave_everything(1);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
