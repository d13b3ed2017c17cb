//! The hot stream: what a start-up touches, of several devices, by one GET of one blob in the order of its frames.
use crate::{
    device::Device,
    limits::Taken,
    options::Priority,
    source::{ByteStream, Source, SourceError},
    tally::Purpose,
};
use clipper_format::{
    Digest,
    index::{HOT_FRAME_MAX, HotFrameError, unpack_hot_frame},
    span::BLOCK,
};
use futures::{StreamExt, stream::FuturesOrdered};
use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::watch, time::timeout};
use tracing::Instrument;

/// Frames that are unpacked at the same time.
const SIDE_BY_SIDE: usize = 4;

/// A hot blob, and where what is in it belongs.
pub struct HotSpec {
    /// The blob's digest, for logs.
    pub digest: Digest,
    /// Where it can be read; at least one, tried in order.
    pub sources: Vec<Arc<dyn Source>>,
    /// Its frames, from its first byte on.
    pub frames: Vec<HotFrameSpec>,
    /// What lines of the log about it are within: it says which image.
    pub log: tracing::Span,
}

/// A zstd frame of a hot blob.
pub struct HotFrameSpec {
    /// Bytes in the blob.
    pub len: u32,
    /// What it decompresses to, one after the other.
    pub parts: Vec<HotPart>,
    /// BLAKE3 of what it decompresses to.
    pub blake3: [u8; 32],
}

/// A range of a device: whole blocks, but for the end of the device.
#[derive(Clone)]
pub struct HotPart {
    /// The device.
    pub device: Arc<Device>,
    /// Its bytes.
    pub range: Range<u64>,
}

/// A hot blob on its way. It goes on when dropped.
pub struct HotStream {
    flow: Arc<Flow>,
}

/// How far a hot stream has come, for the readers that wait for it.
pub(crate) struct Flow {
    /// Where each frame ends in the blob.
    ends: Vec<u64>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    /// Frames that have landed, or never will.
    passed: usize,
    /// Bytes of the blob that have arrived.
    arrived: u64,
    /// Nothing more comes.
    ended: bool,
}

/// What a device is to get by hot streams.
#[derive(Default)]
pub(crate) struct Expected(Mutex<Vec<Expectation>>);

struct Expectation {
    flow: Arc<Flow>,
    /// Blocks and the frame they come in, in order of blocks.
    blocks: Vec<(Range<u64>, usize)>,
}

impl HotStream {
    /// Starts streaming what of `spec` is neither here nor brought by another stream, on the runtime of its devices; `None`
    /// if there is nothing of that kind. Not to be called by two threads at the same time, or both may bring the same.
    pub(crate) fn start(spec: HotSpec) -> Option<Self> {
        let missing = |frame: &HotFrameSpec| frame.parts.iter().any(HotPart::is_missing);
        let first = spec.frames.iter().position(missing)?;
        let last = spec.frames.iter().rposition(missing)?;
        let device = Arc::clone(&spec.frames[first].parts.first()?.device);
        let ends = spec.frames.iter().scan(0, |end, frame| {
            *end += u64::from(frame.len);
            Some(*end)
        });
        let flow = Arc::new(Flow { ends: ends.collect(), progress: watch::Sender::default() });
        flow.progress.send_replace(Progress { passed: first, arrived: flow.start(first), ended: false });
        expect(&spec.frames, first..last + 1, &flow);
        let (runtime, log) = (device.shared.runtime.clone(), spec.log.clone());
        runtime.spawn(stream(spec, first..last + 1, Arc::clone(&flow), device).instrument(log));
        Some(Self { flow })
    }

    /// Returns when all has landed, or nothing more comes.
    pub async fn ended(&self) {
        // The sender lives as long as this.
        let _ = self.flow.progress.subscribe().wait_for(|progress| progress.ended).await;
    }
}

impl HotPart {
    /// Whether something of it is neither here nor on its way in a stream.
    fn is_missing(&self) -> bool {
        let Self { device, range } = self;
        let has = |range| device.storage.has(range);
        !has(range.clone()) && device.expected.last_frame(range, has).is_none()
    }
}

impl Flow {
    /// Where a frame starts in the blob.
    fn start(&self, frame: usize) -> u64 {
        frame.checked_sub(1).map_or(0, |before| self.ends[before])
    }
}

/// Tells every device which of its blocks come in the frames `wanted`.
fn expect(frames: &[HotFrameSpec], wanted: Range<usize>, flow: &Arc<Flow>) {
    let mut all: Vec<_> =
        wanted.flat_map(|number| frames[number].parts.iter().map(move |part| (part, number))).collect();
    all.sort_by_key(|(part, _)| (Arc::as_ptr(&part.device) as usize, part.range.start));
    for parts in all.chunk_by(|(a, _), (b, _)| Arc::ptr_eq(&a.device, &b.device)) {
        let blocks =
            parts.iter().map(|(part, number)| (part.range.start / BLOCK..part.range.end.div_ceil(BLOCK), *number));
        let expectation = Expectation { flow: Arc::clone(flow), blocks: blocks.collect() };
        parts[0].0.device.expected.lock().push(expectation);
    }
}

/// Reads the frames `wanted` of the blob and lands them.
async fn stream(spec: HotSpec, wanted: Range<usize>, flow: Arc<Flow>, device: Arc<Device>) {
    // Background fill waits meanwhile.
    let _busy = device.shared.activity.enter(Priority::Prefetch);
    let end = flow.ends[wanted.end - 1];
    let mut next = wanted.start;
    for (number, source) in spec.sources.iter().enumerate() {
        let body = source.read(flow.start(next)..end).await;
        let landed = match body {
            Ok(body) => land(&spec.frames, &mut next, wanted.end, body, source.as_ref(), &flow, &device).await,
            Err(error) => Err(error),
        };
        match landed {
            Ok(()) => break,
            Err(error) => {
                let (hot, at, left) = (spec.digest, source.describe(), spec.sources.len() - number - 1);
                tracing::warn!(%hot, at, left, %error, "a hot blob doesn't arrive: readers fetch what they need");
            }
        }
    }
    flow.progress.send_modify(|progress| progress.ended = true);
    let mut devices: Vec<_> = spec.frames.iter().flat_map(|frame| &frame.parts).map(|part| &part.device).collect();
    devices.sort_by_key(|device| Arc::as_ptr(device) as usize);
    devices.dedup_by(|a, b| Arc::ptr_eq(a, b));
    for device in devices {
        device.expected.lock().retain(|expectation| !Arc::ptr_eq(&expectation.flow, &flow));
    }
}

/// Lands frames as they arrive, from `next` to `end`; ends early if nobody wants them or they can't be kept.
async fn land(
    frames: &[HotFrameSpec],
    next: &mut usize,
    end: usize,
    mut body: ByteStream,
    source: &dyn Source,
    flow: &Flow,
    device: &Device,
) -> Result<(), SourceError> {
    let mut bytes = Vec::new();
    // Frames that have arrived, from `next` on; they land in their order.
    let mut unpacking = FuturesOrdered::new();
    // Why nothing more arrives; what has arrived lands nevertheless.
    let mut broken = None;
    loop {
        let arriving = *next + unpacking.len();
        let wanted = frames[..end].get(arriving).map(|frame| frame.len as usize).filter(|_| broken.is_none());
        if let Some(len) = wanted
            && bytes.len() >= len
            && unpacking.len() < SIDE_BY_SIDE
        {
            let frame = &frames[arriving];
            if frame.parts.iter().all(|part| part.device.storage.is_removed()) {
                return Ok(());
            }
            let rest = bytes.split_off(len);
            let frame_bytes = std::mem::replace(&mut bytes, rest);
            let (parts, blake3, shared) = (frame.parts.clone(), frame.blake3, Arc::clone(&device.shared));
            unpacking.push_back(async move {
                let memory = shared.limits.memory(Priority::Prefetch, len as u64 + HOT_FRAME_MAX / 4).await;
                shared.runtime.spawn_blocking(move || unpack(&frame_bytes, &parts, &blake3, memory)).await
            });
            continue;
        }
        tokio::select! {
            biased;
            Some(unpacked) = unpacking.next() => {
                let Ok(unpacked) = unpacked else { return Err(SourceError::new("the program stops")) };
                match unpacked {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(error) => {
                        tracing::error!(at = source.describe(), frame = *next, %error, "a frame of a hot blob is corrupt");
                        device.was_corrupt();
                        source.distrust(flow.start(*next)..flow.ends[*next]);
                    }
                }
                *next += 1;
                flow.progress.send_modify(|progress| progress.passed = *next);
            }
            chunk = body.next(), if wanted.is_some_and(|len| bytes.len() < len) => {
                match chunk.unwrap_or_else(|| Err(SourceError::new("the body ended early"))) {
                    Ok(piece) => {
                        device.received(&piece, Purpose::Hot);
                        let chunk = piece.bytes;
                        flow.progress.send_modify(|progress| progress.arrived += chunk.len() as u64);
                        bytes.extend_from_slice(&chunk);
                    }
                    Err(error) => broken = Some(error),
                }
            }
            else => return broken.map_or(Ok(()), Err),
        }
    }
}

/// Decompresses a frame, verifies it, and writes what it holds. False if that can't be written, as on a full disk, which
/// the device logs: readers see to what isn't here.
fn unpack(frame: &[u8], parts: &[HotPart], blake3: &[u8; 32], _memory: Taken) -> Result<bool, HotFrameError> {
    let len = parts.iter().map(|part| part.range.end - part.range.start).sum();
    let bytes = unpack_hot_frame(frame, len, blake3)?;
    let mut rest = &bytes[..];
    for HotPart { device, range } in parts {
        let (part, after) = rest.split_at((range.end - range.start) as usize);
        rest = after;
        if device.storage.has(range.clone()) {
            continue;
        }
        if device.store(range.start, part, Priority::Prefetch).is_err() {
            return Ok(false);
        }
        device.shared.stored(part.len() as u64);
    }
    Ok(true)
}

impl Expected {
    fn lock(&self) -> MutexGuard<'_, Vec<Expectation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream and the frame with which the last of the missing blocks of `bytes` arrives; `None` if one of them
    /// doesn't come by a stream.
    fn last_frame(&self, bytes: &Range<u64>, has: impl Fn(Range<u64>) -> bool) -> Option<(Arc<Flow>, usize)> {
        let expectations = self.lock();
        expectations.iter().find_map(|Expectation { flow, blocks }| {
            let passed = flow.progress.borrow().passed;
            let (mut at, mut last) = (bytes.start / BLOCK, None);
            while at * BLOCK < bytes.end {
                if has(at * BLOCK..((at + 1) * BLOCK).min(bytes.end)) {
                    at += 1;
                    continue;
                }
                let (range, frame) = &blocks[blocks.partition_point(|(range, _)| range.start <= at).checked_sub(1)?];
                if !range.contains(&at) || *frame < passed {
                    return None;
                }
                last = last.max(Some(*frame));
                at = range.end;
            }
            Some((Arc::clone(flow), last?))
        })
    }
}

impl Device {
    /// Waits for a hot stream to bring what is missing of `bytes`, if it brings all of it and soon. Whether it has.
    pub(crate) async fn arrives_hot(&self, bytes: &Range<u64>) -> bool {
        let options = &self.shared.options;
        let Some((flow, frame)) = self.expected.last_frame(bytes, |range| self.storage.has(range)) else {
            return false;
        };
        let mut progress = flow.progress.subscribe();
        let ahead = flow.ends[frame].saturating_sub(progress.borrow().arrived);
        if ahead > options.hot_join_distance {
            return false;
        }
        let _busy = self.shared.activity.enter(Priority::Foreground);
        loop {
            let now = *progress.borrow_and_update();
            if now.passed > frame {
                return true;
            }
            // A stream that stalls isn't waited for.
            if now.ended || !matches!(timeout(options.hot_patience, progress.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }
}
