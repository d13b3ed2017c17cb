//! `clipper convert`: from an ordinary image to an accelerated one.
mod artifact;
mod layer;
mod plan;
mod publish;
mod reuse;
mod startup;
mod summary;

use crate::cli::{Common, ConvertArgs};
use crate::report::{Progress, human};
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::index::{BlobRef, Hot, Index};
use futures::{StreamExt, TryStreamExt};
use layer::IndexedLayer;
use plan::{Plan, PlannedImage};
use startup::Startup;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The annotations and media types that other commands look for.
pub use artifact::ANNOTATION_BASE;
pub use plan::TAG_SUFFIX;

/// Runs the command.
pub async fn run(common: &Common, args: ConvertArgs) -> Result<()> {
    let begun = Instant::now();
    let given = startup::Given::read(&args)?;
    let progress = Progress::new(common);
    let client = common.client()?;
    let plan = Plan::make(&client, &args).await?;
    let mut indexed = if args.no_reuse { BTreeMap::new() } else { reuse::find(&plan, args.span_size).await };
    for layer in indexed.values() {
        progress.say(&format!("{}  reused: the target repository holds its index already", short(layer.index.digest)));
    }
    index_layers(&plan, &args, &progress, &mut indexed).await?;

    let mut images = Vec::new();
    for image in &plan.images {
        let startup = startup::prepare(&plan, image, &indexed, &args, &given, &progress).await?;
        let made = assemble(image, &indexed, args.span_size, startup)?;
        publish::blobs(&plan, image, &made, &progress).await?;
        images.push((image, made));
    }
    let top = publish::manifests(&plan, &images).await?;
    let summary = summary::Summary::new(&plan, &images, &indexed, &top, begun.elapsed(), client.stats());
    if common.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{summary}");
    }
    Ok(())
}

/// Indexes every layer that isn't in `indexed` yet, several side by side.
async fn index_layers(
    plan: &Plan,
    args: &ConvertArgs,
    progress: &Progress,
    indexed: &mut BTreeMap<Digest, Arc<IndexedLayer>>,
) -> Result<()> {
    let jobs =
        args.jobs.map_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get), usize::from);
    let wanted: Vec<_> = plan.layers.iter().filter(|(digest, _)| !indexed.contains_key(*digest)).collect();
    let mut done = futures::stream::iter(wanted)
        .map(|(digest, input)| async move {
            let task = progress.task(&short(*digest), input.blob.size());
            let layer = layer::index(input.clone(), args.span_size, &task).await?;
            let took = layer.took.unwrap_or_default();
            task.done(&format!(
                "{}  indexed {} ({} of files) in {:.1} s: {} spans",
                short(*digest),
                human(layer.index.source_size),
                human(layer.index.spans.device_size()),
                took.as_secs_f64(),
                layer.index.spans.spans().len(),
            ));
            anyhow::Ok((*digest, Arc::new(layer)))
        })
        .buffer_unordered(jobs.max(1));
    while let Some((digest, layer)) = done.try_next().await? {
        indexed.insert(digest, layer);
    }
    Ok(())
}

/// What is published of one image besides manifests.
pub struct Made {
    /// The index blob.
    pub index: Vec<u8>,
    /// The checkpoints blob; `None` if no layer has a checkpoint.
    pub checkpoints: Option<Vec<u8>>,
    /// The hot blob; `None` if nothing is known of the start-up.
    pub hot: Option<Vec<u8>>,
}

/// Puts the layers of `image` together.
fn assemble(
    image: &PlannedImage,
    indexed: &BTreeMap<Digest, Arc<IndexedLayer>>,
    span_size: u32,
    startup: Startup,
) -> Result<Made> {
    let (mut checkpoints, mut layers) = (Vec::new(), Vec::new());
    for digest in image.distinct_layers() {
        let layer = indexed.get(&digest).with_context(|| format!("layer {digest} was not indexed"))?;
        let mut described = layer.index.clone();
        let start = checkpoints.len() as u64;
        for group in &mut described.checkpoint_groups {
            *group = group.start + start..group.end + start;
        }
        checkpoints.extend_from_slice(&layer.checkpoints);
        layers.push(described);
    }
    let checkpoints = (!checkpoints.is_empty()).then_some(checkpoints);
    let (frames, hot) = startup.hot.map_or((Vec::new(), None), |hot| (hot.frames, Some(hot.bytes)));
    let described = hot.as_deref().map(|bytes| Hot { blob: blob_ref(bytes), frames });
    let checkpoints_ref = checkpoints.as_deref().map(blob_ref);
    let index = Index { span_size, checkpoints: checkpoints_ref, layers, prefetch: startup.list, hot: described };
    Ok(Made { index: index.encode().context("encoding the index")?, checkpoints, hot })
}

/// Digest and size of `bytes`.
fn blob_ref(bytes: &[u8]) -> BlobRef {
    BlobRef { digest: Digest::of(bytes), size: bytes.len() as u64 }
}

/// The first digits of a digest, to tell layers apart in progress lines.
fn short(digest: Digest) -> String {
    digest.hex().chars().take(12).collect()
}
