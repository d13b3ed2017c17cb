//! The board of flights: which spans of a device are on their way, in which run, and who waits for them.
use crate::{error::DeviceError, options::Priority};
use bytes::Bytes;
use clipper_format::span::Span;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How often the pause after a failure doubles.
const FAILURES_MAX: u32 = 6;
/// The same for what may pass: readers wait, and shouldn't for much longer than it lasts.
const PASSING_MAX: u32 = 4;

/// A span on its way. Any number of readers wait for it.
#[derive(Default)]
pub(crate) struct Flight {
    outcome: OnceLock<Outcome>,
    landed: Notify,
}

/// How a flight ended.
pub(crate) type Outcome = Result<Landed, DeviceError>;

/// A span that has arrived and been verified.
#[derive(Clone, Debug)]
pub(crate) enum Landed {
    /// It is on disk.
    Stored,
    /// It couldn't be written, for this reason: whoever waits gets the bytes from memory.
    Unstored(Bytes, DeviceError),
}

impl Flight {
    /// Waits for the end of the flight.
    pub(crate) async fn landed(&self) -> Outcome {
        loop {
            let mut landed = std::pin::pin!(self.landed.notified());
            landed.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            landed.await;
        }
    }

    fn land(&self, outcome: Outcome) {
        // Only the first outcome counts.
        let _ = self.outcome.set(outcome);
        self.landed.notify_waiters();
    }
}

/// Number of a run, unique within its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RunId(u64);

/// A run to be flown: somebody must start a task for it.
#[derive(Clone, Debug)]
pub(crate) struct NewRun {
    pub(crate) id: RunId,
    /// Told whenever the run's spans or their priority change.
    pub(crate) changed: Arc<Notify>,
}

/// Spans fetched with one GET, in order.
struct Run {
    /// The span being fetched, or to be fetched next.
    next: usize,
    end: usize,
    /// Whether the bytes of `next` are on their way, and not just waited for.
    loading: bool,
    /// Whether the source was asked for `next` and what follows.
    asked: bool,
    /// Spans up to here are wanted with at least this priority.
    wanted: [usize; 3],
    changed: Arc<Notify>,
}

struct Entry {
    flight: Arc<Flight>,
    run: RunId,
}

struct Failure {
    until: Instant,
    times: u32,
    error: DeviceError,
}

/// All flights of a device. A span is in flight at most once; a run's spans from `next` on are all in flight.
#[derive(Default)]
pub(crate) struct Board {
    flights: HashMap<usize, Entry>,
    runs: HashMap<RunId, Run>,
    failures: HashMap<usize, Failure>,
    runs_made: u64,
}

/// What to claim.
pub(crate) struct Wanted<'a> {
    /// The spans asked for.
    pub(crate) spans: Range<usize>,
    /// Who asks.
    pub(crate) priority: Priority,
    /// Spans up to here follow as prefetch, if they are missing.
    pub(crate) ahead: usize,
    /// The device's spans.
    pub(crate) table: &'a [Span],
    /// Source bytes that may come first in a run that is joined.
    pub(crate) join_distance: u64,
    /// Whether a span isn't on disk.
    pub(crate) missing: &'a dyn Fn(usize) -> bool,
}

/// Flights to wait for, and runs to start.
#[derive(Default)]
pub(crate) struct Claim {
    pub(crate) flights: Vec<(usize, Arc<Flight>)>,
    pub(crate) runs: Vec<NewRun>,
}

impl Board {
    /// Finds or makes flights for all missing spans of `wanted`.
    ///
    /// A span in flight is joined. If it lies far ahead in its run and nobody waits for it there, the run is split,
    /// so that the span needn't wait for what comes before it. Fails if one of the spans failed just before.
    pub(crate) fn claim(&mut self, wanted: &Wanted<'_>) -> Result<Claim, DeviceError> {
        self.check_failures(wanted)?;
        let mut claim = Claim::default();
        // The run of the span before: what follows there needn't be split off.
        let mut joined = None;
        for span in wanted.spans.clone() {
            if let Some(entry) = self.flights.get(&span) {
                claim.flights.push((span, Arc::clone(&entry.flight)));
                let run = entry.run;
                let new = match self.cut_out(run, span, wanted) {
                    new if new.is_empty() => self.raise(run, span, joined == Some(run), wanted).into_iter().collect(),
                    new => new,
                };
                joined = Some(new.first().map_or(run, |new| new.id));
                claim.runs.extend(new);
            } else if (wanted.missing)(span) {
                let flight = self.add(span, wanted.priority, &mut claim.runs);
                claim.flights.push((span, flight));
            }
        }
        for span in wanted.spans.end..wanted.ahead {
            if self.flights.contains_key(&span) || self.failures.contains_key(&span) || !(wanted.missing)(span) {
                continue;
            }
            self.add(span, wanted.priority.min(Priority::Prefetch), &mut claim.runs);
        }
        Ok(claim)
    }

    fn check_failures(&self, wanted: &Wanted<'_>) -> Result<(), DeviceError> {
        if self.failures.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let failed = |span: &usize| {
            let failure = self.failures.get(span).filter(|failure| failure.until > now)?;
            (!self.flights.contains_key(span) && (wanted.missing)(*span)).then(|| failure.error.clone())
        };
        wanted.spans.clone().find_map(|span| failed(&span)).map_or(Ok(()), Err)
    }

    /// Until when a claim of these spans is refused because one of them failed just before.
    pub(crate) fn refused_until(&self, spans: Range<usize>) -> Option<Instant> {
        spans.filter_map(|span| Some(self.failures.get(&span)?.until)).max()
    }

    /// A new flight for `span`, in the last of the `new` runs if it continues it.
    fn add(&mut self, span: usize, priority: Priority, new: &mut Vec<NewRun>) -> Arc<Flight> {
        let last = new.last().map(|run| run.id).filter(|id| self.runs.get(id).is_some_and(|run| run.end == span));
        let id = last.unwrap_or_else(|| {
            let run = self.new_run(span, [span; 3]);
            let id = run.id;
            new.push(run);
            id
        });
        if let Some(run) = self.runs.get_mut(&id) {
            run.end = span + 1;
            run.want(span, priority);
        }
        let flight = Arc::new(Flight::default());
        self.flights.insert(span, Entry { flight: Arc::clone(&flight), run: id });
        flight
    }

    /// Cuts the spans of `wanted` from `span` on out of run `id`, if only background fill wants that and its bytes weren't
    /// asked for yet: one request would bring all of the run. Returns the run of these spans, and that of those behind.
    fn cut_out(&mut self, id: RunId, span: usize, wanted: &Wanted<'_>) -> Vec<NewRun> {
        let Some(run) = self.runs.get_mut(&id) else { return Vec::new() };
        let idle = !run.asked && run.next <= span && run.wanted[Priority::Prefetch as usize] <= run.next;
        if !idle || wanted.priority == Priority::Background {
            return Vec::new();
        }
        let whole = std::mem::replace(&mut run.end, span).max(span);
        run.changed.notify_waiters();
        let middle = wanted.spans.end.clamp(span, whole);
        [(span..middle, wanted.priority), (middle..whole, Priority::Background)]
            .into_iter()
            .filter(|(spans, _)| !spans.is_empty())
            .map(|(spans, priority)| {
                let new = self.new_run(spans.start, [spans.start; 3]);
                for moved in spans.clone() {
                    if let Some(entry) = self.flights.get_mut(&moved) {
                        entry.run = new.id;
                    }
                }
                if let Some(run) = self.runs.get_mut(&new.id) {
                    run.end = spans.end;
                    run.want(spans.end - 1, priority);
                }
                new
            })
            .collect()
    }

    /// Makes `span`, in flight in run `id`, wanted with the priority of `wanted`. Returns a run split off for that,
    /// unless it is to `stay` in its run.
    fn raise(&mut self, id: RunId, span: usize, stay: bool, wanted: &Wanted<'_>) -> Option<NewRun> {
        let run = self.runs.get_mut(&id)?;
        if span < run.next || span < run.wanted[wanted.priority as usize] {
            return None;
        }
        let start = |span: usize| wanted.table.get(span).map_or(0, |span| span.source_offset);
        if stay || start(span).saturating_sub(start(run.next)) <= wanted.join_distance {
            run.want(span, wanted.priority);
            run.changed.notify_waiters();
            return None;
        }
        let end = std::mem::replace(&mut run.end, span);
        let reached = run.wanted;
        run.changed.notify_waiters();
        let new = self.new_run(span, reached.map(|until| until.max(span)));
        for moved in span..end {
            if let Some(entry) = self.flights.get_mut(&moved) {
                entry.run = new.id;
            }
        }
        if let Some(run) = self.runs.get_mut(&new.id) {
            run.end = end;
            run.want(span, wanted.priority);
        }
        Some(new)
    }

    fn new_run(&mut self, next: usize, wanted: [usize; 3]) -> NewRun {
        let id = RunId(self.runs_made);
        self.runs_made += 1;
        let changed = Arc::new(Notify::new());
        let run = Run { next, end: next, loading: false, asked: false, wanted, changed: Arc::clone(&changed) };
        self.runs.insert(id, run);
        NewRun { id, changed }
    }

    /// The spans that run `id` still has to fetch. The run ends when there are none.
    pub(crate) fn remaining(&mut self, id: RunId) -> Option<Range<usize>> {
        let run = self.runs.get(&id)?;
        let left = run.next..run.end;
        if left.is_empty() {
            self.runs.remove(&id);
            return None;
        }
        Some(left)
    }

    /// Run `id` begins to load `span`: where it ends. `None` if it isn't to fetch it any more.
    pub(crate) fn begin(&mut self, id: RunId, span: usize) -> Option<usize> {
        let run = self.runs.get_mut(&id).filter(|run| span < run.end)?;
        (run.loading, run.asked) = (true, true);
        Some(run.end)
    }

    /// The span after `fetched`, if run `id` goes on with it.
    pub(crate) fn advance(&mut self, id: RunId, fetched: usize) -> Option<usize> {
        let run = self.runs.get_mut(&id)?;
        run.next = fetched + 1;
        run.loading = false;
        (run.next < run.end).then_some(run.next)
    }

    /// Run `id` goes back to `span`, which it fetched but couldn't decode.
    pub(crate) fn rewind(&mut self, id: RunId, span: usize) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.next = span;
            (run.loading, run.asked) = (false, false);
        }
    }

    /// How urgently run `id` is to fetch `span`. `None` if it isn't to be fetched by it any more.
    pub(crate) fn priority(&self, id: RunId, span: usize) -> Option<Priority> {
        let run = self.runs.get(&id).filter(|run| span < run.end)?;
        Some(run.priority(span))
    }

    /// Ends the flight of `span`, which run `id` fetched. A failure that a reader waited for is remembered for
    /// `retry_after`, doubled for each time before.
    pub(crate) fn land(&mut self, id: RunId, span: usize, outcome: Outcome, retry_after: Duration) {
        match &outcome {
            Ok(_) => drop(self.failures.remove(&span)),
            Err(error) if self.runs.get(&id).is_some_and(|run| run.priority(span) == Priority::Foreground) => {
                let max = if error.may_pass() { PASSING_MAX } else { FAILURES_MAX };
                let times = self.failures.get(&span).map_or(0, |failure| (failure.times + 1).min(max));
                let until = Instant::now() + retry_after.saturating_mul(1 << times);
                self.failures.insert(span, Failure { until, times, error: error.clone() });
            }
            Err(_) => {}
        }
        if let Some(entry) = self.flights.remove(&span) {
            entry.flight.land(outcome);
        }
    }

    /// Ends run `id` and all its flights with `error`.
    pub(crate) fn abandon(&mut self, id: RunId, error: &DeviceError, retry_after: Duration) {
        let mut spans: Vec<usize> = self.flights.iter().filter(|(_, e)| e.run == id).map(|(span, _)| *span).collect();
        spans.sort_unstable();
        for span in spans {
            self.land(id, span, Err(error.clone()), retry_after);
        }
        self.runs.remove(&id);
    }

    /// Cuts off what only background fill wants, except for spans whose bytes are on their way.
    pub(crate) fn stop_background(&mut self, error: &DeviceError) {
        for (id, run) in &mut self.runs {
            let keep = (run.next + usize::from(run.loading)).max(run.wanted[Priority::Prefetch as usize]);
            for span in keep..run.end {
                if let Some(entry) = self.flights.get(&span).filter(|entry| entry.run == *id) {
                    entry.flight.land(Err(error.clone()));
                    self.flights.remove(&span);
                }
            }
            run.end = run.end.min(keep);
            run.changed.notify_waiters();
        }
    }
}

impl Run {
    fn want(&mut self, span: usize, priority: Priority) {
        for until in &mut self.wanted[..=priority as usize] {
            *until = (*until).max(span + 1);
        }
    }

    fn priority(&self, span: usize) -> Priority {
        let wanted = |priority| span < self.wanted[priority as usize];
        if wanted(Priority::Foreground) {
            Priority::Foreground
        } else if wanted(Priority::Prefetch) {
            Priority::Prefetch
        } else {
            Priority::Background
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clipper_format::{Digest, span::Start};

    const DISTANCE: u64 = 2500;

    fn table() -> Vec<Span> {
        let span = |i: u64| Span {
            device_offset: i * 4096,
            device_len: 4096,
            source_offset: i * 1000,
            source_len: 1000,
            start: Start::Stored,
            blake3: [0; 32],
        };
        (0..100).map(span).collect()
    }

    /// Claims on a device of which nothing is here: spans joined or made, and the runs to start, as their spans.
    fn claim(board: &mut Board, spans: Range<usize>, priority: Priority, ahead: usize) -> Vec<(RunId, Range<usize>)> {
        let wanted = Wanted { spans, priority, ahead, table: &table(), join_distance: DISTANCE, missing: &|_| true };
        let claim = board.claim(&wanted).unwrap();
        assert!(claim.flights.iter().map(|(span, _)| *span).eq(wanted.spans.clone()));
        claim.runs.iter().map(|run| (run.id, board.remaining(run.id).unwrap())).collect()
    }

    fn error() -> DeviceError {
        DeviceError::Stopped { device: Digest::of(b"") }
    }

    #[test]
    fn a_claim_makes_runs_of_what_is_not_in_flight_yet() {
        let mut board = Board::default();
        let runs = claim(&mut board, 4..6, Priority::Foreground, 8);
        assert_eq!((runs.len(), runs[0].1.clone()), (1, 4..8));
        let runs = claim(&mut board, 2..10, Priority::Foreground, 12);
        assert_eq!(runs.iter().map(|run| run.1.clone()).collect::<Vec<_>>(), [2..4, 8..12]);
        let of = |span| board.priority(runs[1].0, span);
        assert_eq!((of(9), of(10), of(12)), (Some(Priority::Foreground), Some(Priority::Prefetch), None));
        assert!(claim(&mut board, 0..0, Priority::Prefetch, 0).is_empty());
    }

    #[test]
    fn a_run_is_split_only_far_ahead_and_only_where_nobody_as_urgent_waits() {
        let mut board = Board::default();
        let run = claim(&mut board, 0..40, Priority::Background, 0)[0].0;
        assert_eq!(board.begin(run, 0), Some(40));
        assert!(claim(&mut board, 2..3, Priority::Foreground, 0).is_empty(), "2000 bytes ahead");
        assert_eq!(board.priority(run, 1), Some(Priority::Foreground), "what comes first is as urgent");
        assert_eq!(board.priority(run, 3), Some(Priority::Background));
        let split = claim(&mut board, 20..30, Priority::Foreground, 0);
        assert_eq!(split[0].1, 20..40, "one new run, not one for each span");
        assert_eq!((split.len(), board.remaining(run)), (1, Some(0..20)));
        assert!(claim(&mut board, 29..30, Priority::Foreground, 0).is_empty(), "wanted there already");
        assert_eq!(board.priority(split[0].0, 30), Some(Priority::Background));
        assert!(claim(&mut board, 35..36, Priority::Background, 0).is_empty());
        assert_eq!(claim(&mut board, 35..36, Priority::Prefetch, 0)[0].1, 35..40);
    }

    #[test]
    fn what_is_wanted_of_a_run_that_has_not_asked_yet_is_cut_out_of_it() {
        let mut board = Board::default();
        let run = claim(&mut board, 0..40, Priority::Background, 0)[0].0;
        let cut = claim(&mut board, 10..13, Priority::Foreground, 15);
        assert_eq!(cut.iter().map(|(_, spans)| spans.clone()).collect::<Vec<_>>(), [10..13, 13..40]);
        let urgent = |id, span| board.priority(id, span);
        assert_eq!(
            (urgent(cut[0].0, 12), urgent(cut[1].0, 13)),
            (Some(Priority::Foreground), Some(Priority::Background))
        );
        assert_eq!((urgent(run, 9), urgent(run, 10)), (Some(Priority::Background), None));
        assert_eq!(board.begin(run, 0), Some(10), "the request is for what is left");
        let first = claim(&mut board, 13..14, Priority::Prefetch, 0);
        assert_eq!(first.iter().map(|(_, spans)| spans.clone()).collect::<Vec<_>>(), [13..14, 14..40]);
        assert_eq!(board.remaining(cut[1].0), None);
    }

    #[test]
    fn stopping_the_background_cuts_what_nobody_else_wants() {
        let mut board = Board::default();
        let idle = claim(&mut board, 0..10, Priority::Background, 0)[0].0;
        let loading = claim(&mut board, 20..30, Priority::Background, 0)[0].0;
        let wanted = claim(&mut board, 40..50, Priority::Background, 0)[0].0;
        assert_eq!(board.begin(loading, 20), Some(30));
        assert_eq!(board.begin(wanted, 40), Some(50));
        claim(&mut board, 41..42, Priority::Prefetch, 0);
        board.stop_background(&error());
        assert_eq!(
            (board.remaining(idle), board.remaining(loading), board.remaining(wanted)),
            (None, Some(20..21), Some(40..42))
        );
        assert_eq!(claim(&mut board, 0..10, Priority::Background, 0).len(), 1, "they can be claimed anew");
    }

    #[test]
    fn a_failure_that_a_reader_saw_is_repeated_for_a_while() {
        let mut board = Board::default();
        let table = table();
        let hour = Duration::from_secs(3600);
        let try_claim = |board: &mut Board, spans| {
            let wanted = Wanted {
                spans,
                priority: Priority::Foreground,
                ahead: 0,
                table: &table,
                join_distance: 0,
                missing: &|_| true,
            };
            board.claim(&wanted).map(|claim| claim.runs)
        };
        let run = try_claim(&mut board, 0..2).unwrap()[0].id;
        board.abandon(run, &error(), hour);
        assert!(try_claim(&mut board, 1..3).is_err() && try_claim(&mut board, 2..3).is_ok());
        let run = claim(&mut board, 50..51, Priority::Prefetch, 0)[0].0;
        board.abandon(run, &error(), hour);
        assert!(try_claim(&mut board, 50..51).is_ok());
        let run = try_claim(&mut board, 60..61).unwrap()[0].id;
        board.land(run, 60, Err(error()), Duration::ZERO);
        assert!(try_claim(&mut board, 60..61).is_ok());
    }

    #[tokio::test]
    async fn all_who_wait_learn_how_a_flight_ended() {
        let mut board = Board::default();
        let table = table();
        let wanted = Wanted {
            spans: 0..1,
            priority: Priority::Foreground,
            ahead: 0,
            table: &table,
            join_distance: 0,
            missing: &|_| true,
        };
        let first = board.claim(&wanted).unwrap();
        let second = board.claim(&wanted).unwrap();
        assert!(second.runs.is_empty());
        let waiting = tokio::spawn({
            let flight = Arc::clone(&first.flights[0].1);
            async move { flight.landed().await }
        });
        tokio::task::yield_now().await;
        board.land(first.runs[0].id, 0, Ok(Landed::Stored), Duration::ZERO);
        assert!(matches!(waiting.await.unwrap(), Ok(Landed::Stored)));
        assert!(matches!(second.flights[0].1.landed().await, Ok(Landed::Stored)));
    }
}
