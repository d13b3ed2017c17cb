//! `clipper node status`: how the daemon is doing.
use super::{
    client::{
        Daemon,
        proto::{Cache, StatusRequest, StatusResponse},
        refused,
    },
    table::{ago, lines},
};
use crate::{cli::Common, report::human};
use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// Why bytes are fetched, in the order of columns.
const SOURCES: [&str; 4] = ["hot", "demand", "prefetch", "background"];

/// Runs the command. A daemon that isn't ready is an error, after what it says was printed.
pub async fn run(common: &Common, daemon: &mut Daemon) -> Result<()> {
    let status = daemon.api.status(StatusRequest {}).await.map_err(refused)?.into_inner();
    if common.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print(&status);
    }
    if !status.not_ready.is_empty() {
        bail!("the daemon isn't ready: {}", status.not_ready);
    }
    Ok(())
}

fn print(status: &StatusResponse) {
    if !status.not_ready.is_empty() {
        println!("version        {}\nstate          not ready: {}", status.version, status.not_ready);
        return;
    }
    println!("version        {}", status.version);
    println!("state          ready, for {}", ago(status.started));
    println!("driver         {}", status.driver);
    println!("root           {}", status.root);
    println!(
        "images         {}, {} mounted; {} snapshots; {} takeovers",
        status.images, status.mounts, status.snapshots, status.takeovers
    );
    println!(
        "reads          {} wait; {} were slow, {} failed; {} spans were corrupt",
        status.waiting_readers, status.slow_reads, status.failed_reads, status.corrupt
    );
    if let Some(cache) = &status.cache {
        println!("cache          {}", cache_line(cache));
    }
    let mut hosts: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for traffic in &status.traffic {
        if let Some(column) = SOURCES.iter().position(|source| *source == traffic.source) {
            hosts.entry(&traffic.host).or_default()[column] += traffic.bytes;
        }
    }
    let head =
        ["host", "hot", "demand", "prefetch", "background", "requests", "failures", "failovers", "wrong", "state"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for host in &status.hosts {
        let bytes = hosts.get(host.host.as_str()).copied().unwrap_or_default();
        let counts = [host.requests, host.failures, host.failovers, host.verification_failures];
        let state = if host.sick { "sick" } else { "well" };
        let cells = bytes.map(human).into_iter().chain(counts.map(|count| count.to_string()));
        rows.push(std::iter::once(host.host.clone()).chain(cells).chain([state.to_owned()]).collect());
    }
    if rows.len() > 1 {
        println!();
        lines(&rows, &[1, 2, 3, 4, 5, 6, 7, 8]).iter().for_each(|line| println!("{line}"));
    }
}

/// The cache and its limits in one line.
pub fn cache_line(cache: &Cache) -> String {
    let max = cache.max_bytes.map_or_else(String::new, |max| format!(" of {} at most", human(max)));
    let trouble = if cache.in_trouble { "; NOTHING IS CACHED: the disk is full or fails" } else { "" };
    format!(
        "{}{max}; {} free on its disk, of which {} stay so; {} evicted in {} turns{trouble}",
        human(cache.disk_bytes),
        human(cache.free_bytes),
        human(cache.min_free_bytes),
        human(cache.evicted_bytes),
        cache.evictions,
    )
}
