//! Which blobs a server is asked for only after others: those that it didn't have, or sent wrong bytes of; and who sent
//! which bytes, so that wrong ones are laid to the right server.
use clipper_format::digest::Digest;
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How long a server isn't asked first for a blob that it didn't have: a mirror may get it soon.
const MISSING: Duration = Duration::from_secs(30);
/// How long for one of which it sent wrong bytes.
const WRONG: Duration = Duration::from_secs(600);
/// Blobs kept in mind per server.
const BLOBS_MAX: usize = 4096;
/// Bodies kept in mind per server: more than are read at the same time.
const BODIES_MAX: usize = 256;

/// What is held against one server.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    blobs: Mutex<HashMap<Digest, Doubt>>,
    bodies: Mutex<VecDeque<Arc<Served>>>,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    until: Instant,
    weight: u32,
}

/// The bytes of a blob that one body has brought.
#[derive(Debug)]
pub(crate) struct Served {
    blob: Digest,
    /// What came before it isn't its business any more.
    from: AtomicU64,
    to: AtomicU64,
}

impl Served {
    /// It has brought so many bytes more.
    pub fn add(&self, bytes: u64) {
        self.to.fetch_add(bytes, Relaxed);
    }
}

impl Doubts {
    /// A body that begins at byte `from` of a blob is about to be read.
    pub fn body(&self, blob: Digest, from: u64) -> Arc<Served> {
        let served = Arc::new(Served { blob, from: AtomicU64::new(from), to: AtomicU64::new(from) });
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        if bodies.len() >= BODIES_MAX {
            bodies.pop_front();
        }
        bodies.push_back(Arc::clone(&served));
        served
    }

    /// Whether some of these bytes of a blob came from here lately. They aren't told of again.
    pub fn sent(&self, blob: &Digest, range: &Range<u64>) -> bool {
        let bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        for served in bodies.iter().filter(|served| served.blob == *blob) {
            let (from, to) = (served.from.load(Relaxed), served.to.load(Relaxed));
            if from.max(range.start) < to.min(range.end) {
                served.from.store(range.end, Relaxed);
                any = true;
            }
        }
        any
    }

    /// It sent wrong bytes of this blob, once more.
    pub fn wrong(&self, blob: Digest, now: Instant) {
        self.add(blob, now, |before| Doubt { until: now + WRONG, weight: before.saturating_add(2) });
    }

    /// It doesn't have this blob.
    pub fn missing(&self, blob: Digest, now: Instant) {
        self.add(blob, now, |before| Doubt { until: now + MISSING, weight: before.max(1) });
    }

    /// How much speaks against asking it for the blob; 0 for nothing.
    pub fn about(&self, blob: &Digest, now: Instant) -> u32 {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.get(blob).filter(|doubt| now < doubt.until).map_or(0, |doubt| doubt.weight)
    }

    fn add(&self, blob: Digest, now: Instant, doubt: impl FnOnce(u32) -> Doubt) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let before = blobs.remove(&blob).filter(|before| now < before.until);
        if blobs.len() >= BLOBS_MAX {
            blobs.retain(|_, doubt| now < doubt.until);
        }
        if blobs.len() < BLOBS_MAX {
            let mut doubt = doubt(before.map_or(0, |before| before.weight));
            doubt.until = before.map_or(doubt.until, |before| before.until.max(doubt.until));
            blobs.insert(blob, doubt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sent_a_byte_is_known_as_soon_as_it_came_and_told_once() {
        let (doubts, blob, other) = (Doubts::default(), Digest::of(b"a"), Digest::of(b"b"));
        let body = doubts.body(blob, 100);
        assert!(!doubts.sent(&blob, &(0..1000)), "nothing came yet");
        body.add(50);
        assert!(
            !doubts.sent(&blob, &(150..1000)) && !doubts.sent(&blob, &(0..100)) && !doubts.sent(&other, &(0..1000))
        );
        assert!(doubts.sent(&blob, &(100..120)));
        assert!(!doubts.sent(&blob, &(0..120)) && doubts.sent(&blob, &(149..160)));
        body.add(50);
        assert!(!doubts.sent(&blob, &(100..160)) && doubts.sent(&blob, &(160..170)));
        for _ in 0..BODIES_MAX {
            doubts.body(other, 0);
        }
        assert!(!doubts.sent(&blob, &(0..1000)), "memory is bounded");
    }

    #[test]
    fn doubts_are_about_one_blob_and_end() {
        let (doubts, blob, now) = (Doubts::default(), Digest::of(b"a"), Instant::now());
        doubts.missing(blob, now);
        assert_eq!((doubts.about(&blob, now), doubts.about(&Digest::of(b"b"), now)), (1, 0));
        doubts.wrong(blob, now);
        doubts.missing(blob, now);
        assert_eq!(doubts.about(&blob, now + WRONG / 2), 3, "wrong bytes are worse, and remembered longer");
        doubts.wrong(blob, now + WRONG / 2);
        assert_eq!((doubts.about(&blob, now + WRONG), doubts.about(&blob, now + WRONG * 2)), (5, 0));
    }
}
