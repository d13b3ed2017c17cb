//! Who is busy right now, so that work of lower priority can give way.
use crate::options::Priority;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, time::sleep};

/// Counts readers that wait and prefetches under way, over all devices.
#[derive(Default)]
pub(crate) struct Activity {
    foreground: AtomicUsize,
    prefetch: AtomicUsize,
    last_foreground: Mutex<Option<Instant>>,
    changed: Notify,
}

/// One reader or prefetch, until dropped.
pub(crate) struct Busy {
    activity: Arc<Activity>,
    priority: Priority,
}

impl Activity {
    /// Counts one more of `priority`; background work isn't counted.
    pub(crate) fn enter(self: &Arc<Self>, priority: Priority) -> Busy {
        if let Some(count) = self.count(priority) {
            count.fetch_add(1, Ordering::AcqRel);
        }
        Busy { activity: Arc::clone(self), priority }
    }

    /// Somebody is about to read: background work waits for its grace from now on.
    pub(crate) fn expect_reader(&self) {
        *self.last_foreground.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns when prefetch may go on: no reader waits, or `patience` is over.
    pub(crate) async fn until_no_reader(&self, patience: Duration) {
        let quiet = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if self.foreground.load(Ordering::Acquire) == 0 {
                    return;
                }
                changed.await;
            }
        };
        // Either way it goes on.
        let _ = tokio::time::timeout(patience, quiet).await;
    }

    /// Returns when background work may go on: no reader waits nor has for `grace`, and nothing is prefetched.
    pub(crate) async fn until_idle(&self, grace: Duration) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.foreground.load(Ordering::Acquire) > 0 || self.prefetch.load(Ordering::Acquire) > 0 {
                changed.await;
                continue;
            }
            let last = *self.last_foreground.lock().unwrap_or_else(PoisonError::into_inner);
            match last.map(|last| grace.saturating_sub(last.elapsed())).filter(|rest| !rest.is_zero()) {
                Some(rest) => sleep(rest).await,
                None => return,
            }
        }
    }

    fn count(&self, priority: Priority) -> Option<&AtomicUsize> {
        match priority {
            Priority::Foreground => Some(&self.foreground),
            Priority::Prefetch => Some(&self.prefetch),
            Priority::Background => None,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.priority == Priority::Foreground {
            self.activity.expect_reader();
        }
        if self.activity.count(self.priority).is_some_and(|count| count.fetch_sub(1, Ordering::AcqRel) == 1) {
            self.activity.changed.notify_waiters();
        }
    }
}
