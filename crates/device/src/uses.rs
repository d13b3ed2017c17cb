//! When which part of a device was last used, so that what is cold can be told from what isn't.
use rustix::time::{ClockId, clock_gettime};
use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Device bytes whose uses aren't told apart.
pub(crate) const PART: u64 = 1 << 20;

/// Milliseconds since 1970.
pub(crate) type Moment = u64;

/// When each part of a device was last used. Noting a use costs a look at a coarse clock and mostly no write.
pub(crate) struct Uses {
    /// Of the whole device, by an earlier process.
    before: Moment,
    /// 0 for parts that weren't used since.
    parts: Box<[AtomicU64]>,
}

impl Uses {
    /// Of a device of `size` bytes that was last used at `before`.
    pub(crate) fn new(size: u64, before: Moment) -> Self {
        Self { before, parts: (0..size.div_ceil(PART)).map(|_| AtomicU64::new(0)).collect() }
    }

    /// These device bytes are used now.
    pub(crate) fn note(&self, bytes: &Range<u64>) {
        let now = now();
        for part in self.parts(bytes) {
            // Not written if it says so already: many threads read the same.
            if part.load(Ordering::Relaxed) != now {
                part.store(now, Ordering::Relaxed);
            }
        }
    }

    /// When any of these bytes were last used.
    pub(crate) fn last(&self, bytes: &Range<u64>) -> Moment {
        self.parts(bytes).iter().map(|part| part.load(Ordering::Relaxed)).fold(self.before, Moment::max)
    }

    /// When any byte was last used.
    pub(crate) fn latest(&self) -> Moment {
        self.last(&(0..self.parts.len() as u64 * PART))
    }

    fn parts(&self, bytes: &Range<u64>) -> &[AtomicU64] {
        let end = (bytes.end.div_ceil(PART) as usize).min(self.parts.len());
        let start = ((bytes.start / PART) as usize).min(end);
        &self.parts[start..end]
    }
}

/// The moment, to some milliseconds.
fn now() -> Moment {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1000 + nanos / 1_000_000
}

/// A moment from a file's time.
pub(crate) fn moment(time: SystemTime) -> Moment {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A file's time for a moment.
pub(crate) fn time(moment: Moment) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_counts_for_the_parts_it_touches_and_no_others() {
        let uses = Uses::new(4 * PART + 1, 7);
        uses.note(&(PART - 1..PART + 1));
        uses.note(&(4 * PART..4 * PART + 1));
        let used = |part: u64| uses.last(&(part * PART..(part + 1) * PART)) > 7;
        assert_eq!([0, 1, 2, 3, 4].map(used), [true, true, false, false, true]);
        assert_eq!(uses.last(&(2 * PART..4 * PART)), 7);
        assert_eq!(uses.last(&(2 * PART..4 * PART + 1)), uses.latest());
        assert_eq!(uses.last(&(9 * PART..10 * PART)), 7, "behind the end");
        assert_eq!(moment(time(uses.latest())), uses.latest());
    }
}
