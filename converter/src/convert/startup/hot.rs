//! Making the hot blob: device ranges in order, read from their layers, cut into frames.
use super::files::LayerBytes;
use super::reader::SpanReader;
use anyhow::{Context, Result, bail};
use clipper_format::index::{BlobRef, HotFrame, HotPiece, pack_hot_frame};
use clipper_format::span::BLOCK;
use clipper_registry::Repository;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Device bytes of a frame: a reader waits for all of one, and small ones compress worse.
const FRAME: u64 = 256 << 10;
/// Spans that are fetched at the same time.
const FETCHES: usize = 8;

/// What a hot blob is made of.
pub struct HotInput<'a> {
    /// The distinct layers of the image, in the order of the index.
    pub layers: &'a [SpanReader],
    /// The ranges in the order of first touch; layers are numbers in `layers`.
    pub ranges: Vec<LayerBytes>,
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
        for (p, piece) in frame.iter().enumerate() {
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
    let mut reading = futures::stream::iter(order)
        .map(|(layer, span)| {
            let reader = input.layers[layer as usize].clone();
            async move { anyhow::Ok(((layer, span), reader.span(span).await?)) }
        })
        .buffered(FETCHES);

    let mut hot = HotBlob { blob: None, frames: Vec::new(), device_bytes: 0, cut: false };
    let (mut upload, mut size) = (None, 0);
    let pushing = || format!("pushing the hot blob to {to}");
    let mut parts = Parts::default();
    for (f, frame) in frames.iter().enumerate() {
        let mut content = Vec::new();
        for (p, piece) in frame.iter().enumerate() {
            let range = input.device_range(piece);
            while !parts.complete((f, p), &range) {
                let Some((key, bytes)) = reading.try_next().await? else { bail!("a span is missing") };
                let span = input.layers[key.0 as usize].layer.index.spans.spans()[key.1].device_range();
                for (f, p) in &users[&key] {
                    parts.add((*f, *p), &input.device_range(&frames[*f][*p]), &span, &bytes);
                }
            }
            content.extend(parts.take((f, p)));
        }
        let packed = pack_hot_frame(&content)?;
        size += packed.len() as u64;
        if size > input.limit {
            hot.cut = true;
            break;
        }
        hot.device_bytes += content.len() as u64;
        let blake3 = *blake3::hash(&content).as_bytes();
        hot.frames.push(HotFrame { len: packed.len() as u32, pieces: frame.clone(), blake3 });
        let upload = match &mut upload {
            Some(upload) => upload,
            None => upload.insert(to.upload().await.with_context(pushing)?),
        };
        upload.write(packed.into()).await.with_context(pushing)?;
    }
    if let Some(upload) = upload {
        let (digest, size) = upload.finish().await.with_context(pushing)?;
        hot.blob = Some(BlobRef { digest, size });
    }
    Ok(hot)
}

impl HotInput<'_> {
    fn device_size(&self, layer: u32) -> u64 {
        self.layers[layer as usize].layer.index.spans.device_size()
    }

    fn device_range(&self, piece: &HotPiece) -> Range<u64> {
        piece.device_range(self.device_size(piece.layer))
    }

    /// The spans that a piece lies in.
    fn spans(&self, piece: &HotPiece) -> Range<usize> {
        let (table, range) = (&self.layers[piece.layer as usize].layer.index.spans, self.device_range(piece));
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

/// Cuts pieces into frames of at most [`FRAME`] bytes.
fn frames(pieces: Vec<HotPiece>, input: &HotInput<'_>) -> Vec<Vec<HotPiece>> {
    const BLOCKS: u32 = (FRAME / BLOCK) as u32;
    let (mut frames, mut frame, mut room) = (Vec::new(), Vec::new(), BLOCKS);
    for mut piece in pieces {
        while piece.blocks > 0 {
            let blocks = piece.blocks.min(room);
            frame.push(HotPiece { blocks, ..piece });
            (piece.first, piece.blocks, room) = (piece.first + u64::from(blocks), piece.blocks - blocks, room - blocks);
            if room == 0 {
                frames.push(std::mem::take(&mut frame));
                room = BLOCKS;
            }
        }
    }
    if !frame.is_empty() {
        frames.push(frame);
    }
    debug_assert!(frames.iter().flatten().all(|piece| !input.device_range(piece).is_empty()));
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

    fn take(&mut self, key: (usize, usize)) -> Vec<u8> {
        self.0.remove(&key).unwrap_or_default().into_values().flatten().collect()
    }
}
