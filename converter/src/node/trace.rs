//! `clipper node trace`: what was read of an image.
use super::{
    cli::TraceArgs,
    client::{Daemon, proto::TraceRequest, refused},
};
use crate::cli::Common;
use anyhow::{Context, Result};
use clipper_format::trace::parse_trace;
use serde::Serialize;
use std::{io::Write, path::Path};

/// A range of a file, for `--json`.
#[derive(Serialize)]
struct Range {
    path: String,
    offset: u64,
    length: u64,
}

/// Runs the command.
pub async fn run(common: &Common, daemon: &mut Daemon, args: TraceArgs) -> Result<()> {
    let request = TraceRequest { image: args.image };
    let mut stream = daemon.api.trace(request).await.map_err(refused)?.into_inner();
    let mut text = Vec::new();
    while let Some(part) = stream.message().await.map_err(refused)? {
        text.extend_from_slice(&part.text);
    }
    if common.json {
        let touches = parse_trace(&text).context("the daemon's trace")?;
        let ranges: Vec<_> = touches
            .iter()
            .map(|touch| Range {
                path: String::from_utf8_lossy(&touch.path).into_owned(),
                offset: touch.range.start,
                length: touch.range.end - touch.range.start,
            })
            .collect();
        text = serde_json::to_vec_pretty(&ranges)?;
        text.push(b'\n');
    }
    match args.output.as_deref().filter(|path| *path != Path::new("-")) {
        Some(path) => std::fs::write(path, &text).with_context(|| format!("writing {}", path.display())),
        None => std::io::stdout().write_all(&text).context("writing the trace"),
    }
}
