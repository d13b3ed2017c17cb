//! Buffers that file data pass through, used again and again.
use std::sync::{Mutex, PoisonError};

/// A few idle buffers. Each grows to the largest request it served.
pub(super) struct Buffers {
    idle: Mutex<Vec<Vec<u8>>>,
    /// Most idle buffers to keep.
    limit: usize,
}

impl Buffers {
    pub(super) fn new(limit: usize) -> Self {
        Self { idle: Mutex::default(), limit }
    }

    /// A buffer of `len` bytes; what is in it is left over from another request.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let mut buffer = self.lock().pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    pub(super) fn put(&self, buffer: Vec<u8>) {
        let mut idle = self.lock();
        if idle.len() < self.limit {
            idle.push(buffer);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
