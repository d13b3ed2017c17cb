//! `clipper convert`: from an ordinary image to an accelerated one.
mod again;
mod artifact;
mod codec;
mod describing;
mod edition;
mod layer;
mod parts;
mod plan;
mod publish;
mod repack;
mod reuse;
mod room;
mod startup;
mod summary;

use crate::cli::{Common, ConvertArgs};
use crate::report::{Progress, human, percent};
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::index::{BlobRef, Hot, Index};
use clipper_format::span::Start;
use edition::EditionLayer;
use futures::{StreamExt, TryStreamExt};
use layer::IndexedLayer;
use plan::{Plan, PlannedImage};
use publish::Published;
use repack::{Repack, RepackedLayer};
use startup::Startup;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;

/// The annotations and media types that other commands look for.
pub use artifact::ANNOTATION_BASE;
pub use edition::{BASE_LAYERS, TAG_SUFFIX};

/// Spans of a zstd layer of which more is fetched are worth a warning, source bytes.
const LONG_SPAN: u32 = 16 << 20;
/// So is an index, with its checkpoints, that takes more than this part of a layer, percent.
const DEAR: f64 = 3.0;

/// Runs the command.
pub async fn run(common: &Common, args: ConvertArgs) -> Result<()> {
    let begun = Instant::now();
    let given = startup::Given::read(&args)?;
    let progress = Progress::new(common);
    let client = common.client()?;
    let plan = Plan::make(&client, &args).await?;
    let mut layers = if args.no_reuse { Layers::default() } else { reuse::find(&plan, &args).await };
    for digest in plan.layers.keys().filter(|digest| layers.missing(&plan, digest).is_none()) {
        progress.say(&format!("{}  reused: the target repository holds its index already", short(*digest)));
    }
    describe_layers(&plan, &args, &progress, &mut layers).await?;

    let mut published: Vec<Published<'_>> = Vec::new();
    let mut startups = Vec::new();
    for image in &plan.images {
        let first = plan.editions.first().and_then(|edition| edition.layers(image, &layers));
        let first = first.context("a layer was not described")?;
        startups.push(startup::prepare(&plan, image, &first, &args, &given, &progress).await?);
    }
    for edition in &plan.editions {
        let mut images = Vec::new();
        for (image, startup) in plan.images.iter().zip(&startups) {
            let own = edition.layers(image, &layers).context("a layer was not described")?;
            let made = assemble(image, &own, args.span_size, startup)?;
            publish::blobs(&plan, edition, image, &made, &progress).await?;
            images.push((image, own, made));
        }
        published.push(publish::manifests(&plan, edition, images).await?);
    }
    let first = published.first().context("nothing was published")?;
    let tags = (first, published.get(1));
    let summary = summary::Summary::new(&plan, tags, &layers, begun.elapsed(), client.stats());
    if common.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{summary}");
    }
    Ok(())
}

/// What is known of the layers, by the digest of the base image's.
#[derive(Default)]
pub struct Layers {
    /// The base image's own.
    pub indexed: BTreeMap<Digest, Arc<IndexedLayer>>,
    /// Repacked ones.
    pub repacked: BTreeMap<Digest, Arc<RepackedLayer>>,
}

impl Layers {
    /// Whether the layer must be read, and if so, whether it is to be repacked.
    fn missing(&self, plan: &Plan, digest: &Digest) -> Option<bool> {
        let repack = plan.repacked().is_some() && !self.repacked.contains_key(digest);
        (repack || !self.indexed.contains_key(digest)).then_some(repack)
    }
}

/// Describes every layer that isn't in `layers` yet, several side by side.
async fn describe_layers(plan: &Plan, args: &ConvertArgs, progress: &Progress, layers: &mut Layers) -> Result<()> {
    let jobs =
        args.jobs.map_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get), usize::from);
    let repacking = plan.repacked().map(|compression| Repack::new(plan.to.clone(), compression));
    let wanted = plan.layers.iter().filter_map(|(digest, input)| Some((digest, input, layers.missing(plan, digest)?)));
    let memory = &Semaphore::new(layer::MEMORY as usize);
    let mut done = futures::stream::iter(wanted.collect::<Vec<_>>())
        .map(|(digest, input, repack)| (digest, input, repacking.clone().filter(|_| repack)))
        .map(|(digest, input, repack)| async move {
            let _held = memory.acquire_many(input.memory()).await?;
            let task = progress.task(&short(*digest), input.blob.size());
            let layer = layer::describe(input.clone(), args.span_size, repack, &task).await?;
            task.done(&indexed(&layer.index, layer.repacked.as_ref()));
            if let Some(warning) = dear(&layer.index) {
                progress.warn(&warning);
            }
            if let Some(why) = layer.repacked.as_ref().and_then(|repacked| repacked.no_toc.as_ref()) {
                progress.warn(&format!(
                    "{}: {why}, so the repacked layer has no table of contents: other runtimes will fetch it whole",
                    short(*digest)
                ));
            }
            anyhow::Ok((*digest, layer))
        })
        .buffer_unordered(jobs.max(1));
    while let Some((digest, layer)) = done.try_next().await? {
        layers.indexed.insert(digest, Arc::new(layer.index));
        layers.repacked.extend(layer.repacked.map(|repacked| (digest, Arc::new(repacked))));
    }
    Ok(())
}

/// The line that says that a layer is done.
fn indexed(layer: &IndexedLayer, repacked: Option<&RepackedLayer>) -> String {
    let index = &layer.index;
    let mut line = format!(
        "{}  indexed {} ({} of files) in {:.1} s: {} spans",
        short(index.digest),
        human(index.source_size),
        human(index.spans.device_size()),
        layer.took.unwrap_or_default().as_secs_f64(),
        index.spans.spans().len(),
    );
    if let Some(repacked) = repacked {
        line += &format!("; repacked: {}", human(repacked.layer.index.source_size));
    }
    line
}

/// What is to be said of a layer whose zstd frames are dear to enter: reads will fetch much, or the index is large.
fn dear(layer: &IndexedLayer) -> Option<String> {
    let spans = layer.index.spans.spans();
    if !spans.iter().any(|span| matches!(span.start, Start::ZstdBlock { .. })) {
        return None;
    }
    let longest = spans.iter().map(|span| span.source_len).max().unwrap_or_default();
    let share = percent(layer.size() as u64, layer.index.source_size);
    if longest <= LONG_SPAN && share <= DEAR {
        return None;
    }
    Some(format!(
        "{}: its blocks refer so far back that the index takes {share:.1} % of the layer and a read fetches up to {} at \
         once; --mode full repacks the layer, so that neither is so",
        short(layer.index.digest),
        human(longest.into()),
    ))
}

/// What is published of one image besides manifests.
pub struct Made {
    /// The index blob.
    pub index: Vec<u8>,
    /// The checkpoints blob; `None` if no layer has a checkpoint.
    pub checkpoints: Option<Vec<u8>>,
    /// The hot blob; `None` if nothing is known of the start-up.
    pub hot: Option<BlobRef>,
}

/// Puts the layers of `image` together.
fn assemble(image: &PlannedImage, own: &[EditionLayer<'_>], span_size: u32, startup: &Startup) -> Result<Made> {
    let (mut checkpoints, mut layers, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
    for EditionLayer { layer, .. } in own {
        if places.contains_key(&layer.index.digest) {
            continue;
        }
        places.insert(layer.index.digest, layers.len() as u32);
        let mut described = layer.index.clone();
        let start = checkpoints.len() as u64;
        for group in &mut described.checkpoint_groups {
            *group = group.start + start..group.end + start;
        }
        checkpoints.extend_from_slice(&layer.checkpoints);
        layers.push(described);
    }
    let hot = startup.hot.as_ref().and_then(|hot| Some((hot, hot.blob?)));
    let described = hot.map(|(hot, blob)| {
        // Layers that differ may be the same once they are repacked.
        let place = |base: &Digest| own.iter().find(|layer| layer.base == *base).map(|layer| layer.layer.index.digest);
        let numbers: Vec<u32> =
            image.distinct_layers().iter().filter_map(|base| places.get(&place(base)?).copied()).collect();
        let mut frames = hot.frames.clone();
        for piece in frames.iter_mut().flat_map(|frame| &mut frame.pieces) {
            piece.layer = numbers.get(piece.layer as usize).copied().unwrap_or_default();
        }
        Hot { blob, frames }
    });
    let checkpoints = (!checkpoints.is_empty()).then_some(checkpoints);
    let checkpoints_ref = checkpoints.as_deref().map(blob_ref);
    let prefetch = startup.list.clone();
    let index = Index { span_size, checkpoints: checkpoints_ref, layers, prefetch, hot: described };
    Ok(Made { index: index.encode().context("encoding the index")?, checkpoints, hot: hot.map(|(_, blob)| blob) })
}

/// Digest and size of `bytes`.
fn blob_ref(bytes: &[u8]) -> BlobRef {
    BlobRef { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

/// The first digits of a digest, to tell layers apart in progress lines.
fn short(digest: Digest) -> String {
    digest.hex().chars().take(12).collect()
}
