//! `clipper node evict`: takes data out of the cache.
use super::{
    cli::EvictArgs,
    client::{Daemon, proto::EvictRequest, refused},
};
use crate::{cli::Common, report::human};
use anyhow::Result;

/// Runs the command.
pub async fn run(common: &Common, daemon: &mut Daemon, args: EvictArgs) -> Result<()> {
    let EvictArgs { images, bytes, force, .. } = args;
    let request = EvictRequest { images, bytes: bytes.unwrap_or_default(), force };
    let answer = daemon.api.evict(request).await.map_err(refused)?.into_inner();
    if common.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
    } else if answer.freed == 0 && !force {
        println!("nothing was evicted: running containers need what is cached of it, or nothing is (--force takes it)");
    } else {
        println!("{} evicted", human(answer.freed));
    }
    Ok(())
}
