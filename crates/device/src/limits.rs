//! What all devices share and must not use up: connections, memory for spans on their way, decoders, the fill rate.
use crate::options::{DeviceOptions, Priority};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of memory stands for.
const MEMORY_UNIT: u64 = 1024;

/// The shared limits. Readers have connections and memory of their own, so that they never wait for lower work.
pub(crate) struct Limits {
    connections: [Arc<Semaphore>; 3],
    reader_memory: Pool,
    other_memory: Pool,
    decoders: Arc<Semaphore>,
    fill_rate: Option<Rate>,
}

struct Pool {
    permits: Arc<Semaphore>,
    size: u32,
}

struct Rate {
    bytes_per_second: f64,
    free_at: Mutex<Instant>,
}

/// Something taken from a limit, given back when dropped. `None` only while the program ends.
pub(crate) type Taken = Option<OwnedSemaphorePermit>;

impl Limits {
    pub(crate) fn new(options: &DeviceOptions) -> Self {
        let connections =
            [options.background_connections, options.prefetch_connections, options.foreground_connections];
        let decoders = match options.decoders {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        Self {
            connections: connections.map(|n| Arc::new(Semaphore::new(n.clamp(1, 1024)))),
            reader_memory: Pool::new(options.memory / 4 * 3),
            other_memory: Pool::new(options.memory / 4),
            decoders: Arc::new(Semaphore::new(decoders.min(1024))),
            fill_rate: options
                .fill_rate
                .map(|rate| Rate { bytes_per_second: rate.max(1) as f64, free_at: Mutex::new(Instant::now()) }),
        }
    }

    /// Waits for a connection of this priority.
    pub(crate) async fn connection(&self, priority: Priority) -> Taken {
        Arc::clone(&self.connections[priority as usize]).acquire_owned().await.ok()
    }

    /// Waits for memory. A span larger than all of it goes alone.
    pub(crate) async fn memory(&self, priority: Priority, bytes: u64) -> Taken {
        let pool = if priority == Priority::Foreground { &self.reader_memory } else { &self.other_memory };
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).clamp(1, pool.size);
        Arc::clone(&pool.permits).acquire_many_owned(units).await.ok()
    }

    /// Waits for a decoder.
    pub(crate) async fn decoder(&self) -> Taken {
        Arc::clone(&self.decoders).acquire_owned().await.ok()
    }

    /// How long background fill must wait before it fetches `bytes`.
    pub(crate) fn fill_pause(&self, bytes: u64) -> Duration {
        let Some(rate) = &self.fill_rate else { return Duration::ZERO };
        let now = Instant::now();
        let mut free_at = rate.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (*free_at).max(now);
        // A span has 64 MiB at most: no more than a year of it.
        let takes = (bytes as f64 / rate.bytes_per_second).min(3e7);
        *free_at = start + Duration::from_secs_f64(takes);
        start - now
    }
}

impl Pool {
    fn new(bytes: u64) -> Self {
        let size = u32::try_from(bytes / MEMORY_UNIT).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self { permits: Arc::new(Semaphore::new(size as usize)), size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fill_pauses_for_as_long_as_its_rate_demands() {
        let limits = Limits::new(&DeviceOptions { fill_rate: Some(1000), ..DeviceOptions::default() });
        assert_eq!(limits.fill_pause(3_600_000), Duration::ZERO);
        assert!(limits.fill_pause(3_600_000) > Duration::from_secs(3000));
        assert!(limits.fill_pause(0) > Duration::from_secs(6000));
        let limits = Limits::new(&DeviceOptions::default());
        assert_eq!((limits.fill_pause(u64::MAX), limits.fill_pause(1)), (Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test]
    async fn readers_never_wait_for_what_others_hold() {
        let limits = Limits::new(&DeviceOptions { memory: 4096, ..DeviceOptions::default() });
        let _low = limits.memory(Priority::Background, u64::MAX).await;
        let _high = limits.memory(Priority::Foreground, 100).await;
        let mut held = Vec::new();
        for _ in 0..DeviceOptions::default().background_connections {
            held.push(limits.connection(Priority::Background).await);
        }
        assert!(limits.connection(Priority::Foreground).await.is_some());
        assert!(limits.connection(Priority::Prefetch).await.is_some());
    }
}
