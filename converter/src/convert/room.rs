//! Bytes that may wait between two stages of the pipeline: spans of zstd layers differ in length by a factor of a hundred.
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A room that holds so many bytes, or one thing that is larger.
#[derive(Clone)]
pub struct Room {
    inside: Arc<(Mutex<usize>, Condvar)>,
    most: usize,
}

/// Bytes in a room. Dropping it makes place.
pub struct Held {
    room: Room,
    bytes: usize,
}

impl Room {
    /// An empty one.
    pub fn new(most: usize) -> Self {
        Self { inside: Arc::default(), most }
    }

    /// Waits until there is place for `bytes`.
    pub fn enter(&self, bytes: usize) -> Held {
        let mut inside = self.lock();
        while *inside > 0 && *inside + bytes > self.most {
            inside = self.inside.1.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
        *inside += bytes;
        Held { room: self.clone(), bytes }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // Nothing that could panic happens under this lock.
        self.inside.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.room.lock() -= self.bytes;
        self.room.inside.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{TryRecvError, channel};

    #[test]
    fn who_has_no_place_waits_until_enough_have_left() {
        let room = Room::new(10);
        let (first, second) = (room.enter(6), room.enter(4));
        let (entered, seen) = channel();
        let waiting = room.clone();
        let thread = std::thread::spawn(move || {
            let held = waiting.enter(100);
            entered.send(()).unwrap();
            held
        });
        assert_eq!(seen.try_recv(), Err(TryRecvError::Empty));
        drop(first);
        assert_eq!(seen.try_recv(), Err(TryRecvError::Empty), "there is still something inside");
        drop(second);
        seen.recv().unwrap();
        drop(thread.join().unwrap());
        assert_eq!(*room.lock(), 0);
    }
}
