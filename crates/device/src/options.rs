//! What can be set about devices, and the priorities of their work.
use std::time::Duration;

/// Who is waiting for bytes. The higher ones go first, and the lower give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Nobody: filling the device while the link is idle.
    Background,
    /// Nobody yet, but somebody soon: read-ahead, and lists of what a start-up touches.
    Prefetch,
    /// A reader.
    Foreground,
}

/// What stays free on a disk, for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes.
    Bytes(u64),
    /// This part of the disk, in percent.
    Percent(u8),
}

impl MinFree {
    /// In bytes, on a disk of `size` bytes.
    pub(crate) fn of(self, size: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => size / 100 * u64::from(percent),
        }
    }
}

/// What all devices of a directory share. The defaults suit a node that starts containers over a link of some
/// hundred Mbit/s.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Most GETs at a time on behalf of readers. They never wait for GETs of lower priority.
    pub foreground_connections: usize,
    /// Most GETs at a time for prefetch, over and above.
    pub prefetch_connections: usize,
    /// Most GETs at a time for background fill, over and above. With one, the link would idle between any two.
    pub background_connections: usize,
    /// Spans decoded at a time; 0 for as many as there are processors.
    pub decoders: usize,
    /// Bytes of memory for spans on their way. A quarter of it is for prefetch and background fill.
    pub memory: u64,
    /// Bytes of memory for cached checkpoints (compressed).
    pub checkpoint_memory: u64,
    /// Most source bytes read ahead of a sequential reader; 0 turns read-ahead off.
    pub read_ahead: u64,
    /// A reader whose bytes come later in a GET under way joins it if no more than this many source bytes come first,
    /// or else sends a GET of its own.
    pub join_distance: u64,
    /// A reader whose bytes come in a hot stream waits for it if no more than this many bytes of the stream come first,
    /// or else sends a GET of its own.
    pub hot_join_distance: u64,
    /// A reader waits no longer than this for the next bytes of a hot stream before it sends a GET of its own.
    pub hot_patience: Duration,
    /// An attempt at a span ends when its source sends nothing for this long. A slow one is waited for.
    pub stall_timeout: Duration,
    /// Time for a reader to be answered. As long as what goes wrong may pass, it is tried again meanwhile; only then the
    /// reader gets an error.
    pub read_timeout: Duration,
    /// A read that took longer is slow: it is counted, and who reads is to log it.
    pub slow_read: Duration,
    /// A span that failed isn't tried again for this long. It doubles with every further failure: up to 64 times, or 16
    /// times for what may pass.
    pub retry_after: Duration,
    /// Background fill waits until no reader has waited for this long, and nobody has [put it
    /// off](crate::Device::put_off_fill). A start-up has pauses in which it computes: fill
    /// that used them was measured to double the time to ready over a link of 300 Mbit/s.
    pub background_grace: Duration,
    /// Prefetch waits for readers, but no longer than this before each span.
    pub prefetch_patience: Duration,
    /// Presence is made durable this long after the last span arrived...
    pub flush_idle: Duration,
    /// ...and no later than this after the first.
    pub flush_interval: Duration,
    /// Most bytes of disk that all devices may take, passed by a few spans at most; `None` for as many as there are.
    pub max_bytes: Option<u64>,
    /// What stays free on their disk: cold data are evicted, and nothing is fetched that nobody asked for, if it isn't.
    pub min_free: MinFree,
    /// Whether [`start_fill`](crate::Device::start_fill) does anything.
    pub fill: bool,
    /// Source bytes per second that background fill may take, over all devices.
    pub fill_rate: Option<u64>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self {
            foreground_connections: 16,
            prefetch_connections: 4,
            background_connections: 2,
            decoders: 0,
            memory: 32 << 20,
            checkpoint_memory: 4 << 20,
            read_ahead: 8 << 20,
            join_distance: 1 << 20,
            hot_join_distance: 8 << 20,
            hot_patience: Duration::from_millis(500),
            stall_timeout: Duration::from_secs(30),
            // Longer than a registry takes to start again; less than the two minutes after which the kernel complains of
            // a task that hangs.
            read_timeout: Duration::from_secs(90),
            slow_read: Duration::MAX,
            retry_after: Duration::from_millis(250),
            background_grace: Duration::from_secs(3),
            prefetch_patience: Duration::from_millis(50),
            flush_idle: Duration::from_secs(1),
            flush_interval: Duration::from_secs(5),
            max_bytes: None,
            min_free: MinFree::Bytes(0),
            fill: true,
            fill_rate: None,
        }
    }
}
