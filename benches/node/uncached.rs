//! Single reads of what isn't here yet, over a link of some length, against what they can't do without: the way there and
//! back, the bytes of one span, and decoding it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clipper_benches::cold_start::FarRegistry;
use clipper_benches::figures::Figures;
use clipper_benches::ideal::Way;
use clipper_benches::node::index_of;
use clipper_benches::system::Driver;
use clipper_format::gzip::{SpanDecoder, decode_group};
use clipper_format::index::{Index, LayerIndex};
use clipper_format::span::{Span, Start};
use clipper_format::tree::{Content, ROOT, Tree};
use clipper_format::zstd;
use clipper_tests::clipper::{LazyMount, convert_with};
use serde::{Deserialize, Serialize};

/// Bytes of a read.
const PAGE: usize = 4096;

/// What was measured, and over which link.
#[derive(Debug, Deserialize, Serialize)]
pub struct Uncached {
    /// The image.
    pub image: String,
    /// Mbit/s, and milliseconds of delay each way.
    pub link: Way,
    /// Every read.
    pub reads: Vec<One>,
}

/// One read.
#[derive(Debug, Deserialize, Serialize)]
pub struct One {
    /// Clipper's driver.
    pub driver: Driver,
    /// From the call to its return.
    pub seconds: f64,
    /// Compressed bytes of the span that it lies in.
    pub span: u64,
    /// Decoding and verifying the span from memory, with its checkpoint.
    pub decode: f64,
    /// A bare GET of the span's bytes over a connection that is open.
    pub bare: f64,
}

/// A page of a file that lies in one span.
struct Spot<'i> {
    layer: &'i LayerIndex,
    span: &'i Span,
    path: String,
    /// In the file.
    offset: u64,
    /// In the span.
    within: usize,
}

impl Uncached {
    /// Measures `count` reads with each driver, each of another span.
    pub fn measure(image: &str, count: usize, link: Way) -> Result<Self> {
        let far = FarRegistry::new(link.0, link.delay())?;
        let base = far.registry.push_cached(image)?;
        convert_with(&far.near(&base), &["--no-guess"])?;
        let accelerated = format!("{base}_accelerated");
        let index = index_of(&far.registry, &accelerated)?;
        let spots = spots(&index)?;
        ensure!(spots.len() >= count, "{image} has only {} spans", spots.len());
        let mut bare = Bare::open(&far, &base)?;
        let mut reads = Vec::new();
        for driver in Driver::ALL {
            let mounted = LazyMount::start_over(driver.option(), &far.near(&accelerated))?;
            let mut left = spots.iter();
            let wanted = reads.len() + count;
            while reads.len() < wanted {
                let Some(spot) = left.next() else { break };
                let file = File::open(mounted.path().join(&spot.path)).with_context(|| spot.path.clone())?;
                far.proxy.take_log();
                let mut page = [0; PAGE];
                let begun = Instant::now();
                file.read_exact_at(&mut page, spot.offset)?;
                let seconds = begun.elapsed().as_secs_f64();
                if far.proxy.bytes_of(&spot.layer.digest.to_string()) == 0 {
                    // Somebody has read ahead.
                    continue;
                }
                let (bytes, decode) = spot.decode(&index, &far)?;
                ensure!(page == bytes[spot.within..spot.within + PAGE], "{} is wrong over {driver}", spot.path);
                let bare = bare.get(spot)?;
                reads.push(One { driver, seconds, span: spot.span.source_len.into(), decode, bare });
            }
        }
        let measured = Self { image: image.into(), link, reads };
        for driver in Driver::ALL {
            let ratios = measured.ratios(driver);
            eprintln!("single reads over {driver}: p50 {:.2}, p99 {:.2}", ratios.median(), ratios.percentile(99.0));
        }
        Ok(measured)
    }

    /// The least that a read of a span can take, in seconds.
    fn limit(&self, one: &One) -> f64 {
        self.link.round_trip() + self.link.transfer(one.span) + one.decode
    }

    /// Of a driver's reads, one figure each.
    pub fn figures(&self, driver: Driver, of: impl Fn(&One) -> f64) -> Figures {
        Figures(self.reads.iter().filter(|one| one.driver == driver).map(of).collect())
    }

    /// The limits of a driver's reads, in seconds.
    pub fn limits(&self, driver: Driver) -> Figures {
        self.figures(driver, |one| self.limit(one))
    }

    /// Times as multiples of the limit.
    pub fn ratios(&self, driver: Driver) -> Figures {
        self.figures(driver, |one| one.seconds / self.limit(one))
    }

    /// Times as multiples of a bare GET and decoding.
    pub fn bare_ratios(&self, driver: Driver) -> Figures {
        self.figures(driver, |one| one.seconds / (one.bare + one.decode))
    }
}

/// A page in every span that has one, in random order.
fn spots(index: &Index) -> Result<Vec<Spot<'_>>> {
    let mut trees = Vec::new();
    let mut layers: HashMap<Vec<u8>, usize> = HashMap::new();
    for layer in &index.layers {
        let tree = layer.tree.unpack()?;
        let files = files(&tree);
        for (path, ..) in &files {
            *layers.entry(path.clone()).or_default() += 1;
        }
        trees.push((layer, files));
    }
    let (mut spots, mut dice) = (Vec::new(), Dice(7));
    for (layer, files) in trees {
        let mut found: HashMap<u64, (Spot<'_>, u64)> = HashMap::new();
        for (path, size, place) in files {
            // What upper layers replace can't be seen.
            let Some(path) = (layers[&path] == 1).then(|| String::from_utf8(path).ok()).flatten() else { continue };
            for offset in (0..size / PAGE as u64).map(|page| page * PAGE as u64) {
                let device = place + offset;
                let span = layer.spans.find(device).and_then(|number| layer.spans.spans().get(number));
                let Some(span) = span.filter(|span| device + PAGE as u64 <= span.device_range().end) else { continue };
                let seen = found.get(&span.device_offset).map_or(0, |(_, seen)| *seen) + 1;
                // Each page of a span is as likely as any other.
                if dice.below(seen) == 0 {
                    let within = (device - span.device_offset) as usize;
                    let spot = Spot { layer, span, path: path.clone(), offset, within };
                    found.insert(span.device_offset, (spot, seen));
                } else if let Some((_, count)) = found.get_mut(&span.device_offset) {
                    *count = seen;
                }
            }
        }
        let mut in_order: Vec<_> = found.into_iter().collect();
        in_order.sort_by_key(|(offset, _)| *offset);
        spots.extend(in_order.into_iter().map(|(_, (spot, _))| spot));
    }
    for last in (1..spots.len()).rev() {
        spots.swap(last, dice.below(last as u64 + 1) as usize);
    }
    Ok(spots)
}

/// Regular files with one name that lie in one piece: path without the first slash, size, device offset.
fn files(tree: &Tree) -> Vec<(Vec<u8>, u64, u64)> {
    let (mut found, mut todo) = (Vec::new(), vec![(ROOT, Vec::new())]);
    while let Some((id, path)) = todo.pop() {
        for (name, child) in tree.entries(id).into_iter().flat_map(|names| names.iter()) {
            let path = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
            match &tree.inode(child).content {
                Content::Directory(_) => todo.push((child, path)),
                Content::File(data) => found.extend(data.place().map(|(_, place)| (path, data.size(), place))),
                _ => {}
            }
        }
    }
    found
}

impl Spot<'_> {
    /// The span's bytes and how long decoding takes: the quicker of two times.
    fn decode(&self, index: &Index, far: &FarRegistry) -> Result<(Vec<u8>, f64)> {
        let read = |digest: String, from: u64, len: u64| -> Result<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(len)?];
            File::open(far.registry.blob_file(&digest))?.read_exact_at(&mut bytes, from)?;
            Ok(bytes)
        };
        let span = self.span;
        let source = read(self.layer.digest.to_string(), span.source_offset, span.source_len.into())?;
        let group = match (span.start.checkpoint_group(), index.checkpoints) {
            (Some((number, _)), Some(blob)) => {
                let range = &self.layer.checkpoint_groups[number];
                read(blob.digest.to_string(), range.start, range.end - range.start)?
            }
            _ => Vec::new(),
        };
        let mut best = f64::INFINITY;
        let mut bytes = Vec::new();
        for _ in 0..2 {
            let begun = Instant::now();
            bytes = decode(span, &source, &group)?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        Ok((bytes, best))
    }
}

/// The verified bytes of a span.
fn decode(span: &Span, source: &[u8], group: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; span.device_len as usize];
    match span.start {
        Start::Stored => bytes.copy_from_slice(source),
        Start::GzipMember { .. } => SpanDecoder::start(span, None)?.decode(span, source, &mut bytes)?,
        Start::Gzip { .. } => {
            let group = decode_group(group)?;
            let checkpoint = span.start.checkpoint_group().and_then(|(_, place)| group.get(place));
            SpanDecoder::start(span, checkpoint)?.decode(span, source, &mut bytes)?;
        }
        Start::ZstdFrame { .. } => zstd::SpanDecoder::start(span)?.decode(span, source, &mut bytes)?,
        Start::ZstdBlock { .. } => bytes = zstd::resume(span, &zstd::Checkpoint::decode(group)?, source)?,
    }
    ensure!(*blake3::hash(&bytes).as_bytes() == span.blake3, "a span is not what the index says");
    Ok(bytes)
}

/// A connection to the registry by the same way, and nothing behind it that thinks.
struct Bare {
    stream: BufReader<TcpStream>,
    host: String,
    repository: String,
}

impl Bare {
    fn open(far: &FarRegistry, base: &str) -> Result<Self> {
        let host = far.proxy.host();
        let stream = TcpStream::connect(&host)?;
        stream.set_nodelay(true)?;
        let path = base.split_once('/').map_or(base, |(_, path)| path);
        let repository = path.rsplit_once(':').map_or(path, |(repository, _)| repository).to_owned();
        Ok(Self { stream: BufReader::with_capacity(1 << 20, stream), host, repository })
    }

    /// Seconds that the source bytes of a span take.
    fn get(&mut self, spot: &Spot<'_>) -> Result<f64> {
        let (repository, range) = (&self.repository, spot.span.source_range());
        let begun = Instant::now();
        let request = format!(
            "GET /v2/{repository}/blobs/{} HTTP/1.1\r\nHost: {}\r\nRange: bytes={}-{}\r\n\r\n",
            spot.layer.digest,
            self.host,
            range.start,
            range.end - 1
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the registry hung up");
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        ensure!(length == range.end - range.start, "{length} bytes instead of {range:?}");
        std::io::copy(&mut self.stream.by_ref().take(length), &mut std::io::sink())?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

/// Random numbers, the same ones every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20) % end
    }
}
