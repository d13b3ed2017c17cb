//! Background fill: fetches what nobody has asked for, in order, while nobody waits.
use crate::{device::Device, error::DeviceError, options::Priority};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle, time::sleep};
use tracing::Instrument;

/// Source bytes per step: one GET. What is on its way cannot be called back when a reader comes, so steps are small.
const STEP: u64 = 2 << 20;
/// Pauses between attempts when the source fails or the disk is full.
const PAUSES: [u64; 6] = [1, 2, 5, 10, 30, 60];

/// How far background fill has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FillState {
    /// It was never started, or is switched off.
    #[default]
    Idle,
    /// It is at work, or waits for readers, the disk or the source.
    Running,
    /// It was stopped.
    Stopped,
    /// Everything is on disk.
    Done,
}

/// The filling of one device.
#[derive(Default)]
pub(crate) struct Fill {
    state: watch::Sender<FillState>,
    task: Mutex<Option<AbortHandle>>,
}

impl Device {
    /// Starts fetching everything that is missing with [`Priority::Background`], unless that is under way. Failures
    /// are retried for as long as it takes.
    pub fn start_fill(&self) {
        if self.is_complete() {
            self.fill.state.send_replace(FillState::Done);
            return;
        }
        if !self.shared.options.fill {
            return;
        }
        let mut task = self.fill.task();
        if *self.fill.state.borrow() == FillState::Running {
            return;
        }
        self.fill.state.send_replace(FillState::Running);
        // An image is mounted because a container starts: its first reads mustn't find the link busy.
        self.shared.activity.expect_reader();
        *task = Some(self.shared.runtime.spawn(fill(self.weak()).instrument(self.log.clone())).abort_handle());
    }

    /// Tells that a start-up is under way though no reader waits: background work of all devices waits for its grace from
    /// now on.
    pub fn put_off_fill(&self) {
        self.shared.activity.expect_reader();
    }

    /// Stops [`start_fill`](Device::start_fill): what only it wants isn't fetched any more.
    pub fn stop_fill(&self) {
        let mut task = self.fill.task();
        if let Some(task) = task.take() {
            task.abort();
            self.board().stop_background(&DeviceError::Stopped { device: self.digest() });
        }
        self.fill.state.send_if_modified(|state| {
            let running = *state == FillState::Running;
            if running {
                *state = FillState::Stopped;
            }
            running
        });
    }

    /// How far background fill has come.
    pub fn fill_state(&self) -> FillState {
        *self.fill.state.borrow()
    }

    /// Waits until background fill isn't running (any more).
    pub async fn filled(&self) -> FillState {
        let mut state = self.fill.state.subscribe();
        let ended = state.wait_for(|state| *state != FillState::Running).await;
        ended.map_or(FillState::Stopped, |state| *state)
    }

    /// Sends for these bytes and doesn't wait. Should that fail, it shows when they are brought.
    fn send_for(&self, bytes: &Range<u64>) {
        let spans = self.span_range(bytes);
        if let Err(error) = self.claim(spans.clone(), Priority::Background, spans.end) {
            tracing::debug!(device = %self.digest(), %error, "not sent for");
        }
    }

    /// The next device bytes from span `from` on to fetch in one step, beginning with a missing span, and the span
    /// after them.
    fn next_step(&self, from: usize) -> Option<(Range<u64>, usize)> {
        let missing = |span: &clipper_format::span::Span| !self.storage.has(span.device_range());
        let spans = self.spans();
        let first = from + spans.get(from..)?.iter().position(missing)?;
        let mut bytes = 0;
        let more = spans.get(first..)?.iter().take_while(|span| {
            let small = bytes < STEP;
            bytes += u64::from(span.source_len);
            small && missing(span)
        });
        let end = first + more.count().max(1);
        Some((spans.get(first)?.device_offset..spans.get(end - 1)?.device_range().end, end))
    }
}

impl Fill {
    /// Ends the task, because the device goes away.
    pub(crate) fn abort(&self) {
        if let Some(task) = self.task().take() {
            task.abort();
        }
    }

    fn task(&self) -> std::sync::MutexGuard<'_, Option<AbortHandle>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes through the device until nothing is missing.
async fn fill(device: Weak<Device>) {
    let (mut span, mut failures, mut skipped, mut told) = (0, 0, false, false);
    loop {
        let Some(shared) = device.upgrade().map(|device| Arc::clone(&device.shared)) else { return };
        // What a reader wants meanwhile is no step of this; and the device may go away.
        shared.activity.until_idle(shared.options.background_grace).await;
        let Some(device) = device.upgrade() else { return };
        let Some((bytes, next)) = device.next_step(span) else {
            if device.is_complete() {
                return done(&device).await;
            }
            // Some spans were corrupt, or vanished from the cache: begin again, later.
            span = 0;
            let pause = pause(if skipped { failures } else { 0 });
            failures += 1;
            skipped = false;
            drop(device);
            sleep(pause).await;
            continue;
        };
        if !device.shared.room.fits(bytes.end - bytes.start) {
            if !std::mem::replace(&mut told, true) {
                tracing::info!(device = %device.digest(), "background fill waits for room in the cache");
            }
            let pause = pause(failures);
            failures += 1;
            drop(device);
            sleep(pause).await;
            continue;
        }
        told = false;
        device.send_for(&bytes);
        if let Some((ahead, _)) = device.next_step(next)
            && device.shared.room.fits(ahead.end - bytes.start)
        {
            // Its request crosses the link while the bytes of this step arrive.
            device.send_for(&ahead);
        }
        match device.bring(bytes, Priority::Background).await {
            Ok(_) => span = next,
            Err(DeviceError::Corrupt { span: bad, .. }) => (span, skipped) = (bad + 1, true),
            Err(error) => {
                tracing::debug!(device = %device.digest(), %error, "background fill pauses");
                let pause = pause(failures);
                failures += 1;
                drop(device);
                sleep(pause).await;
                continue;
            }
        }
        if !skipped {
            failures = 0;
        }
    }
}

async fn done(device: &Device) {
    if let Err(error) = device.flush().await {
        tracing::warn!(device = %device.digest(), %error, "presence not recorded");
    }
    device.shared.checkpoints.forget_device(device.digest());
    tracing::info!(device = %device.digest(), bytes = device.size(), "the layer is complete");
    device.fill.state.send_replace(FillState::Done);
}

fn pause(failures: usize) -> Duration {
    Duration::from_secs(PAUSES[failures.min(PAUSES.len() - 1)])
}
