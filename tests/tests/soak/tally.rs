//! What happened: so that a soak in which nothing did can't pass for one.

use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::Duration;

/// How often each thing was done.
#[derive(Debug, Default)]
pub struct Tally {
    /// Containers whose every byte was right.
    pub runs: AtomicUsize,
    /// What failed because the supervisor was killed meanwhile, or the daemon in the middle of a request, as it may.
    pub excused: AtomicUsize,
    pub pulls: AtomicUsize,
    /// Pulls that failed while the network did, as they may.
    pub failed_pulls: AtomicUsize,
    pub removals: AtomicUsize,
    /// Rounds of eviction that daemons told of.
    pub evictions: AtomicUsize,
    /// Reads of a container that lived on through all of it.
    pub resident_reads: AtomicUsize,
    pub daemon_kills: AtomicUsize,
    pub supervisor_kills: AtomicUsize,
    pub network_faults: AtomicUsize,
}

/// Counts one more.
pub fn count(what: &AtomicUsize) {
    what.fetch_add(1, SeqCst);
}

impl Tally {
    /// Counts what a container printed as one of `right`; panics if it isn't what it should be.
    pub fn compare(&self, said: &str, expected: &str, right: &AtomicUsize, words: impl FnOnce() -> String) {
        assert!(said == expected, "wrong bytes: {said:?} instead of {expected:?}\n{}", words());
        count(right);
    }

    /// Panics if something that the soak is for never happened in `length`.
    pub fn assert_all_happened(&self, length: Duration) {
        let all = [&self.runs, &self.pulls, &self.removals, &self.resident_reads];
        let faults = [&self.daemon_kills, &self.network_faults];
        assert!(all.iter().chain(&faults).all(|one| one.load(SeqCst) > 0), "something never happened: {self}");
        if length >= Duration::from_secs(100) {
            assert!(self.supervisor_kills.load(SeqCst) > 0 && self.evictions.load(SeqCst) > 0, "{self}");
            assert!(self.runs.load(SeqCst) > 20, "{self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Tells everybody to stop when the thread that holds it panics.
pub struct StopOnPanic<'a>(pub &'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}
