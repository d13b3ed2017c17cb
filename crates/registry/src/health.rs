//! How a server has been doing lately: whether it is asked before or after others, and how long is waited for it before
//! another one is asked as well.
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long a server is asked only after the others when it failed once; doubled for each further failure.
const SICK: Duration = Duration::from_secs(5);
/// The longest such time.
const SICK_MAX: Duration = Duration::from_secs(300);
/// Failures that lie back further than this are forgotten.
const MEMORY: Duration = Duration::from_secs(600);
/// When a sick server's time is over, one request tries it out. Others leave it alone for this long.
const TRIAL: Duration = Duration::from_secs(2);
/// What is waited for a server of which nothing is known.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bounds of what is waited for a server whose usual time is known.
const PATIENCE_MIN: Duration = Duration::from_millis(250);
const PATIENCE_MAX: Duration = Duration::from_secs(3);
/// A request to pause is kept to for no longer than this, so that a wrong one doesn't hold for ever.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// The health of one server.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Failures, of which every success takes back half.
    failures: u32,
    last_failure: Option<Instant>,
    sick_until: Option<Instant>,
    /// Smoothed time from a request to the head of its answer.
    usual: Option<Duration>,
    /// Until when it asked to be left alone: by requests for blobs, and by others.
    pauses: [Option<Instant>; 2],
}

/// What a server may limit for itself: registries count manifests and blobs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Blob,
    Other,
}

impl Health {
    /// Whether the server is to be asked in its turn, and not only after others. Of a server whose time as a sick one is
    /// over, only the first who asks is told so: it tries the server out for everybody.
    pub fn is_well(&self, now: Instant) -> bool {
        let mut state = self.lock();
        match state.sick_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.sick_until = Some(now + TRIAL);
                true
            }
        }
    }

    /// Whether it failed last and hasn't answered since.
    pub fn is_sick(&self) -> bool {
        self.lock().sick_until.is_some()
    }

    /// It answered, `took` after it was asked.
    pub fn answered(&self, took: Duration) {
        let mut state = self.lock();
        state.usual = Some(state.usual.map_or(took, |usual| (usual * 7 + took) / 8));
        // Not at once: one that comes and goes is trusted less each time.
        state.failures /= 2;
        state.sick_until = None;
    }

    /// It failed, or was silent until another server had answered.
    pub fn failed(&self, now: Instant) {
        let mut state = self.lock();
        if state.last_failure.is_some_and(|last| now.saturating_duration_since(last) > MEMORY) {
            state.failures = 0;
        }
        state.last_failure = Some(now);
        let sick = SICK.saturating_mul(1 << state.failures.min(16)).min(SICK_MAX);
        // Requests that were under way together fail together: that's one failure.
        if state.sick_until.is_none_or(|until| until <= now + TRIAL) {
            state.failures += 1;
            state.sick_until = Some(now + sick);
        }
    }

    /// How long to wait for an answer before another server is asked as well: four times what it usually takes.
    pub fn patience(&self) -> Duration {
        self.lock().usual.map_or(PATIENCE, |usual| (usual * 4).clamp(PATIENCE_MIN, PATIENCE_MAX))
    }

    /// It asked not to be asked again for a while.
    pub fn pause(&self, kind: Kind, now: Instant, wait: Duration) {
        self.lock().pauses[kind as usize] = Some(now + wait.min(PAUSE_MAX));
    }

    /// How much is left of that.
    pub fn paused(&self, kind: Kind, now: Instant) -> Option<Duration> {
        let until = self.lock().pauses[kind as usize]?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_sick_server_is_tried_out_by_one_and_comes_back() {
        let (health, start) = (Health::default(), Instant::now());
        assert!(health.is_well(start));
        health.failed(start);
        assert!(health.is_sick() && !health.is_well(start + SICK - SECOND));
        let later = start + SICK;
        assert!(health.is_well(later) && !health.is_well(later), "one tries it out");
        assert!(health.is_well(later + TRIAL), "and another, should the first never tell");
        health.answered(SECOND);
        assert!(!health.is_sick() && health.is_well(later + TRIAL));
    }

    #[test]
    fn each_failure_doubles_the_time_and_success_and_time_take_it_back() {
        let (health, mut now) = (Health::default(), Instant::now());
        let sick_for =
            |health: &Health, now: Instant| (0..).map(|s| SECOND * s).find(|wait| health.is_well(now + *wait)).unwrap();
        for expected in [5, 10, 20, 40, 80, 160, 300, 300] {
            health.failed(now);
            let wait = sick_for(&health, now);
            assert_eq!(wait, SECOND * expected);
            now += wait;
        }
        health.answered(SECOND);
        now += SECOND;
        health.failed(now);
        assert_eq!(sick_for(&health, now), SECOND * 80, "half of it is remembered");
        now += MEMORY + 2 * SECOND;
        health.failed(now);
        assert_eq!(sick_for(&health, now), SICK, "nothing after a long time");
    }

    #[test]
    fn what_fails_together_counts_once() {
        let (health, now) = (Health::default(), Instant::now());
        for _ in 0..100 {
            health.failed(now);
        }
        assert!(health.is_well(now + SICK));
    }

    #[test]
    fn patience_follows_what_is_usual() {
        let health = Health::default();
        assert_eq!(health.patience(), PATIENCE);
        health.answered(Duration::from_millis(1));
        assert_eq!(health.patience(), PATIENCE_MIN);
        for _ in 0..100 {
            health.answered(Duration::from_millis(200));
        }
        let learnt = health.patience();
        assert!(Duration::from_millis(750) < learnt && learnt <= Duration::from_millis(800), "{learnt:?}");
        health.answered(Duration::from_secs(60));
        assert_eq!(health.patience(), PATIENCE_MAX);
    }

    #[test]
    fn a_pause_is_for_one_kind_of_requests_and_bounded() {
        let (health, now) = (Health::default(), Instant::now());
        health.pause(Kind::Other, now, Duration::from_secs(3600));
        assert_eq!(health.paused(Kind::Other, now), Some(PAUSE_MAX));
        assert_eq!(health.paused(Kind::Blob, now), None);
        assert_eq!(health.paused(Kind::Other, now + PAUSE_MAX), None);
    }
}
