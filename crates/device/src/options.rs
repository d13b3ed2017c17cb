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
    /// Time for one span to arrive, over all attempts.
    pub fetch_timeout: Duration,
    /// Time for a reader to be answered.
    pub read_timeout: Duration,
    /// A span that failed isn't tried again for this long. It doubles with every further failure, up to 64 times.
    pub retry_after: Duration,
    /// Background fill waits until no reader has waited for this long. A start-up has pauses in which it computes: fill
    /// that used them was measured to double the time to ready over a link of 300 Mbit/s.
    pub background_grace: Duration,
    /// Prefetch waits for readers, but no longer than this before each span.
    pub prefetch_patience: Duration,
    /// Presence is made durable this long after the last span arrived...
    pub flush_idle: Duration,
    /// ...and no later than this after the first.
    pub flush_interval: Duration,
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
            fetch_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(120),
            retry_after: Duration::from_millis(250),
            background_grace: Duration::from_secs(3),
            prefetch_patience: Duration::from_millis(50),
            flush_idle: Duration::from_secs(1),
            flush_interval: Duration::from_secs(5),
            fill: true,
            fill_rate: None,
        }
    }
}
