//! `clipper node df`: where the disk went.
use super::{
    client::{Daemon, proto::DiskUsageRequest, refused},
    status::cache_line,
    table::{ago, lines},
};
use crate::{
    cli::Common,
    report::{human, percent},
};
use anyhow::Result;

/// Runs the command.
pub async fn run(common: &Common, daemon: &mut Daemon) -> Result<()> {
    let mut answer = daemon.api.disk_usage(DiskUsageRequest {}).await.map_err(refused)?.into_inner();
    if common.json {
        println!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    answer.layers.sort_by_key(|layer| std::cmp::Reverse(layer.disk_bytes));
    let head = ["layer", "on disk", "cached", "%", "last use", "state", "images"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for layer in &answer.layers {
        let name = if layer.layer.is_empty() { format!("device {}", layer.device) } else { layer.layer.clone() };
        let state = match (layer.pinned, layer.open) {
            (true, _) => "in use",
            (false, true) => "mounted",
            (false, false) => "idle",
        };
        rows.push(vec![
            name,
            human(layer.disk_bytes),
            human(layer.cached),
            format!("{:.1}", percent(layer.cached, layer.size)),
            if layer.last_use > 0 { format!("{} ago", ago(layer.last_use)) } else { "never".into() },
            state.to_owned(),
            if layer.images.is_empty() { "-".into() } else { layer.images.join(", ") },
        ]);
    }
    lines(&rows, &[1, 2, 3, 4]).iter().for_each(|line| println!("{line}"));
    if let Some(cache) = &answer.cache {
        println!("\ncache: {}", cache_line(cache));
    }
    Ok(())
}
