//! A device: what is here, and what must be fetched first.
use crate::{
    board::{Board, Claim, Wanted},
    checkpoints::Batches,
    devices::Shared,
    durable::Written,
    error::{DeviceError, is_full},
    fill::Fill,
    hot::Expected,
    options::Priority,
    readers::{Readers, Triggers},
    run::Run,
    source::{Piece, Source},
    sources::Sources,
    storage::Storage,
    tally::Purpose,
};
use bytes::{Bytes, BytesMut};
use clipper_format::{
    Digest,
    span::{Span, SpanTable},
};
use std::{
    fmt, io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tracing::Instrument;

/// Device bytes that one read asks for at a time.
const READ_STEP: u64 = 8 << 20;
/// How often room is made for one write.
const ROOM_TRIES: usize = 4;
/// Device bytes that [`Device::ensure`] asks for at a time.
const ENSURE_STEP: u64 = 64 << 20;

/// What a device is made of. Two specs of one digest must describe the same bytes and spans; their sources are
/// alternatives.
pub struct DeviceSpec {
    /// Names the device, on disk too. Not just the layer's digest: whoever makes the span table says what the bytes
    /// are, so a name must stand for both the layer and its table, or one image could spoil another's layer.
    pub digest: Digest,
    /// Bytes of the layer blob.
    pub source_size: u64,
    /// All spans of the layer.
    pub spans: SpanTable,
    /// Where in the checkpoints blob the layer's groups of checkpoints lie.
    pub checkpoint_groups: Vec<Range<u64>>,
    /// The layer blob.
    pub layer: Arc<dyn Source>,
    /// The checkpoints blob. Without it, a gzip span is decoded from the start of its gzip member,
    /// and a span inside a zstd frame not at all.
    pub checkpoints: Option<Arc<dyn Source>>,
    /// What lines of the log about the device are within: it says which layer and which image.
    pub log: tracing::Span,
}

/// What a device has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Source bytes of spans that arrived.
    pub fetched_bytes: u64,
    /// Bytes of checkpoints that arrived.
    pub checkpoint_bytes: u64,
    /// Runs started: about as many GETs of the layer.
    pub runs: u64,
    /// Spans that came out wrong.
    pub corrupt_spans: u64,
}

/// A layer's decompressed bytes, filled as they are read. Obtained from [`Devices::device`](crate::Devices::device).
///
/// Dropping the last handle makes what is present durable, soon; [`flush`](Device::flush) does so at once.
pub struct Device {
    me: Weak<Device>,
    digest: Digest,
    table: SpanTable,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) batches: Batches,
    pub(crate) layer: Sources,
    pub(crate) checkpoints: Sources,
    pub(crate) storage: Arc<Storage>,
    board: Mutex<Board>,
    readers: Mutex<Readers>,
    triggers: Triggers,
    pub(crate) shared: Arc<Shared>,
    pub(crate) fill: Fill,
    pub(crate) expected: Expected,
    pub(crate) counters: Counters,
    pub(crate) log: tracing::Span,
    /// Who sent bytes of it last.
    sender: Mutex<Option<Arc<str>>>,
    pub(crate) written: Mutex<Written>,
}

#[derive(Default)]
pub(crate) struct Counters {
    fetched: AtomicU64,
    checkpoints: AtomicU64,
    runs: AtomicU64,
    corrupt: AtomicU64,
}

impl Device {
    pub(crate) fn new(
        spec: DeviceSpec,
        fingerprint: [u8; 32],
        batches: Batches,
        storage: Storage,
        shared: Arc<Shared>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            digest: spec.digest,
            table: spec.spans,
            fingerprint,
            batches,
            layer: Sources::new(Some(spec.layer)),
            checkpoints: Sources::new(spec.checkpoints),
            storage: Arc::new(storage),
            board: Mutex::default(),
            readers: Mutex::default(),
            triggers: Triggers::default(),
            shared,
            fill: Fill::default(),
            expected: Expected::default(),
            counters: Counters::default(),
            log: spec.log,
            sender: Mutex::default(),
            written: Mutex::default(),
        })
    }

    /// The device's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes of the device.
    pub fn size(&self) -> u64 {
        self.storage.size()
    }

    /// Bytes that are here already, verified.
    pub fn cached_bytes(&self) -> u64 {
        self.storage.cached()
    }

    /// Whether all bytes are here.
    pub fn is_complete(&self) -> bool {
        self.storage.complete()
    }

    /// What the device has done so far.
    pub fn stats(&self) -> DeviceStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeviceStats {
            fetched_bytes: get(&self.counters.fetched),
            checkpoint_bytes: get(&self.counters.checkpoints),
            runs: get(&self.counters.runs),
            corrupt_spans: get(&self.counters.corrupt),
        }
    }

    /// Fills all of `buf` from `offset` if every byte is here: true. False if something must be fetched first; `buf`
    /// then holds nothing of use. Doesn't wait for anything but the local disk, and doesn't allocate.
    ///
    /// # Errors
    /// `InvalidInput` if the range reaches past the end of the device, or what the local disk says.
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let bytes =
            self.range(offset, buf.len() as u64).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let read = self.storage.try_read(offset, buf)? == Some(buf.len());
        if read {
            self.storage.used(&bytes);
            if let Some(trigger) = self.triggers.hit(&bytes) {
                self.read_ahead(trigger);
            }
        }
        Ok(read)
    }

    /// Fills all of `buf` from `offset`, fetching what isn't here, with [`Priority::Foreground`]. Returns as soon as
    /// the bytes of this range are verified. Dropping the future doesn't stop what others wait for.
    ///
    /// # Errors
    /// See [`DeviceError`]; then `buf` holds nothing of use.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.range(offset, buf.len() as u64)?;
        let parts = async {
            let mut at = offset;
            for part in buf.chunks_mut(READ_STEP as usize) {
                self.read_part(at, part).await?;
                at += part.len() as u64;
            }
            Ok(())
        };
        parts.instrument(self.log.clone()).await
    }

    /// As [`read`](Device::read), into bytes of its own: `len` of them from `offset`, fewer only at the end of the
    /// device.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Bytes, DeviceError> {
        let len = self.size().saturating_sub(offset).min(len as u64) as usize;
        let mut buf = BytesMut::zeroed(len);
        if len > 0 {
            self.read(offset, &mut buf).await?;
        }
        Ok(buf.freeze())
    }

    /// Returns once the bytes of `range`, as far as the device goes, are on disk.
    ///
    /// # Errors
    /// See [`DeviceError`]. A full disk is an error here.
    pub async fn ensure(&self, range: Range<u64>, priority: Priority) -> Result<(), DeviceError> {
        let end = range.end.min(self.size());
        let mut at = range.start;
        while at < end {
            let step = at..end.min(at + ENSURE_STEP);
            at = step.end;
            if !self.storage.has(step.clone())
                && let Some((_, _, error)) = self.bring(step, priority).await?.into_iter().next()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts fetching `range`, as far as the device goes, with [`Priority::Prefetch`], and doesn't wait for it.
    pub fn prefetch(&self, range: Range<u64>) {
        let spans = self.span_range(&(range.start..range.end.min(self.size())));
        if let Err(error) = self.claim(spans.clone(), Priority::Prefetch, spans.end) {
            tracing::debug!(device = %self.digest, %error, "not prefetched");
        }
    }

    async fn read_part(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let bytes = offset..offset + buf.len() as u64;
        self.storage.used(&bytes);
        // What arrives for this read isn't evicted before it is read.
        let held = self.storage.hold(bytes.clone());
        let (began, waiting) = (Instant::now(), self.shared.tally.wait());
        let read = self.fetch_part(bytes, buf).await;
        drop((held, waiting));
        self.shared.tally.waited(began.elapsed(), read.is_err());
        self.shared.trim_later();
        read
    }

    async fn fetch_part(&self, bytes: Range<u64>, buf: &mut [u8]) -> Result<(), DeviceError> {
        let storage = |error| DeviceError::storage(self.storage.path(), error);
        let offset = bytes.start;
        // More than once only if the cache is damaged meanwhile.
        for _ in 0..3 {
            if self.storage.try_read(offset, buf).map_err(storage)? == Some(buf.len()) {
                return Ok(());
            }
            if self.arrives_hot(&bytes).await && self.storage.try_read(offset, buf).map_err(storage)? == Some(buf.len())
            {
                return Ok(());
            }
            let unstored = self.bring(bytes.clone(), Priority::Foreground).await?;
            if !unstored.is_empty() && self.assemble(offset, buf, &unstored).map_err(storage)? {
                return Ok(());
            }
        }
        if self.storage.try_read(offset, buf).map_err(storage)? == Some(buf.len()) {
            return Ok(());
        }
        Err(storage(io::Error::other("what was fetched keeps vanishing from the cache")))
    }

    /// Fills `buf` from spans in memory, which couldn't be stored, and from the disk; false if something is missing.
    fn assemble(&self, offset: u64, buf: &mut [u8], unstored: &[(usize, Bytes, DeviceError)]) -> io::Result<bool> {
        let end = offset + buf.len() as u64;
        for span in self.span_range(&(offset..end)) {
            let Some(described) = self.spans().get(span) else { return Ok(false) };
            let range = described.device_range();
            let (from, to) = (range.start.max(offset), range.end.min(end));
            let out = &mut buf[(from - offset) as usize..(to - offset) as usize];
            match unstored.iter().find(|(number, ..)| *number == span) {
                Some((_, bytes, _)) => {
                    let start = (from - range.start) as usize;
                    match bytes.get(start..start + out.len()) {
                        Some(bytes) => out.copy_from_slice(bytes),
                        None => return Ok(false),
                    }
                }
                None if self.storage.try_read(from, out)? == Some(out.len()) => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Flights for `spans`, and for those up to `ahead` without waiting for them; starts the runs that are needed.
    pub(crate) fn claim(
        &self,
        spans: Range<usize>,
        priority: Priority,
        ahead: usize,
    ) -> Result<Vec<(usize, Arc<crate::board::Flight>)>, DeviceError> {
        let missing = |span: usize| self.spans().get(span).is_some_and(|span| !self.storage.has(span.device_range()));
        let wanted = Wanted {
            spans,
            priority,
            ahead: if self.shared.room.in_trouble() { 0 } else { ahead },
            table: self.spans(),
            join_distance: self.shared.options.join_distance,
            missing: &missing,
        };
        let stopped = || DeviceError::Stopped { device: self.digest };
        let me = self.me.upgrade().ok_or_else(stopped)?;
        let Claim { flights, runs } = self.board().claim(&wanted)?;
        for run in runs {
            self.counters.runs.fetch_add(1, Ordering::Relaxed);
            self.shared.runtime.spawn(Run::new(Arc::clone(&me), run).fly().instrument(self.log.clone()));
        }
        Ok(flights)
    }

    pub(crate) fn touch(&self, spans: &Range<usize>) -> usize {
        let max = self.shared.options.read_ahead;
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.touch(spans, self.spans(), max, &self.triggers)
    }

    /// A sequential reader has come to the newest part of its window, which starts at `trigger`.
    fn read_ahead(&self, trigger: u64) {
        let Some(span) = self.table.find(trigger) else { return };
        let ahead = self.touch(&(span..span + 1));
        if let Err(error) = self.claim(span..span, Priority::Prefetch, ahead) {
            tracing::debug!(device = %self.digest, %error, "not read ahead");
        }
    }

    /// Writes verified bytes. Where the disk is full, cold data go for what somebody wants.
    pub(crate) fn store(&self, offset: u64, bytes: &[u8], priority: Priority) -> Result<(), DeviceError> {
        let (room, len) = (&self.shared.room, bytes.len() as u64);
        let mut written = self.storage.write(offset, bytes);
        for _ in 0..ROOM_TRIES {
            let full = written.as_ref().is_err_and(is_full) && priority > Priority::Background;
            if !full || self.shared.make_room(len) == 0 {
                break;
            }
            written = self.storage.write(offset, bytes);
        }
        if let Err(error) = written {
            // Fill just waits.
            if priority > Priority::Background || !is_full(&error) {
                room.failed(&error);
            }
            return Err(DeviceError::storage(self.storage.path(), error));
        }
        room.worked();
        if priority > Priority::Background {
            self.storage.used(&(offset..offset + len));
        }
        self.wrote();
        Ok(())
    }

    /// How long a read may take before it counts as slow.
    pub fn slow_read(&self) -> Duration {
        self.shared.options.slow_read
    }

    /// Counts a slow read; tells who sent bytes of this device last.
    pub fn count_slow_read(&self) -> Option<Arc<str>> {
        self.shared.tally.slow();
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts what has arrived.
    pub(crate) fn received(&self, piece: &Piece, purpose: Purpose) {
        self.shared.tally.received(&piece.host, purpose, piece.bytes.len() as u64);
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.as_ref().is_none_or(|sender| !Arc::ptr_eq(sender, &piece.host)) {
            *sender = Some(Arc::clone(&piece.host));
        }
    }

    /// Counts bytes that weren't what the index promises.
    pub(crate) fn was_corrupt(&self) {
        self.counters.corrupt();
        self.shared.tally.corrupt();
    }

    /// Adds the sources of a second spec of the same device.
    pub(crate) fn add_sources(&self, layer: Arc<dyn Source>, checkpoints: Option<Arc<dyn Source>>) {
        self.layer.add(layer);
        if let Some(checkpoints) = checkpoints {
            self.checkpoints.add(checkpoints);
        }
    }

    pub(crate) fn spans(&self) -> &[Span] {
        self.table.spans()
    }

    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        Weak::clone(&self.me)
    }

    /// Spans that hold these bytes.
    pub(crate) fn span_range(&self, bytes: &Range<u64>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        let after = |offset| self.table.find(offset).unwrap_or(self.spans().len());
        after(bytes.start)..(after(bytes.end - 1) + 1).min(self.spans().len())
    }

    fn range(&self, offset: u64, len: u64) -> Result<Range<u64>, DeviceError> {
        let outside = || DeviceError::Outside { device: self.digest, offset, len };
        let end = offset.checked_add(len).filter(|end| *end <= self.size());
        Ok(offset..end.ok_or_else(outside)?)
    }
}

impl Counters {
    pub(crate) fn fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn checkpoints(&self, bytes: u64) {
        self.checkpoints.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn corrupt(&self) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("digest", &self.digest).field("size", &self.size()).finish_non_exhaustive()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.fill.abort();
        self.shared.checkpoints.forget_device(self.digest);
        // If only to tell when it was used last.
        let (storage, log) = (Arc::clone(&self.storage), self.log.clone());
        self.shared.runtime.spawn_blocking(move || {
            let _log = log.enter();
            if let Err(error) = storage.flush() {
                tracing::warn!(file = %storage.path().display(), %error, "presence not recorded");
            }
        });
    }
}
