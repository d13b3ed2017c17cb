//! Checkpoints as they come from the registry: fetched in batches, cached in a bounded amount of memory.
use crate::{device::Device, run::Why, source::SourceError, sources::Picked, tally::Purpose};
use bytes::{Bytes, BytesMut};
use clipper_format::{Digest, span::Start};
use futures::StreamExt;
use std::{
    collections::HashMap,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::OnceCell;

/// Groups that follow each other are fetched together up to this many bytes, for fewer requests.
const BATCH: u64 = 128 << 10;
/// Unneeded bytes between two groups that are fetched together.
const SLACK: u64 = 4 << 10;
/// Most bytes of one group: a whole window of zstd, and far more than sixteen of gzip.
const GROUP_MAX: u64 = 130 << 20;

/// Where the checkpoint groups of a layer lie, and in which batch each is fetched.
pub(crate) struct Batches {
    groups: Vec<(Range<u64>, usize)>,
    batches: Vec<Range<u64>>,
}

impl Batches {
    /// Fails if a range runs backwards or is absurdly long.
    pub(crate) fn new(groups: &[Range<u64>]) -> Result<Self, &'static str> {
        let mut batches: Vec<Range<u64>> = Vec::new();
        let mut placed = Vec::with_capacity(groups.len());
        for group in groups {
            if group.start > group.end || group.end - group.start > GROUP_MAX {
                return Err("a checkpoint group has an impossible length");
            }
            let joins = |batch: &&mut Range<u64>| {
                group.start >= batch.end && group.start - batch.end <= SLACK && group.end - batch.start <= BATCH
            };
            match batches.last_mut().filter(joins) {
                Some(batch) => batch.end = group.end,
                None => batches.push(group.clone()),
            }
            placed.push((group.clone(), batches.len() - 1));
        }
        Ok(Self { groups: placed, batches })
    }

    /// The batch that holds `group`: its number and its bytes in the blob.
    pub(crate) fn batch(&self, group: usize) -> Option<(usize, Range<u64>)> {
        let batch = self.groups.get(group)?.1;
        Some((batch, self.batches.get(batch)?.clone()))
    }

    /// The bytes of `group` in those of its batch.
    pub(crate) fn group(&self, group: usize, batch: &Bytes) -> Option<Bytes> {
        let (range, number) = self.groups.get(group)?;
        let start = usize::try_from(range.start.checked_sub(self.batches.get(*number)?.start)?).ok()?;
        let end = start.checked_add(usize::try_from(range.end - range.start).ok()?)?;
        (end <= batch.len()).then(|| batch.slice(start..end))
    }
}

/// Batches of all devices, least recently used ones dropped first. Nothing in here is trusted.
pub(crate) struct CheckpointCache {
    entries: Mutex<Entries>,
    limit: u64,
}

#[derive(Default)]
struct Entries {
    map: HashMap<Key, Entry>,
    bytes: u64,
    clock: u64,
}

type Key = (Digest, usize);

struct Entry {
    batch: Arc<OnceCell<Bytes>>,
    bytes: u64,
    used: u64,
}

impl CheckpointCache {
    pub(crate) fn new(limit: u64) -> Self {
        Self { entries: Mutex::default(), limit }
    }

    /// Batch `number` of `device`, of `bytes` bytes, fetched by `fetch` if it isn't here; once for all who ask.
    pub(crate) async fn get<E, F: Future<Output = Result<Bytes, E>>>(
        &self,
        device: Digest,
        number: usize,
        bytes: u64,
        fetch: impl FnOnce() -> F,
    ) -> Result<Bytes, E> {
        let cell = self.lock().entry((device, number), bytes, self.limit);
        cell.get_or_try_init(fetch).await.cloned()
    }

    /// Drops a batch that turned out to be of no use.
    pub(crate) fn forget(&self, device: Digest, number: usize) {
        self.lock().remove(&(device, number));
    }

    /// Drops all batches of a device that needs no more of them.
    pub(crate) fn forget_device(&self, device: Digest) {
        let mut entries = self.lock();
        let keys: Vec<Key> = entries.map.keys().filter(|(of, _)| *of == device).copied().collect();
        for key in keys {
            entries.remove(&key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn entry(&mut self, key: Key, bytes: u64, limit: u64) -> Arc<OnceCell<Bytes>> {
        self.clock += 1;
        let used = self.clock;
        if let Some(entry) = self.map.get_mut(&key) {
            entry.used = used;
            return Arc::clone(&entry.batch);
        }
        while self.bytes.saturating_add(bytes) > limit {
            let Some(oldest) = self.map.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key) else { break };
            self.remove(&oldest);
        }
        let batch = Arc::default();
        self.bytes += bytes;
        self.map.insert(key, Entry { batch: Arc::clone(&batch), bytes, used });
        batch
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.map.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

impl Device {
    /// The bytes of the group with the checkpoint of `start`, from the cache or the `attempt`th source.
    pub(crate) async fn checkpoint_group(&self, start: &Start, attempt: usize, purpose: Purpose) -> Result<Bytes, Why> {
        let unknown = || Why::Corrupt("the index lacks its checkpoint".into());
        let (group, _) = start.checkpoint_group().ok_or_else(unknown)?;
        let (number, range) = self.batches.batch(group).ok_or_else(unknown)?;
        let bytes = range.end - range.start;
        let fetch = || self.fetch_checkpoints(range, attempt, purpose);
        let batch = self.shared.checkpoints.get(self.digest(), number, bytes, fetch).await.map_err(Why::Source)?;
        self.batches.group(group, &batch).ok_or_else(unknown)
    }

    async fn fetch_checkpoints(
        &self,
        range: Range<u64>,
        attempt: usize,
        purpose: Purpose,
    ) -> Result<Bytes, SourceError> {
        let Some(Picked { number, source }) = self.checkpoints.pick(attempt) else {
            return Err(SourceError::new("no source of checkpoints is known"));
        };
        let failed = |error: SourceError| error.during(format_args!("checkpoints {}", source.describe()));
        let wanted = usize::try_from(range.end - range.start).map_err(SourceError::new)?;
        let mut bytes = BytesMut::with_capacity(wanted);
        if wanted > 0 {
            let mut stream = source.read(range).await.map_err(failed)?;
            while bytes.len() < wanted {
                let chunk = stream.next().await.unwrap_or_else(|| Err(SourceError::new("the body ended early")));
                let piece = chunk.map_err(failed)?;
                self.received(&piece, purpose);
                let chunk = piece.bytes;
                bytes.extend_from_slice(&chunk[..chunk.len().min(wanted - bytes.len())]);
            }
        }
        self.checkpoints.prefer(number);
        self.counters.checkpoints(wanted as u64);
        Ok(bytes.freeze())
    }

    /// Drops the cached checkpoint of `span`, which may have been the wrong one.
    pub(crate) fn forget_checkpoint(&self, span: usize) {
        if let Some((number, _)) = self.batch_of(span) {
            self.shared.checkpoints.forget(self.digest(), number);
        }
    }

    /// The batch that holds the checkpoint of `span`.
    fn batch_of(&self, span: usize) -> Option<(usize, Range<u64>)> {
        let (group, _) = self.spans().get(span)?.start.checkpoint_group()?;
        self.batches.batch(group)
    }

    /// Tells the `attempt`th source of checkpoints that the one by which `span` was decoded may have been wrong. True if
    /// it can be had elsewhere.
    pub(crate) fn distrust_checkpoint(&self, span: usize, attempt: usize) -> bool {
        let (Some((_, range)), Some(picked)) = (self.batch_of(span), self.checkpoints.pick(attempt)) else {
            return false;
        };
        picked.source.distrust(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn groups_that_touch_share_a_batch() {
        let batches = Batches::new(&[0..1000, 1000..2000, 2500..130_000, 130_000..131_073, 900_000..900_004]).unwrap();
        assert_eq!(batches.batch(1), Some((0, 0..130_000)));
        assert_eq!(batches.batch(3), Some((1, 130_000..131_073)));
        assert_eq!(batches.batch(4), Some((2, 900_000..900_004)));
        assert_eq!(batches.batch(5), None);
        let batch = Bytes::from((0..130_000u32).map(|i| i as u8).collect::<Vec<_>>());
        assert_eq!(batches.group(1, &batch), Some(batch.slice(1000..2000)));
        assert_eq!(batches.group(1, &batch.slice(..1999)), None);
        assert!(Batches::new(&[Range { start: 5, end: 4 }]).is_err());
        assert!(Batches::new(&[0..10, 10..u64::MAX]).is_err());
    }

    #[tokio::test]
    async fn memory_is_bounded_and_failures_are_not_kept() {
        let (cache, device) = (CheckpointCache::new(100), Digest::of(b""));
        let get = async |number: usize, byte: u8| {
            let fetch = async || Ok::<_, Infallible>(Bytes::from(vec![byte; 40]));
            cache.get(device, number, 40, fetch).await.unwrap()[0]
        };
        assert_eq!((get(0, 1).await, get(1, 2).await, get(0, 9).await), (1, 2, 1));
        assert_eq!((get(2, 3).await, get(0, 9).await, get(1, 9).await), (3, 1, 9));
        assert!(cache.lock().bytes <= 100);
        cache.forget(device, 1);
        assert_eq!(cache.get(device, 1, 40, async || Err(())).await, Err(()));
        assert_eq!(get(1, 7).await, 7);
        cache.forget_device(device);
        assert_eq!(cache.lock().bytes, 0);
    }
}
