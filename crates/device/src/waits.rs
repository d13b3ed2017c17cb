//! How long is waited for bytes: by readers until their time is over, whatever may pass goes wrong meanwhile.
use crate::{board::Landed, device::Device, error::DeviceError, options::Priority};
use bytes::Bytes;
use std::{ops::Range, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Shortest pause before a reader has something tried again.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// A span that has landed but couldn't be stored, and why.
pub(crate) type Unstored = (usize, Bytes, DeviceError);

impl Device {
    /// Waits until the spans of these bytes have landed. Returns those that couldn't be stored.
    ///
    /// A reader is given its time: if something fails that may pass, as with a network that is down, it is tried again
    /// after a pause.
    pub(crate) async fn bring(&self, bytes: Range<u64>, priority: Priority) -> Result<Vec<Unstored>, DeviceError> {
        let spans = self.span_range(&bytes);
        if priority != Priority::Foreground {
            return self.landed(spans.clone(), priority, spans.end).await;
        }
        let began = Instant::now();
        let deadline = began + self.shared.options.read_timeout;
        let mut ahead = self.touch(&spans);
        let mut failure: Option<DeviceError> = None;
        loop {
            let error = match timeout_at(deadline, self.landed(spans.clone(), priority, ahead)).await {
                Ok(Err(error)) if error.may_pass() => error,
                Ok(Ok(unstored)) => {
                    if failure.is_some() {
                        let waited_ms = began.elapsed().as_millis() as u64;
                        tracing::info!(device = %self.digest(), waited_ms, "a reader has got its bytes after all");
                    }
                    return Ok(unstored);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(failure.unwrap_or_else(|| self.late(&spans))),
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            if failure.replace(error.clone()).is_none() {
                tracing::warn!(error = error.chain(), "a reader waits");
            }
            let again = self.board().refused_until(spans.clone()).map(Instant::from_std);
            let soonest = Instant::now() + PAUSE_MIN;
            sleep_until(again.map_or(soonest, |again| again.max(soonest)).min(deadline)).await;
            // What nobody waits for isn't worth another try.
            ahead = spans.end;
        }
    }

    /// Waits until `spans` have landed, or one of them failed.
    async fn landed(
        &self,
        spans: Range<usize>,
        priority: Priority,
        ahead: usize,
    ) -> Result<Vec<Unstored>, DeviceError> {
        let flights = self.claim(spans, priority, ahead)?;
        let _busy = (!flights.is_empty()).then(|| self.shared.activity.enter(priority));
        let mut unstored = Vec::new();
        for (span, flight) in flights {
            if let Landed::Unstored(bytes, error) = flight.landed().await? {
                if priority != Priority::Foreground {
                    return Err(error);
                }
                unstored.push((span, bytes, error));
            }
        }
        Ok(unstored)
    }

    /// The error for a reader who has waited for nothing but silence.
    fn late(&self, spans: &Range<usize>) -> DeviceError {
        let missing = |span: &usize| self.spans().get(*span).is_some_and(|s| !self.storage.has(s.device_range()));
        let span = spans.clone().find(missing).unwrap_or(spans.start);
        let from = self.layer.pick(0).map_or_else(String::new, |picked| picked.source.describe());
        DeviceError::Timeout { device: self.digest(), span, from, after: self.shared.options.read_timeout }
    }
}
