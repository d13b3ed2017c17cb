//! `clipper record`: runs an image and notes which bytes of its files the start-up reads.
mod container;
mod ready;
mod spec;

use crate::cli::{Common, PullArgs, RecordArgs, RecordDriver};
use crate::pull::{self, Pulled};
use crate::report::Progress;
use anyhow::{Context, Result, bail};
use clipper_format::trace::{CUT_OFF, Touch, merge_traces, parse_trace, write_trace};
use container::{Container, Ended, NotPrepared, Recording};
use ready::Url;
use serde::Serialize;
use serde_json::Value;
use std::io::Write;
use std::time::{Duration, Instant};

/// What a recording found.
#[derive(Serialize)]
struct Recorded {
    image: String,
    /// Ranges of files, and bytes in them.
    ranges: usize,
    bytes: u64,
    files: usize,
    /// The drivers that it was started with, one after the other.
    drivers: Vec<&'static str>,
    /// Seconds from the containers' starts to the ends of their recordings.
    seconds: f64,
    /// What ended the last one: `ready`, `exited` or `timeout`.
    end: &'static str,
    /// The container's exit status, if it exited.
    status: Option<u32>,
}

/// One start.
struct Start {
    driver: RecordDriver,
    touches: Vec<Touch>,
    end: &'static str,
    status: Option<u32>,
    took: Duration,
}

/// Runs the command.
pub async fn run(common: &Common, args: RecordArgs) -> Result<()> {
    let progress = Progress::new(common);
    let url: Option<Url> = args.url.as_deref().map(str::parse).transpose()?;
    let RecordArgs { reference, containerd, .. } = &args;
    let pull = PullArgs { reference: reference.clone(), containerd: containerd.clone(), platform: None };
    let pulled = pull::bring(common, &pull, &progress).await?;
    if !pulled.layers.last().is_some_and(|layer| layer.lazy) {
        bail!(
            "{reference}: the snapshotter did not take its topmost layer; convert the image, and see the snapshotter's log"
        );
    }
    let spec = spec::runtime_spec(&pulled.config, &args, &progress)?;
    let starts = starts(&args, &pulled, url.as_ref(), &spec).await?;
    let touches = starts.iter().map(|start| &start.touches[..]).fold(Vec::new(), |all, own| merge_traces(&all, own));
    let Some(last) = starts.last() else { bail!("{reference}: nothing was recorded") };

    let mut paths: Vec<_> = touches.iter().map(|touch| &touch.path).collect();
    paths.sort_unstable();
    paths.dedup();
    let recorded = Recorded {
        image: reference.to_string(),
        ranges: touches.len(),
        bytes: touches.iter().map(|touch| touch.range.end - touch.range.start).sum(),
        files: paths.len(),
        drivers: starts.iter().map(|start| start.driver.name()).collect(),
        seconds: starts.iter().map(|start| start.took.as_secs_f64()).sum(),
        end: last.end,
        status: last.status,
    };
    let text = write_trace(&touches);
    match args.output.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => std::fs::write(path, &text).with_context(|| format!("writing {}", path.display()))?,
        None => std::io::stdout().write_all(&text).context("writing the trace")?,
    }
    let summary = if common.json {
        serde_json::to_string_pretty(&recorded)?
    } else {
        let Recorded { files, ranges, seconds, drivers, .. } = &recorded;
        let (bytes, drivers) = (crate::report::human(recorded.bytes), drivers.join(" and "));
        format!(
            "{reference}: {bytes} of {files} files in {ranges} ranges, {seconds:.1} s until {end} ({drivers})",
            end = last.end
        )
    };
    match &args.output {
        Some(path) if path.as_os_str() != "-" && common.json => println!("{summary}"),
        _ => progress.say(&summary),
    }
    Ok(())
}

/// Records a start with the driver that is asked for, or with each that works on the node.
async fn starts(args: &RecordArgs, pulled: &Pulled, url: Option<&Url>, spec: &Value) -> Result<Vec<Start>> {
    if let Some(driver) = args.driver {
        return Ok(vec![start(args, pulled, url, spec, driver).await?]);
    }
    let mut starts = Vec::new();
    // Of the first one the order is kept: of the driver that nodes prefer.
    match start(args, pulled, url, spec, RecordDriver::Erofs).await {
        Ok(start) => starts.push(start),
        Err(error) if error.is::<NotPrepared>() => {
            tracing::warn!("only the driver fuse is recorded: {error:#}");
        }
        Err(error) => return Err(error),
    }
    starts.push(start(args, pulled, url, spec, RecordDriver::Fuse).await?);
    Ok(starts)
}

/// Records one start.
async fn start(
    args: &RecordArgs,
    pulled: &Pulled,
    url: Option<&Url>,
    spec: &Value,
    driver: RecordDriver,
) -> Result<Start> {
    let reference = &args.reference;
    let dir = tempfile::tempdir().context("making a temporary directory")?;
    let trace = dir.path().join("trace");
    let recording = Recording { trace: &trace, driver };
    let mut container = Container::create(args, pulled, recording, spec.clone()).await?;
    let outcome = watch(&mut container, args, url).await;
    let removed = container.remove().await;
    let (end, status, took) = outcome?;
    removed?;
    let text = std::fs::read(&trace).with_context(|| {
        format!("{reference}: the snapshotter wrote no trace: is it of this version, on this machine, and not restarted meanwhile?")
    })?;
    if text.ends_with(CUT_OFF.as_bytes()) {
        tracing::warn!(
            "{reference}: the start reads more ranges than the snapshotter notes; the trace has the first ones"
        );
    }
    let touches = parse_trace(&text).context("the snapshotter's trace")?;
    Ok(Start { driver, touches, end, status, took })
}

/// Starts the container and waits for the end of its start-up.
async fn watch(
    container: &mut Container,
    args: &RecordArgs,
    url: Option<&Url>,
) -> Result<(&'static str, Option<u32>, Duration)> {
    let begun = Instant::now();
    container.start().await?;
    let ready = async {
        match url {
            Some(url) => url.answers().await,
            None => std::future::pending().await,
        }
    };
    let (end, status) = tokio::select! {
        () = ready => ("ready", None),
        ended = container.ended() => match ended? {
            Ended { status, .. } if url.is_some() => {
                bail!("{}: the container exited with status {status} before {} answered", args.reference, args.url.as_deref().unwrap_or_default())
            }
            Ended { status } => ("exited", Some(status)),
        },
        () = tokio::time::sleep(Duration::from_secs(args.timeout)) => match &args.url {
            Some(url) => bail!("{}: {url} did not answer within {} s (--timeout)", args.reference, args.timeout),
            None => ("timeout", None),
        },
    };
    Ok((end, status, begun.elapsed()))
}
