//! `clipper node prefetch`: loads an image whole.
use super::{
    cli::PrefetchArgs,
    client::{Daemon, proto::PrefetchRequest, refused},
};
use crate::{
    cli::Common,
    report::{Progress, human},
};
use anyhow::{Context, Result, bail};

/// Runs the command.
pub async fn run(common: &Common, daemon: &mut Daemon, args: PrefetchArgs) -> Result<()> {
    let request = PrefetchRequest { image: args.image };
    let mut stream = daemon.api.prefetch(request).await.map_err(refused)?.into_inner();
    let progress = Progress::new(common);
    let (mut task, mut last) = (None, None);
    while let Some(told) = stream.message().await.map_err(refused)? {
        let bar = task.get_or_insert_with(|| progress.task("prefetch", told.size));
        bar.reached(told.cached);
        last = Some(told);
    }
    let last = last.filter(|last| last.done).context("the daemon ended before the image was loaded")?;
    if let Some(task) = task {
        task.done(&format!("{}: {} of {} are here", last.image, human(last.cached), human(last.size)));
    }
    if common.json {
        println!("{}", serde_json::to_string_pretty(&last)?);
    }
    if last.cached < last.size {
        bail!("{}: the cache has no room for all of it; see `clipper node df`", last.image);
    }
    Ok(())
}
