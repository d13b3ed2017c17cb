//! Counters of what a client asked of registries.
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub requests: AtomicU64,
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub retries: AtomicU64,
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
}
