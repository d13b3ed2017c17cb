//! A run: consecutive spans fetched with one GET, each decoded, verified, written and landed as soon as it is here.
use crate::{
    activity::Busy,
    board::{Landed, NewRun, RunId},
    body::Body,
    decode::Decoder,
    device::Device,
    error::DeviceError,
    limits::Taken,
    options::Priority,
    source::SourceError,
    sources::Picked,
    tally::Purpose,
};
use bytes::Bytes;
use clipper_format::span::Span;
use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

/// Most attempts at one span that fails for any reason, over all sources.
const ATTEMPTS_MAX: usize = 4;
/// Most attempts at one span whose bytes are wrong, as long as there's a place that hasn't sent wrong ones.
const PLACES_MAX: usize = 8;

/// A run being flown. Should its task end early, its flights end too: nobody waits for ever.
pub(crate) struct Run {
    device: Arc<Device>,
    id: RunId,
    changed: Arc<Notify>,
}

/// Why an attempt stopped at a span.
struct Broken {
    span: usize,
    why: Why,
}

pub(crate) enum Why {
    Source(SourceError),
    Corrupt(String),
    Late(Duration),
    Full(DeviceError),
    Stopped,
}

/// The attempts at one span.
struct Tries {
    span: usize,
    count: usize,
}

/// Where one attempt reads from.
struct Attempt {
    first: usize,
    /// Spans before `first` that are decoded only to carry the state there, from here.
    lead: usize,
    end: usize,
    count: usize,
    source: Picked,
}

/// A span that is being decoded.
struct Pending {
    span: usize,
    job: JoinHandle<Result<Decoded, String>>,
}

/// A span that has been decoded and verified.
struct Verified {
    decoder: Decoder,
    offset: u64,
    bytes: Vec<u8>,
    _memory: Taken,
    priority: Priority,
    began: Instant,
}

/// What is left of a span after it has landed.
struct Decoded {
    decoder: Decoder,
    unstored: Option<DeviceError>,
}

/// The connection that a run was granted, and for which priority; others see that it is busy.
struct Connection {
    priority: Priority,
    taken: Taken,
    busy: Option<Busy>,
}

/// Source bytes and memory for one span.
struct Loaded {
    source: Vec<u8>,
    group: Option<Bytes>,
    memory: Taken,
    priority: Priority,
    /// When it was asked for.
    began: Instant,
}

impl Run {
    pub(crate) fn new(device: Arc<Device>, run: NewRun) -> Self {
        Self { device, id: run.id, changed: run.changed }
    }

    /// Flies the run to its end.
    pub(crate) async fn fly(self) {
        let Some(first) = self.device.board().remaining(self.id).map(|left| left.start) else { return };
        let Some(mut connection) = self.connect(first).await else { return };
        let mut tries = Tries { span: first, count: 0 };
        loop {
            let Some(left) = self.device.board().remaining(self.id) else { break };
            if left.start != tries.span {
                tries = Tries { span: left.start, count: 0 };
            }
            let Some(source) = self.device.layer.pick(tries.count) else { break };
            let attempt =
                Attempt { first: left.start, lead: self.lead(left.start), end: left.end, count: tries.count, source };
            // A large future: it holds the whole of an attempt.
            let Err(broken) = Box::pin(self.attempt(&attempt, &mut connection)).await else { continue };
            self.device.board().rewind(self.id, broken.span);
            if broken.span != tries.span {
                tries = Tries { span: broken.span, count: 0 };
            }
            tries.count += 1;
            if !self.goes_on(broken, &attempt, &tries) {
                break;
            }
        }
    }

    /// Waits for a connection to fetch `span` by; `None` if the span isn't wanted any more.
    async fn connect(&self, span: usize) -> Option<Connection> {
        let limits = &self.device.shared.limits;
        let connect = async |priority| Connection { priority, taken: limits.connection(priority).await, busy: None };
        self.at_priority(span, connect).await
    }

    /// What becomes of the run after an attempt broke: whether it goes on, with that span or the next.
    fn goes_on(&self, broken: Broken, attempt: &Attempt, tries: &Tries) -> bool {
        let device = &self.device;
        let from = attempt.source.source.describe();
        let (span, digest) = (broken.span, device.digest());
        let (corrupt, ends) =
            (matches!(broken.why, Why::Corrupt(_)), matches!(broken.why, Why::Full(_) | Why::Stopped));
        let elsewhere = corrupt && self.distrust(span, attempt) && tries.count < PLACES_MAX;
        let last = tries.count >= self.attempts_max() && !elsewhere;
        let error = match broken.why {
            Why::Source(source) => DeviceError::Fetch { device: digest, span, from, source },
            Why::Corrupt(reason) => DeviceError::Corrupt { device: digest, span, from, reason },
            Why::Late(after) => DeviceError::Timeout { device: digest, span, from, after },
            Why::Full(error) => error,
            Why::Stopped => DeviceError::Stopped { device: digest },
        };
        let retry_after = device.shared.options.retry_after;
        if ends {
            device.board().abandon(self.id, &error, retry_after);
            return false;
        }
        if !last {
            device.shared.tally.retried();
            tracing::warn!(error = error.chain(), "trying again");
            return true;
        }
        let foreground = device.board().priority(self.id, span) == Some(Priority::Foreground);
        if foreground && error.may_pass() {
            // Readers wait, and have it tried again; they log that.
            tracing::debug!(error = error.chain(), "giving up for now");
        } else if corrupt || foreground {
            tracing::error!(error = error.chain(), "giving up");
        } else {
            tracing::warn!(error = error.chain(), "giving up for now");
        }
        if corrupt {
            // What follows may be sound.
            let mut board = device.board();
            board.land(self.id, span, Err(error), retry_after);
            board.advance(self.id, span);
            return true;
        }
        device.board().abandon(self.id, &error, retry_after);
        false
    }

    /// Has what `span` came out wrong of asked for elsewhere from now on. True if there is such a place.
    fn distrust(&self, span: usize, attempt: &Attempt) -> bool {
        let device = &self.device;
        device.forget_checkpoint(span);
        device.was_corrupt();
        // Spans that only carried the state to the first one weren't verified.
        let from = if span == attempt.first { attempt.lead } else { span };
        let spans = device.spans().get(from..=span).unwrap_or_default();
        let start = spans.iter().map(|span| span.source_offset).min().unwrap_or_default();
        let end = spans.iter().map(|span| span.source_range().end).max().unwrap_or_default();
        let layer = attempt.source.source.distrust(start..end);
        let checkpoint = device.distrust_checkpoint(self.started(span, attempt), attempt.count);
        layer || checkpoint
    }

    fn attempts_max(&self) -> usize {
        self.device.layer.len().max(self.device.checkpoints.len()).clamp(2, ATTEMPTS_MAX)
    }

    /// One GET from the first of the spans `left` on, until the run ends or something breaks. Spans that landed before
    /// it broke are kept.
    async fn attempt(&self, attempt: &Attempt, connection: &mut Connection) -> Result<(), Broken> {
        let first = attempt.first;
        let spans = self.device.spans().get(attempt.lead..attempt.end).unwrap_or_default();
        let mut body = Body::new(
            Arc::clone(&self.device),
            Arc::clone(&attempt.source.source),
            spans,
            self.device.shared.options.stall_timeout,
        );
        let mut decoder = None;
        let mut pending: Option<Pending> = None;
        let mut span = attempt.lead;
        loop {
            let mut loading = pin!(self.load(attempt, span, &mut body, connection));
            let loaded = loop {
                tokio::select! {
                    biased;
                    decoded = settle(&mut pending), if pending.is_some() => decoder = Some(self.settled(decoded, attempt)?),
                    loaded = &mut loading => break loaded,
                }
            };
            if pending.is_some() {
                let decoded = settle(&mut pending).await;
                decoder = Some(self.settled(decoded, attempt)?);
            }
            let Some(loaded) = loaded.map_err(|why| Broken { span: span.max(first), why })? else { return Ok(()) };
            pending = Some(self.decode(span, attempt, loaded, decoder.take()));
            let next = if span < first { Some(span + 1) } else { self.device.board().advance(self.id, span) };
            match next {
                Some(next) => span = next,
                None => {
                    let decoded = settle(&mut pending).await;
                    return self.settled(decoded, attempt).map(drop);
                }
            }
        }
    }

    /// The span by whose checkpoint `span` was decoded.
    fn started(&self, span: usize, attempt: &Attempt) -> usize {
        let reached = self.device.spans().get(span).is_some_and(Decoder::reaches);
        if reached { attempt.lead } else { span }
    }

    /// Where decoding must begin to reach `first`: there, or, without any source of checkpoints, at the start of the
    /// gzip member.
    fn lead(&self, first: usize) -> usize {
        let spans = self.device.spans();
        let alone = |span: &Span| !Decoder::needs_checkpoint(span) || !Decoder::reaches(span);
        if self.device.checkpoints.len() > 0 || spans.get(first).is_none_or(alone) {
            return first;
        }
        spans.iter().take(first).rposition(alone).unwrap_or(first)
    }

    /// Gives way to more urgent work, then takes memory for `span` and reads its source bytes, and its checkpoint if
    /// decoding starts here. `None` if the span isn't wanted any more.
    async fn load(
        &self,
        attempt: &Attempt,
        span: usize,
        body: &mut Body,
        connection: &mut Connection,
    ) -> Result<Option<Loaded>, Why> {
        let (device, shared) = (&self.device, &self.device.shared);
        let Some(described) = device.spans().get(span) else { return Ok(None) };
        let urgent = span.max(attempt.first);
        if device.board().priority(self.id, urgent) != Some(Priority::Prefetch) {
            // Before it waits for prefetch to end: that must not be itself.
            connection.busy = None;
        }
        let Some(priority) = self.at_priority(urgent, |priority| self.give_way(priority, described)).await else {
            return Ok(None);
        };
        if priority < connection.priority {
            // What is left isn't as urgent: leave the connection to who is.
            connection.taken = None;
            match self.connect(urgent).await {
                Some(lower) => *connection = lower,
                None => return Ok(None),
            }
        }
        if priority == Priority::Prefetch && connection.busy.is_none() {
            connection.busy = Some(shared.activity.enter(priority));
        }
        let bytes = Decoder::memory(described);
        let Some(memory) = self.at_priority(urgent, |priority| shared.limits.memory(priority, bytes)).await else {
            return Ok(None);
        };
        let Some(end) = device.board().begin(self.id, urgent) else { return Ok(None) };
        let (began, purpose) = (Instant::now(), Purpose::from(priority));
        body.shorten(device.spans().get(attempt.lead..end).unwrap_or_default());
        let keep = device.spans().get(span + 1).map_or(u64::MAX, |next| next.source_offset);
        let group = async {
            let starts = span == attempt.lead || !Decoder::reaches(described);
            if !(Decoder::needs_checkpoint(described) && starts) {
                return Ok(None);
            }
            // Groups are small.
            let patience = shared.options.stall_timeout;
            let group = timeout(patience, device.checkpoint_group(&described.start, attempt.count, purpose)).await;
            group.unwrap_or(Err(Why::Late(patience))).map(Some)
        };
        let (source, group) = tokio::try_join!(body.take(described.source_range(), keep, purpose), group)?;
        device.counters.fetched(source.len() as u64);
        Ok(Some(Loaded { source, group, memory, priority, began }))
    }

    async fn give_way(&self, priority: Priority, span: &Span) -> Priority {
        let shared = &self.device.shared;
        match priority {
            Priority::Foreground => {}
            Priority::Prefetch => shared.activity.until_no_reader(shared.options.prefetch_patience).await,
            Priority::Background => {
                shared.activity.until_idle(shared.options.background_grace).await;
                tokio::time::sleep(shared.limits.fill_pause(span.source_len.into())).await;
                shared.activity.until_idle(shared.options.background_grace).await;
            }
        }
        priority
    }

    /// Waits as `span`'s priority says, and anew whenever that changes. `None` once the run isn't to fetch the span.
    async fn at_priority<T, F: Future<Output = T>>(&self, span: usize, wait: impl Fn(Priority) -> F) -> Option<T> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let priority = self.device.board().priority(self.id, span)?;
            let mut waiting = pin!(wait(priority));
            loop {
                tokio::select! {
                    biased;
                    done = &mut waiting => return Some(done),
                    () = &mut changed => {
                        changed.set(self.changed.notified());
                        changed.as_mut().enable();
                        if self.device.board().priority(self.id, span) != Some(priority) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Decodes `span` on a thread that may block, verifies and writes it, and lands its flight.
    fn decode(&self, span: usize, attempt: &Attempt, loaded: Loaded, decoder: Option<Decoder>) -> Pending {
        let (device, id) = (Arc::clone(&self.device), self.id);
        let land = span >= attempt.first;
        let source = (attempt.count > 0).then_some(attempt.source.number);
        let job = async move {
            let _one = device.shared.limits.decoder().await;
            let runtime = device.shared.runtime.clone();
            let job = runtime.spawn_blocking(move || {
                let decoded = decode(&device, span, loaded, decoder)?;
                if let Some(number) = source {
                    device.layer.prefer(number);
                }
                Ok(decoded.land(&device, land.then_some(id), span))
            });
            match job.await {
                Ok(decoded) => decoded,
                Err(error) if error.is_cancelled() => std::future::pending().await,
                Err(_) => Err("the decoder broke down over it".into()),
            }
        };
        Pending { span, job: self.device.shared.runtime.spawn(job) }
    }

    /// The decoder after a span, or why the attempt can't go on.
    fn settled(&self, decoded: (usize, Result<Decoded, Why>), attempt: &Attempt) -> Result<Decoder, Broken> {
        let (span, decoded) = decoded;
        let decoded = decoded.map_err(|why| {
            if matches!(why, Why::Corrupt(_)) {
                self.device.forget_checkpoint(self.started(span, attempt));
            }
            Broken { span: span.max(attempt.first), why }
        })?;
        let Some(error) = decoded.unstored else { return Ok(decoded.decoder) };
        // The disk is full: go on only for those who wait, from memory.
        match self.device.board().priority(self.id, span + 1) {
            Some(Priority::Prefetch | Priority::Background) => Err(Broken { span: span + 1, why: Why::Full(error) }),
            Some(Priority::Foreground) | None => Ok(decoded.decoder),
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let stopped = DeviceError::Stopped { device: self.device.digest() };
        self.device.board().abandon(self.id, &stopped, Duration::ZERO);
    }
}

/// Waits for the span being decoded.
async fn settle(pending: &mut Option<Pending>) -> (usize, Result<Decoded, Why>) {
    let Some(waiting) = pending else { return std::future::pending().await };
    let span = waiting.span;
    let decoded = match (&mut waiting.job).await {
        Ok(decoded) => decoded.map_err(Why::Corrupt),
        Err(_) => Err(Why::Stopped),
    };
    *pending = None;
    (span, decoded)
}

/// Decodes and verifies a span.
fn decode(device: &Device, span: usize, mut loaded: Loaded, decoder: Option<Decoder>) -> Result<Verified, String> {
    let described = device.spans().get(span).ok_or("it is not in the table")?;
    let carried = decoder.filter(|decoder| decoder.goes_on(described));
    let mut decoder = match carried {
        Some(decoder) => decoder,
        None => Decoder::start(described, loaded.group.as_ref())?,
    };
    let source = std::mem::take(&mut loaded.source);
    let bytes = decoder.decode(described, source)?;
    let Loaded { memory: _memory, priority, began, .. } = loaded;
    Ok(Verified { decoder, offset: described.device_offset, bytes, _memory, priority, began })
}

impl Verified {
    /// Writes the span, and lands its flight if it was fetched for that.
    fn land(self, device: &Device, run: Option<RunId>, span: usize) -> Decoded {
        // What is only on the way to a span that somebody wants may be wanted, too.
        let priority = run.map_or(Some(Priority::Prefetch), |run| device.board().priority(run, span));
        let len = self.bytes.len() as u64;
        let unstored = device.store(self.offset, &self.bytes, priority.unwrap_or(Priority::Prefetch)).err();
        let stored = unstored.is_none();
        if let Some(run) = run {
            let landed = unstored.clone().map_or(Landed::Stored, |error| Landed::Unstored(self.bytes.into(), error));
            device.board().land(run, span, Ok(landed), device.shared.options.retry_after);
            device.shared.tally.fetched(self.priority, self.began.elapsed());
        }
        if stored {
            // Who waits for the span has it already.
            device.shared.stored(len);
        }
        Decoded { decoder: self.decoder, unstored }
    }
}
