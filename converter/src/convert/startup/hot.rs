//! Making the hot blob: device ranges in order, read from their layers, cut into frames.
use super::files::LayerBytes;
use super::reader::SpanReader;
use anyhow::{Context, Result, bail};
use clipper_format::index::{BlobRef, HOT_FRAME_MAX, HotFrame, HotLevel, HotPiece, pack_hot_frame};
use clipper_format::span::{BLOCK, Start};
use clipper_registry::Repository;
use futures::stream::try_unfold;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::pin::pin;
use tokio::sync::Semaphore;

/// Device bytes of a frame: a reader waits for all of one, and small ones compress worse.
const FRAME: u64 = 256 << 10;
/// A span is copied, compressed as it is, if so much of it is wanted, in percent: sending a little more costs less than
/// compressing it anew.
const COPIED: u64 = 60;
/// Spans that are fetched at the same time,
const FETCHES: usize = 8;
/// and their device bytes, in MiB; or one that has more.
const FETCHED: u32 = 64;

/// What a hot blob is made of.
pub struct HotInput<'a> {
    /// The distinct layers of the image, in the order of the index.
    pub layers: &'a [SpanReader],
    /// The ranges in the order of first touch; layers are numbers in `layers`.
    pub ranges: Vec<LayerBytes>,
    /// How hard its frames are compressed.
    pub level: HotLevel,
    /// Whether spans may be copied: the layers were repacked, so that a span that begins with a frame is whole frames.
    pub copies: bool,
    /// Most bytes of the blob; what doesn't fit is left out, from the first frame that doesn't.
    pub limit: u64,
}

/// A hot blob in its repository, and its frames.
pub struct HotBlob {
    /// The frames one after the other; `None` if there are none.
    pub blob: Option<BlobRef>,
    /// What they hold.
    pub frames: Vec<HotFrame>,
    /// Device bytes in them.
    pub device_bytes: u64,
    /// Whether something was left out for the limit.
    pub cut: bool,
}

/// Makes the hot blob and pushes it to `to` as it is made.
///
/// # Errors
/// A layer can't be read again, or the blob can't be pushed.
pub async fn pack(input: &HotInput<'_>, to: &Repository) -> Result<HotBlob> {
    let frames = frames(pieces(input), input);
    // Who needs a span: frame and piece. Spans are read in the order in which frames need them first.
    let mut users: BTreeMap<(u32, usize), Vec<(usize, usize)>> = BTreeMap::new();
    let mut order = Vec::new();
    for (f, frame) in frames.iter().enumerate() {
        let Frame::Made(pieces) = frame else { continue };
        for (p, piece) in pieces.iter().enumerate() {
            for span in input.spans(piece) {
                let key = (piece.layer, span);
                users.entry(key).or_insert_with(|| {
                    order.push(key);
                    Vec::new()
                });
                users.entry(key).or_default().push((f, p));
            }
        }
    }
    // Those that are wanted first are first to get in, so that none of them waits for a later one.
    let (room, most) = (Semaphore::new(FETCHED as usize), u64::from(FETCHED));
    let room = &room;
    let reading = futures::stream::iter(order)
        .map(|(layer, span)| {
            let reader = input.layers[layer as usize].clone();
            async move {
                let len = u64::from(reader.described(span)?.device_len);
                let held = room.acquire_many(len.div_ceil(1 << 20).min(most) as u32).await?;
                anyhow::Ok(((layer, span), reader.span(span).await?, held))
            }
        })
        .buffered(FETCHES);
    let (frames, users) = (&frames, &users);
    let contents = try_unfold((0, Parts::default(), reading), move |(f, mut parts, mut reading)| async move {
        let pieces = match frames.get(f) {
            None => return anyhow::Ok(None),
            Some(Frame::Copied(piece, span)) => {
                let reader = input.layers[piece.layer as usize].clone();
                return Ok(Some((Content::Packed(*piece, *span, reader), (f + 1, parts, reading))));
            }
            Some(Frame::Made(pieces)) => pieces,
        };
        let mut bytes = Vec::new();
        for (p, piece) in pieces.iter().enumerate() {
            let range = input.device_range(piece);
            while !parts.complete((f, p), &range) {
                let Some((key, bytes, _held)) = reading.try_next().await? else { bail!("a span is missing") };
                let span = input.layers[key.0 as usize].layer.spans().spans()[key.1].device_range();
                for user in &users[&key] {
                    if let Some(piece) = frames[user.0].pieces().get(user.1) {
                        parts.add(*user, &input.device_range(piece), &span, &bytes);
                    }
                }
            }
            parts.take((f, p), &mut bytes);
        }
        Ok(Some((Content::Plain(pieces.clone(), bytes), (f + 1, parts, reading))))
    });
    // Some of them wait for a span that is copied.
    let packing = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + FETCHES;
    let mut packed = pin!(contents.map_ok(|content| content.pack(input.level)).try_buffered(packing));

    let mut hot = HotBlob { blob: None, frames: Vec::new(), device_bytes: 0, cut: false };
    let (mut upload, mut size) = (None, 0);
    let pushing = || format!("pushing the hot blob to {to}");
    while let Some(PackedFrame { frame, device_bytes, bytes }) = packed.try_next().await? {
        size += bytes.len() as u64;
        if size > input.limit {
            hot.cut = true;
            break;
        }
        hot.device_bytes += device_bytes;
        hot.frames.push(frame);
        let upload = match &mut upload {
            Some(upload) => upload,
            None => upload.insert(to.upload().await.with_context(pushing)?),
        };
        upload.write(bytes.into()).await.with_context(pushing)?;
    }
    if let Some(upload) = upload {
        let (digest, size) = upload.finish().await.with_context(pushing)?;
        hot.blob = Some(BlobRef { digest, size });
    }
    Ok(hot)
}

/// What a frame of the blob is made from.
enum Frame {
    /// These pieces, compressed.
    Made(Vec<HotPiece>),
    /// A span as it lies in its layer, compressed as a whole already.
    Copied(HotPiece, usize),
}

impl Frame {
    fn pieces(&self) -> &[HotPiece] {
        match self {
            Self::Made(pieces) => pieces,
            Self::Copied(piece, _) => std::slice::from_ref(piece),
        }
    }
}

/// What a frame holds.
enum Content {
    Plain(Vec<HotPiece>, Vec<u8>),
    Packed(HotPiece, usize, SpanReader),
}

/// A frame as it goes to the blob.
struct PackedFrame {
    frame: HotFrame,
    device_bytes: u64,
    bytes: Vec<u8>,
}

impl Content {
    async fn pack(self, level: HotLevel) -> Result<PackedFrame> {
        match self {
            Self::Packed(piece, number, reader) => {
                let span = reader.described(number)?;
                let bytes = reader.verified_source(number).await?;
                let frame = HotFrame { len: bytes.len() as u32, pieces: vec![piece], blake3: span.blake3 };
                Ok(PackedFrame { frame, device_bytes: span.device_len.into(), bytes })
            }
            Self::Plain(pieces, content) => {
                let packing = tokio::task::spawn_blocking(move || {
                    let bytes = pack_hot_frame(&content, level)?;
                    let blake3 = *blake3::hash(&content).as_bytes();
                    let frame = HotFrame { len: bytes.len() as u32, pieces, blake3 };
                    anyhow::Ok(PackedFrame { frame, device_bytes: content.len() as u64, bytes })
                });
                packing.await?
            }
        }
    }
}

impl HotInput<'_> {
    fn device_size(&self, layer: u32) -> u64 {
        self.layers[layer as usize].layer.spans().device_size()
    }

    fn device_range(&self, piece: &HotPiece) -> Range<u64> {
        piece.device_range(self.device_size(piece.layer))
    }

    /// A piece cut where spans end, with their numbers; a block on the border counts for the first.
    fn split(&self, piece: HotPiece) -> Vec<(usize, HotPiece)> {
        let table = self.layers[piece.layer as usize].layer.spans();
        let (mut parts, end) = (Vec::new(), piece.first + u64::from(piece.blocks));
        for span in self.spans(&piece) {
            let first =
                parts.last().map_or(piece.first, |(_, last): &(usize, HotPiece)| last.first + u64::from(last.blocks));
            let until = table.spans()[span].device_range().end.div_ceil(BLOCK).min(end);
            if first < until {
                parts.push((span, HotPiece { first, blocks: (until - first) as u32, ..piece }));
            }
        }
        parts
    }

    /// The piece that is all of a span, if so many of its bytes are wanted that it is copied, and it can be: it is frames
    /// that hold nothing else.
    fn whole(&self, layer: u32, span: usize, wanted: u64) -> Option<HotPiece> {
        let span = self.layers[layer as usize].layer.spans().spans().get(span)?;
        let range = span.device_range();
        let aligned = range.start.is_multiple_of(BLOCK)
            && (range.end.is_multiple_of(BLOCK) || range.end == self.device_size(layer));
        let blocks = (range.end - range.start).div_ceil(BLOCK);
        let fits = aligned && blocks * BLOCK <= HOT_FRAME_MAX && matches!(span.start, Start::ZstdFrame { skip: 0 });
        let enough = wanted * 100 >= blocks * BLOCK * COPIED;
        (fits && enough).then_some(HotPiece { layer, first: range.start / BLOCK, blocks: blocks as u32 })
    }

    /// The spans that a piece lies in.
    fn spans(&self, piece: &HotPiece) -> Range<usize> {
        let (table, range) = (self.layers[piece.layer as usize].layer.spans(), self.device_range(piece));
        let find = |offset| table.find(offset).unwrap_or(table.spans().len());
        find(range.start)..(find(range.end - 1) + 1).min(table.spans().len())
    }
}

/// The ranges as blocks, each block once.
fn pieces(input: &HotInput<'_>) -> Vec<HotPiece> {
    let mut seen: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); input.layers.len()];
    let mut pieces: Vec<HotPiece> = Vec::new();
    for LayerBytes { layer, range } in &input.ranges {
        let end = range.end.min(input.device_size(*layer as u32));
        for block in range.start / BLOCK..end.div_ceil(BLOCK) {
            if !seen[*layer].insert(block) {
                continue;
            }
            match pieces.last_mut() {
                Some(last) if last.layer as usize == *layer && last.first + u64::from(last.blocks) == block => {
                    last.blocks += 1;
                }
                _ => pieces.push(HotPiece { layer: *layer as u32, first: block, blocks: 1 }),
            }
        }
    }
    pieces
}

/// Cuts pieces into frames of at most [`FRAME`] bytes; but spans that are wanted for the most part are copied, if they can
/// be, where they are wanted first.
fn frames(pieces: Vec<HotPiece>, input: &HotInput<'_>) -> Vec<Frame> {
    const BLOCKS: u32 = (FRAME / BLOCK) as u32;
    let mut wanted: BTreeMap<(u32, usize), u64> = BTreeMap::new();
    for piece in pieces.iter().filter(|_| input.copies) {
        for (span, part) in input.split(*piece) {
            *wanted.entry((piece.layer, span)).or_default() += u64::from(part.blocks) * BLOCK;
        }
    }
    let copied: BTreeMap<(u32, usize), HotPiece> = wanted
        .into_iter()
        .filter_map(|((layer, span), wanted)| Some(((layer, span), input.whole(layer, span, wanted)?)))
        .collect();
    let (mut frames, mut frame, mut room) = (Vec::new(), Vec::new(), BLOCKS);
    let mut done = BTreeSet::new();
    for piece in pieces {
        // With nothing to copy, pieces needn't be cut where spans end.
        let parts = if copied.is_empty() { vec![(0, piece)] } else { input.split(piece) };
        for (span, mut piece) in parts {
            if let Some(whole) = copied.get(&(piece.layer, span)) {
                if done.insert((piece.layer, span)) {
                    frames.push(Frame::Copied(*whole, span));
                }
                continue;
            }
            while piece.blocks > 0 {
                let blocks = piece.blocks.min(room);
                frame.push(HotPiece { blocks, ..piece });
                (piece.first, piece.blocks, room) =
                    (piece.first + u64::from(blocks), piece.blocks - blocks, room - blocks);
                if room == 0 {
                    frames.push(Frame::Made(std::mem::take(&mut frame)));
                    room = BLOCKS;
                }
            }
        }
    }
    if !frame.is_empty() {
        frames.push(Frame::Made(frame));
    }
    debug_assert!(frames.iter().flat_map(Frame::pieces).all(|piece| !input.device_range(piece).is_empty()));
    frames
}

/// Bytes of pieces that are yet to be packed; a piece may straddle spans. No more of a span is kept than is needed.
#[derive(Default)]
struct Parts(BTreeMap<(usize, usize), BTreeMap<u64, Vec<u8>>>);

impl Parts {
    /// Keeps what the span at `span` has of the piece at `piece`.
    fn add(&mut self, key: (usize, usize), piece: &Range<u64>, span: &Range<u64>, bytes: &[u8]) {
        let (start, end) = (piece.start.max(span.start), piece.end.min(span.end));
        if start < end {
            let bytes = &bytes[(start - span.start) as usize..(end - span.start) as usize];
            self.0.entry(key).or_default().insert(start, bytes.to_vec());
        }
    }

    fn complete(&self, key: (usize, usize), piece: &Range<u64>) -> bool {
        let have: usize = self.0.get(&key).map_or(0, |parts| parts.values().map(Vec::len).sum());
        have as u64 == piece.end - piece.start
    }

    fn take(&mut self, key: (usize, usize), content: &mut Vec<u8>) {
        for part in self.0.remove(&key).unwrap_or_default().into_values() {
            content.extend_from_slice(&part);
        }
    }
}
