//! Counters of what a client asked of registries: in all, and by server.
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Servers that are counted apart. A registry may redirect to any number of names; those beyond are counted together.
const HOSTS_MAX: usize = 256;
/// The name of those beyond.
const OTHERS: &str = "others";

/// What a client has asked of registries since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// HTTP requests sent, with those for tokens and those that were redirected or repeated.
    pub requests: u64,
    /// Bytes of response bodies received.
    pub bytes_received: u64,
    /// Bytes of request bodies handed to the network.
    pub bytes_sent: u64,
    /// Requests and bodies that failed and were tried again.
    pub retries: u64,
}

/// What a client has asked of one server since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostStats {
    /// `host` or `host:port`.
    pub host: String,
    /// HTTP requests sent to it.
    pub requests: u64,
    /// Bytes of response bodies received from it.
    pub bytes_received: u64,
    /// Requests and bodies that failed there.
    pub failures: u64,
    /// Times that another server was asked because this one failed or was silent.
    pub failovers: u64,
    /// Times that bytes it sent turned out wrong.
    pub verification_failures: u64,
    /// Whether it failed last: others are asked before it for a while.
    pub sick: bool,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub retries: AtomicU64,
    hosts: Mutex<BTreeMap<String, Arc<HostCounters>>>,
}

/// The live counters of one server.
#[derive(Debug, Default)]
pub(crate) struct HostCounters {
    pub requests: AtomicU64,
    pub bytes_received: AtomicU64,
    pub failures: AtomicU64,
    pub failovers: AtomicU64,
    pub verification_failures: AtomicU64,
}

impl Counters {
    pub fn snapshot(&self) -> Stats {
        Stats {
            requests: self.requests.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            retries: self.retries.load(Relaxed),
        }
    }

    /// Counts a request to `host`.
    pub fn request(&self, host: &str) {
        self.requests.fetch_add(1, Relaxed);
        self.host(host).requests.fetch_add(1, Relaxed);
    }

    /// Counts bytes from `host`.
    pub fn received(&self, host: &str, bytes: u64) {
        self.bytes_received.fetch_add(bytes, Relaxed);
        self.host(host).bytes_received.fetch_add(bytes, Relaxed);
    }

    /// The counters of `host`.
    pub fn host(&self, host: &str) -> Arc<HostCounters> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.get(host) {
            return known.clone();
        }
        let name = if hosts.len() < HOSTS_MAX { host } else { OTHERS };
        hosts.entry(name.to_owned()).or_default().clone()
    }

    /// All servers, sorted by name; how they are doing is for others to tell.
    pub fn hosts(&self) -> Vec<HostStats> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = |(host, counters): (&String, &Arc<HostCounters>)| HostStats {
            host: host.clone(),
            requests: counters.requests.load(Relaxed),
            bytes_received: counters.bytes_received.load(Relaxed),
            failures: counters.failures.load(Relaxed),
            failovers: counters.failovers.load(Relaxed),
            verification_failures: counters.verification_failures.load(Relaxed),
            sick: false,
        };
        hosts.iter().map(stats).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_beyond_the_limit_are_counted_together() {
        let counters = Counters::default();
        for n in 0..HOSTS_MAX + 10 {
            counters.request(&format!("h{n:03}"));
        }
        let hosts = counters.hosts();
        assert_eq!(hosts.len(), HOSTS_MAX + 1);
        assert_eq!(hosts.iter().find(|host| host.host == OTHERS).map(|host| host.requests), Some(10));
        assert_eq!((hosts[0].host.as_str(), counters.snapshot().requests), ("h000", HOSTS_MAX as u64 + 10));
    }
}
