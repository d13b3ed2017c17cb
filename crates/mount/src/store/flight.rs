//! One worker per thing: who asks for what another is making waits, and then finds it made.
use clipper_format::Digest;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Work that is under way, by the digest of its outcome.
#[derive(Default)]
pub(super) struct Flights {
    doors: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
}

impl Flights {
    /// Waits until nobody else works on `digest`; the guard keeps others out.
    pub(super) async fn enter(&self, digest: Digest) -> OwnedMutexGuard<()> {
        let door = {
            let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
            doors.retain(|_, door| door.strong_count() > 0);
            match doors.get(&digest).and_then(Weak::upgrade) {
                Some(door) => door,
                None => {
                    let door = Arc::default();
                    doors.insert(digest, Arc::downgrade(&door));
                    door
                }
            }
        };
        door.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_at_a_time_per_digest_and_others_side_by_side() {
        let (flights, inside) = (Arc::new(Flights::default()), Arc::new(AtomicUsize::new(0)));
        let digest = Digest::of(b"a");
        let other = flights.enter(Digest::of(b"b")).await;
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (flights, inside) = (Arc::clone(&flights), Arc::clone(&inside));
                tokio::spawn(async move {
                    let _guard = flights.enter(digest).await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(other);
        let _again = flights.enter(digest).await;
        assert_eq!(flights.doors.lock().unwrap().len(), 1);
    }
}
