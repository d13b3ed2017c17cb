//! What all devices of a directory have done since it was opened, in plain figures: who shows them is others' business.
use crate::options::Priority;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Servers that are counted apart. A registry may redirect to any number of names; those beyond are counted together.
const HOSTS_MAX: usize = 256;
/// The name of those beyond.
const OTHERS: &str = "others";

/// Why bytes were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// They came in a hot blob.
    Hot,
    /// A reader waited for them.
    Demand,
    /// Somebody was expected to: read-ahead, or who asked for an image to be loaded.
    Prefetch,
    /// Nobody asked for them: background fill.
    Background,
}

/// Bytes that a server has sent for a purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// `host` or `host:port`.
    pub host: Arc<str>,
    /// What for.
    pub purpose: Purpose,
    /// Bytes of layers, checkpoints and hot blobs, with those that turned out wrong.
    pub bytes: u64,
}

/// How long something took, each time it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latencies {
    /// How often it took longer than the bound before and no longer than this one, of [`Latencies::BOUNDS`]; the last is
    /// for what took longer than all of them.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// Seconds that all of it took together.
    pub sum: f64,
}

impl Latencies {
    /// Bounds in seconds.
    pub const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 90.0];

    /// How often it was done.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// What all devices have done.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Bytes by server and purpose, sorted by server.
    pub traffic: Vec<Traffic>,
    /// From when a span was asked for to when it was verified and on disk, by what for.
    pub span_fetches: [(Purpose, Latencies); 3],
    /// How long readers waited whose bytes weren't here.
    pub read_waits: Latencies,
    /// Readers that wait right now.
    pub waiting_readers: u64,
    /// Reads that failed.
    pub failed_reads: u64,
    /// Reads that took longer than [`DeviceOptions::slow_read`](crate::DeviceOptions::slow_read).
    pub slow_reads: u64,
    /// Spans that were asked for again because that had failed.
    pub span_retries: u64,
    /// Spans, and frames of hot blobs, that weren't what the index promises.
    pub corrupt: u64,
}

/// The live figures.
#[derive(Default)]
pub(crate) struct Tally {
    traffic: Mutex<BTreeMap<Arc<str>, [u64; 4]>>,
    span_fetches: [Stopwatch; 3],
    read_waits: Stopwatch,
    waiting: AtomicU64,
    failed_reads: AtomicU64,
    slow_reads: AtomicU64,
    span_retries: AtomicU64,
    corrupt: AtomicU64,
}

/// Live [`Latencies`].
#[derive(Default)]
struct Stopwatch {
    counts: [AtomicU64; Latencies::BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// A reader who waits, until dropped.
pub(crate) struct Waiting<'t>(&'t Tally);

impl Purpose {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hot, Self::Demand, Self::Prefetch, Self::Background];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Demand => "demand",
            Self::Prefetch => "prefetch",
            Self::Background => "background",
        }
    }
}

impl From<Priority> for Purpose {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Foreground => Self::Demand,
            Priority::Prefetch => Self::Prefetch,
            Priority::Background => Self::Background,
        }
    }
}

impl Tally {
    /// Bytes have arrived.
    pub(crate) fn received(&self, host: &Arc<str>, purpose: Purpose, bytes: u64) {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let known = traffic.len() < HOSTS_MAX || traffic.contains_key(host);
        let name = if known { Arc::clone(host) } else { OTHERS.into() };
        traffic.entry(name).or_default()[purpose as usize] += bytes;
    }

    /// A span was fetched.
    pub(crate) fn fetched(&self, priority: Priority, took: Duration) {
        self.span_fetches[priority as usize].add(took);
    }

    /// A reader begins to wait.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(self)
    }

    /// A reader has got its bytes, or an error.
    pub(crate) fn waited(&self, took: Duration, failed: bool) {
        self.read_waits.add(took);
        self.failed_reads.fetch_add(failed.into(), Relaxed);
    }

    /// A read took long.
    pub(crate) fn slow(&self) {
        self.slow_reads.fetch_add(1, Relaxed);
    }

    /// A span is asked for again.
    pub(crate) fn retried(&self) {
        self.span_retries.fetch_add(1, Relaxed);
    }

    /// Something was wrong.
    pub(crate) fn corrupt(&self) {
        self.corrupt.fetch_add(1, Relaxed);
    }

    /// All of it as it stands.
    pub(crate) fn figures(&self) -> Figures {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of_host = |(host, bytes): (Arc<str>, [u64; 4])| {
            Purpose::ALL.map(|purpose| Traffic { host: Arc::clone(&host), purpose, bytes: bytes[purpose as usize] })
        };
        let priorities = [Priority::Background, Priority::Prefetch, Priority::Foreground];
        Figures {
            traffic: traffic.into_iter().flat_map(of_host).filter(|traffic| traffic.bytes > 0).collect(),
            span_fetches: priorities.map(|it| (it.into(), self.span_fetches[it as usize].read())),
            read_waits: self.read_waits.read(),
            waiting_readers: self.waiting.load(Relaxed),
            failed_reads: self.failed_reads.load(Relaxed),
            slow_reads: self.slow_reads.load(Relaxed),
            span_retries: self.span_retries.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Stopwatch {
    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let place = Latencies::BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[place].fetch_add(1, Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    fn read(&self) -> Latencies {
        let counts = self.counts.each_ref().map(|count| count.load(Relaxed));
        Latencies { counts, sum: self.micros.load(Relaxed) as f64 / 1e6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_as_long_as_a_bound_is_within_it() {
        let watch = Stopwatch::default();
        for millis in [0, 1, 2, 1000, 90_000, 90_001] {
            watch.add(Duration::from_millis(millis));
        }
        let read = watch.read();
        assert_eq!((read.counts[0], read.counts[1], read.counts[9], read.counts[13], read.counts[14]), (2, 1, 1, 1, 1));
        assert_eq!((read.count(), read.sum), (6, 181.004));
    }

    #[test]
    fn bytes_are_counted_by_server_and_purpose_and_servers_are_bounded() {
        let tally = Tally::default();
        for n in 0..HOSTS_MAX + 10 {
            tally.received(&format!("h{n:03}").into(), Purpose::Demand, 7);
        }
        tally.received(&"h000".into(), Purpose::Hot, 5);
        let traffic = tally.figures().traffic;
        let of = |host: &str, purpose| {
            traffic.iter().find(|it| &*it.host == host && it.purpose == purpose).map(|it| it.bytes)
        };
        assert_eq!((of("h000", Purpose::Hot), of("h000", Purpose::Demand)), (Some(5), Some(7)));
        assert_eq!((of(OTHERS, Purpose::Demand), of("h260", Purpose::Demand)), (Some(70), None));
        assert_eq!(traffic.iter().map(|it| it.bytes).sum::<u64>(), 7 * (HOSTS_MAX as u64 + 10) + 5);
    }

    #[test]
    fn a_reader_waits_until_it_is_answered() {
        let tally = Tally::default();
        let (first, second) = (tally.wait(), tally.wait());
        assert_eq!(tally.figures().waiting_readers, 2);
        drop(first);
        drop(second);
        tally.waited(Duration::from_secs(2), true);
        let figures = tally.figures();
        assert_eq!((figures.waiting_readers, figures.failed_reads, figures.read_waits.count()), (0, 1, 1));
    }
}
