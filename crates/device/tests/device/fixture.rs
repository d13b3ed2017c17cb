//! Layers made up for the tests, and sources of them with faults and gates.
use async_trait::async_trait;
use clipper_device::{ByteStream, Device, DeviceError, DeviceOptions, DeviceSpec, Devices, Piece, Source, SourceError};
use clipper_format::{
    Digest,
    checkpoints::CheckpointGroups,
    gzip::{self, IndexOptions, IndexedSpan},
    span::{Span, SpanTable, Start},
    zstd,
};
use futures::{StreamExt, stream};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::VecDeque,
    io::Write,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::{runtime::Handle, sync::watch};

/// Bytes of a chunk of a body.
pub const CHUNK: usize = 16 << 10;
/// Bytes of a span of a stored layer.
pub const SPAN: u64 = 64 << 10;

/// A layer, its index, and what must come out.
#[derive(Clone)]
pub struct Layer {
    pub device: Arc<Vec<u8>>,
    pub blob: Arc<Vec<u8>>,
    pub checkpoints: Arc<Vec<u8>>,
    pub spans: SpanTable,
    pub groups: Vec<Range<u64>>,
}

impl Layer {
    /// An uncompressed layer of `spans` whole spans and a bit.
    pub fn stored(spans: u64) -> Self {
        let device = noise(spans * SPAN + 100);
        let span = |(i, bytes): (usize, &[u8])| Span {
            device_offset: i as u64 * SPAN,
            device_len: bytes.len() as u32,
            source_offset: i as u64 * SPAN,
            source_len: bytes.len() as u32,
            start: Start::Stored,
            blake3: *blake3::hash(bytes).as_bytes(),
        };
        let spans = device.chunks(SPAN as usize).enumerate().map(span).collect();
        let spans = SpanTable::new(spans, device.len() as u64).unwrap();
        let device = Arc::new(device);
        Self { blob: Arc::clone(&device), device, checkpoints: Arc::default(), spans, groups: Vec::new() }
    }

    /// A gzip layer of `len` bytes in members of `member` bytes, in spans of 64 KiB.
    pub fn gzip(len: u64, member: usize) -> Self {
        let device = noise(len);
        let mut blob = Vec::new();
        for part in device.chunks(member) {
            let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::new(6));
            encoder.write_all(part).unwrap();
            encoder.finish().unwrap();
        }
        let mut indexed = Vec::new();
        let mut indexer = gzip::Indexer::new(IndexOptions { span_size: SPAN as u32 });
        indexer.push(&blob, &mut indexed).unwrap();
        indexer.finish(&mut indexed).unwrap();
        Self::indexed(device, blob, indexed)
    }

    /// A zstd layer of `len` bytes in frames of `frame` bytes, skippable ones between them, in spans of 64 KiB.
    pub fn zstd(len: u64, frame: usize) -> Self {
        let device = noise(len);
        let mut blob = Vec::new();
        for part in device.chunks(frame) {
            blob.extend(::zstd::bulk::compress(part, 3).unwrap());
            blob.extend(b"\x50\x2a\x4d\x18\x03\0\0\0gap");
        }
        let mut indexed = Vec::new();
        let mut indexer = zstd::Indexer::new(IndexOptions { span_size: SPAN as u32 });
        indexer.push(&blob, &mut indexed).unwrap();
        indexer.finish(&mut indexed).unwrap();
        Self::indexed(device, blob, indexed)
    }

    /// A zstd layer of one frame of `len` bytes, which is entered between blocks.
    pub fn zstd_blocks(len: u64) -> Self {
        // Hardly anything refers farther back than a part, so that checkpoints are cheap.
        let parts = (0..len.div_ceil(30_000)).flat_map(|part| noise(30_000 + part));
        let device: Vec<u8> = parts.take(len as usize).collect();
        let blob = ::zstd::stream::encode_all(&device[..], 3).unwrap();
        let mut indexed = Vec::new();
        let mut indexer = zstd::Indexer::new(IndexOptions { span_size: SPAN as u32 });
        indexer.push(&blob, &mut indexed).unwrap();
        indexer.finish(&mut indexed).unwrap();
        let layer = Self::indexed(device, blob, indexed);
        assert!(layer.groups.len() > 2, "{} checkpoints", layer.groups.len());
        layer
    }

    fn indexed(device: Vec<u8>, blob: Vec<u8>, indexed: Vec<IndexedSpan>) -> Self {
        let mut points = CheckpointGroups::new(3);
        let span = |indexed: IndexedSpan| {
            let span = indexed.to_span();
            if let Some(checkpoint) = indexed.checkpoint {
                points.push(checkpoint);
            }
            span
        };
        let spans = indexed.into_iter().map(span).collect();
        let spans = SpanTable::new(spans, blob.len() as u64).unwrap();
        let (own, groups) = points.finish();
        let groups = groups.into_iter().map(|group| group.start + 77..group.end + 77).collect();
        let checkpoints = [vec![0xaa; 77], own].concat();
        Self { device: device.into(), blob: blob.into(), checkpoints: checkpoints.into(), spans, groups }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub fn size(&self) -> u64 {
        self.device.len() as u64
    }

    /// A source of the layer blob.
    pub fn source(&self, host: &str) -> Arc<TestSource> {
        TestSource::new(format!("{} at {host}", self.digest()), Arc::clone(&self.blob))
    }

    /// A source of the checkpoints blob.
    pub fn checkpoint_source(&self, host: &str) -> Arc<TestSource> {
        TestSource::new(format!("{} at {host}", Digest::of(&self.checkpoints)), Arc::clone(&self.checkpoints))
    }

    pub fn spec(&self, layer: &Arc<TestSource>, checkpoints: Option<&Arc<TestSource>>) -> DeviceSpec {
        DeviceSpec {
            digest: self.digest(),
            source_size: self.blob.len() as u64,
            spans: self.spans.clone(),
            checkpoint_groups: self.groups.clone(),
            layer: Arc::clone(layer) as Arc<dyn Source>,
            checkpoints: checkpoints.map(|source| Arc::clone(source) as Arc<dyn Source>),
            log: tracing::Span::none(),
        }
    }

    /// Reads the range and compares it.
    pub async fn check(&self, device: &Device, range: Range<u64>) -> Result<(), DeviceError> {
        let mut buf = vec![0xee; (range.end - range.start) as usize];
        device.read(range.start, &mut buf).await?;
        assert!(buf == self.device[range.start as usize..range.end as usize], "wrong bytes in {range:?}");
        Ok(())
    }
}

/// Bytes that compress about 2:1 and aren't zeros.
fn noise(len: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(len);
    let mut bytes: Vec<u8> = Vec::new();
    while (bytes.len() as u64) < len {
        if bytes.len() > 100 && rng.random_bool(0.5) {
            let from = rng.random_range(bytes.len().saturating_sub(40_000)..bytes.len() - 60);
            bytes.extend_from_within(from..from + rng.random_range(4..60));
        } else {
            bytes.extend((0..rng.random_range(1..30)).map(|_| rng.random_range(1..=255u8)));
        }
    }
    bytes.truncate(len as usize);
    bytes
}

/// What goes wrong with one GET.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    /// It fails at once, and is going to: the blob isn't there.
    Refuse,
    /// It fails at once, because the network is down.
    Away,
    /// The body breaks with an error after so many bytes.
    Break(u64),
    /// The body ends after so many bytes.
    Short(u64),
    /// So many bytes follow those asked for.
    Long(usize),
    /// The body never goes on after so many bytes.
    Stall(u64),
    /// This byte of the blob is wrong.
    Flip(u64),
}

/// A source with a plan of faults.
pub struct TestSource {
    me: Weak<TestSource>,
    name: String,
    bytes: Arc<Vec<u8>>,
    plan: Mutex<Plan>,
    gate: watch::Sender<Gate>,
}

#[derive(Default)]
struct Plan {
    /// Faults of the next GETs.
    next: VecDeque<Fault>,
    /// What all GETs after those do.
    then: Option<Fault>,
    gets: Vec<Range<u64>>,
    /// Start of the GET and end of the chunk, in the order in which chunks were taken.
    chunks: Vec<(u64, u64)>,
    distrusted: Vec<Range<u64>>,
    mirrors: usize,
}

/// Which GETs may go on: those that start at one of `open`, or all.
#[derive(Clone, Default)]
struct Gate {
    closed: bool,
    open: Vec<u64>,
    /// Chunks that are given nevertheless.
    steps: usize,
}

impl TestSource {
    pub fn new(name: String, bytes: Arc<Vec<u8>>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            name,
            bytes,
            plan: Mutex::default(),
            gate: watch::Sender::default(),
        })
    }

    /// The next GETs have these faults.
    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.plan.lock().unwrap().next = faults.into_iter().collect();
    }

    /// All GETs have this fault from now on.
    pub fn always(&self, fault: Fault) {
        self.plan.lock().unwrap().then = Some(fault);
    }

    /// Source ranges asked for so far.
    pub fn gets(&self) -> Vec<Range<u64>> {
        self.plan.lock().unwrap().gets.clone()
    }

    /// Chunks given so far: where their GET starts, and where they end.
    pub fn chunks(&self) -> Vec<(u64, u64)> {
        self.plan.lock().unwrap().chunks.clone()
    }

    /// Ranges that were said to be wrong.
    pub fn distrusted(&self) -> Vec<Range<u64>> {
        self.plan.lock().unwrap().distrusted.clone()
    }

    /// So many times there is another place to ask when bytes were wrong.
    pub fn mirrors(&self, mirrors: usize) {
        self.plan.lock().unwrap().mirrors = mirrors;
    }

    /// No chunk is given until [`open`](Self::open).
    pub fn close(&self) {
        self.gate.send_replace(Gate { closed: true, ..Gate::default() });
    }

    /// Chunks of the GETs that start at `offset` are given.
    pub fn open_at(&self, offset: u64) {
        self.gate.send_modify(|gate| gate.open.push(offset));
    }

    pub fn open(&self) {
        self.gate.send_replace(Gate::default());
    }

    /// One chunk more is given.
    pub fn step(&self) {
        self.gate.send_modify(|gate| gate.steps += 1);
    }

    /// Waits until so many GETs have been sent.
    pub async fn sent(&self, gets: usize) {
        while self.gets().len() < gets {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, start: u64) {
        let mut gate = self.gate.subscribe();
        gate.wait_for(|gate| !gate.closed || gate.steps > 0 || gate.open.contains(&start)).await.unwrap();
        self.gate.send_if_modified(|gate| {
            gate.steps = gate.steps.saturating_sub(1);
            false
        });
    }
}

/// The body of a GET.
struct Body {
    source: Arc<TestSource>,
    start: u64,
    at: u64,
    end: u64,
    fault: Fault,
}

impl Body {
    async fn chunk(mut self) -> Option<(Result<Piece, SourceError>, Self)> {
        self.source.pass(self.start).await;
        let mut end = self.end.min(self.at + CHUNK as u64);
        let limit = |n: u64| self.start + n;
        match self.fault {
            Fault::Break(n) if self.at >= limit(n) => {
                return Some((Err(SourceError::new("connection reset")), Self { fault: Fault::Short(0), ..self }));
            }
            Fault::Short(n) if self.at >= limit(n) => return None,
            Fault::Stall(n) if self.at >= limit(n) => std::future::pending().await,
            Fault::Break(n) | Fault::Short(n) | Fault::Stall(n) => end = end.min(limit(n)),
            _ => {}
        }
        if self.at >= end {
            let Fault::Long(n) = self.fault else { return None };
            return Some((Ok(self.piece(vec![0x55; n])), Self { fault: Fault::None, ..self }));
        }
        let mut bytes = self.source.bytes[self.at as usize..end as usize].to_vec();
        if let Fault::Flip(at) = self.fault
            && (self.at..end).contains(&at)
        {
            bytes[(at - self.at) as usize] ^= 0x10;
        }
        self.at = end;
        self.source.plan.lock().unwrap().chunks.push((self.start, end));
        Some((Ok(self.piece(bytes)), self))
    }

    fn piece(&self, bytes: Vec<u8>) -> Piece {
        Piece { bytes: bytes.into(), host: self.source.name.as_str().into() }
    }
}

#[async_trait]
impl Source for TestSource {
    async fn read(&self, range: Range<u64>) -> Result<ByteStream, SourceError> {
        assert!(range.start < range.end && range.end <= self.bytes.len() as u64, "GET of {range:?}");
        let fault = {
            let mut plan = self.plan.lock().unwrap();
            plan.gets.push(range.clone());
            plan.next.pop_front().or(plan.then).unwrap_or(Fault::None)
        };
        match fault {
            Fault::Refuse => return Err(SourceError::lasting("404 Not Found")),
            Fault::Away => return Err(SourceError::new("503 Service Unavailable")),
            _ => {}
        }
        let source = self.me.upgrade().unwrap();
        let body = Body { source, start: range.start, at: range.start, end: range.end, fault };
        Ok(stream::unfold(body, Body::chunk).boxed())
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn distrust(&self, range: Range<u64>) -> bool {
        let mut plan = self.plan.lock().unwrap();
        plan.distrusted.push(range);
        let elsewhere = plan.mirrors > 0;
        plan.mirrors = plan.mirrors.saturating_sub(1);
        elsewhere
    }
}

/// A directory of devices for one test, as soon as those who had it open before have let it go.
pub async fn devices(root: &Path, options: DeviceOptions) -> Arc<Devices> {
    loop {
        match Devices::open(root.join("devices"), options.clone(), Handle::current()) {
            Err(DeviceError::InUse { .. }) => tokio::task::yield_now().await,
            devices => return devices.unwrap(),
        }
    }
}

/// Options under which nothing depends on time, except that what never comes fails before long.
pub fn options() -> DeviceOptions {
    DeviceOptions {
        retry_after: Duration::ZERO,
        background_grace: Duration::ZERO,
        read_ahead: 0,
        decoders: 2,
        ..DeviceOptions::default()
    }
}
