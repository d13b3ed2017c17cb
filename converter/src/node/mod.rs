//! `clipper node`: what the daemon of this node tells of itself, and what it can be asked to do.
mod cli;
mod client;
mod df;
mod evict;
mod images;
mod prefetch;
mod status;
mod table;
mod trace;

use crate::cli::Common;
use anyhow::Result;
pub use cli::NodeArgs;
use cli::NodeCommand;
use client::Daemon;

/// Runs the command.
pub async fn run(common: &Common, args: NodeArgs) -> Result<()> {
    let mut daemon = Daemon::connect(&args.address).await?;
    match args.command {
        NodeCommand::Status => status::run(common, &mut daemon).await,
        NodeCommand::Images => images::run(common, &mut daemon).await,
        NodeCommand::Df => df::run(common, &mut daemon).await,
        NodeCommand::Prefetch(args) => prefetch::run(common, &mut daemon, args).await,
        NodeCommand::Evict(args) => evict::run(common, &mut daemon, args).await,
        NodeCommand::Trace(args) => trace::run(common, &mut daemon, args).await,
    }
}
