//! `clipper inspect`: what an accelerated image is made of.
use crate::cli::{Common, InspectArgs};
use crate::convert::ANNOTATION_BASE;
use crate::images;
use crate::report::{human, percent};
use anyhow::{Context, Result};
use clipper_format::Digest;
use clipper_format::index::{Index, LayerIndex};
use clipper_format::span::{Span, Start};
use clipper_mount::AcceleratedImage;
use clipper_registry::Repository;
use serde::Serialize;

/// Largest index blob read.
const INDEX_LIMIT: u64 = 1 << 30;

/// An accelerated image of one platform. Sizes are bytes.
#[derive(Serialize)]
struct Inspected {
    platform: String,
    manifest: Digest,
    mode: String,
    /// The digest of the manifest that was converted.
    base_manifest: Option<String>,
    /// Whether the base image's blobs must stay in the registry.
    needs_base: bool,
    layers_size: u64,
    device_size: u64,
    index: Digest,
    index_size: u64,
    checkpoints: Option<Digest>,
    checkpoints_size: u64,
    /// The hot blob: what a start-up reads, as nodes stream it.
    hot: Option<InspectedHot>,
    /// The prefetch list: the user's, or what the converter worked out.
    prefetch: Vec<String>,
    /// Index and checkpoints in percent of the compressed layers.
    overhead_percent: f64,
    span_size: u32,
    spans: usize,
    layers: Vec<InspectedLayer>,
}

#[derive(Serialize)]
struct InspectedHot {
    digest: Digest,
    size: u64,
    /// Bytes of the layers' devices in it.
    device_size: u64,
    frames: usize,
}

#[derive(Serialize)]
struct InspectedLayer {
    digest: Digest,
    diff_id: Digest,
    size: u64,
    device_size: u64,
    /// How its spans decode.
    format: &'static str,
    inodes: u64,
    tree_size: usize,
    spans: usize,
    /// Spans that decode from nothing but their own source bytes.
    spans_without_checkpoint: usize,
    checkpoints_size: u64,
    /// Device bytes of its longest span: how long spans of a large zstd frame are is chosen by what it costs to enter it.
    longest_span: u32,
    /// What it adds to the index and the checkpoints blob, in percent of its own bytes.
    overhead_percent: f64,
}

/// Runs the command.
pub async fn run(common: &Common, args: InspectArgs) -> Result<()> {
    let client = common.client()?;
    let repository = client.repository(&args.reference)?;
    let mut all = Vec::new();
    for image in images::accelerated(&client, &args.reference, args.platform.as_deref()).await? {
        all.push(inspect(&repository, &image).await?);
    }
    if common.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!("{}", args.reference);
        all.iter().for_each(print);
    }
    Ok(())
}

async fn inspect(repository: &Repository, image: &AcceleratedImage) -> Result<Inspected> {
    let bytes = repository.blob(image.index.digest, image.index.size).read_all(INDEX_LIMIT).await?;
    let index = Index::decode(&bytes).with_context(|| format!("index {}", image.index.digest))?;
    let mut layers = Vec::new();
    for layer in &image.layers {
        let described = index
            .layer(&layer.digest)
            .with_context(|| format!("index {} lacks layer {}", image.index.digest, layer.digest))?;
        layers.push(inspect_layer(described));
    }
    let layers_size = image.layers.iter().map(|l| l.size).sum();
    let checkpoints_size = image.checkpoints.as_ref().map_or(0, |c| c.size);
    let mode = image.annotations.get("io.clipper.mode").cloned().unwrap_or_else(|| "index-only".into());
    Ok(Inspected {
        platform: image.platform.to_string(),
        manifest: image.image.digest,
        needs_base: mode == "index-only",
        mode,
        base_manifest: image.annotations.get(ANNOTATION_BASE).cloned(),
        layers_size,
        device_size: layers.iter().map(|l| l.device_size).sum(),
        index: image.index.digest,
        index_size: image.index.size,
        checkpoints: image.checkpoints.as_ref().map(|c| c.digest),
        checkpoints_size,
        hot: index.hot.as_ref().map(|hot| InspectedHot {
            digest: hot.blob.digest,
            size: hot.blob.size,
            device_size: hot.frames.iter().map(|frame| frame.device_len(&index.layers)).sum(),
            frames: hot.frames.len(),
        }),
        prefetch: index.prefetch.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect(),
        overhead_percent: percent(image.index.size + checkpoints_size, layers_size),
        span_size: index.span_size,
        spans: layers.iter().map(|l| l.spans).sum(),
        layers,
    })
}

fn inspect_layer(layer: &LayerIndex) -> InspectedLayer {
    let spans = layer.spans.spans();
    let checkpoints_size = layer.checkpoint_groups.iter().map(|g| g.end - g.start).sum();
    InspectedLayer {
        digest: layer.digest,
        diff_id: layer.diff_id,
        size: layer.source_size,
        device_size: layer.spans.device_size(),
        format: format(spans),
        inodes: layer.tree.inode_count(),
        tree_size: layer.tree.len(),
        spans: spans.len(),
        spans_without_checkpoint: spans.iter().filter(|s| s.start.checkpoint().is_none()).count(),
        checkpoints_size,
        longest_span: spans.iter().map(|span| span.device_len).max().unwrap_or_default(),
        overhead_percent: percent(layer.encoded_len() as u64 + checkpoints_size, layer.source_size),
    }
}

/// What kind of layer has these spans.
fn format(spans: &[Span]) -> &'static str {
    let all = |kind: fn(&Start) -> bool| spans.iter().all(|span| kind(&span.start));
    match spans {
        [] => "empty",
        _ if all(|start| matches!(start, Start::Stored)) => "tar",
        _ if all(|start| matches!(start, Start::ZstdFrame { .. })) => "zstd frames",
        _ if spans.iter().any(|span| matches!(span.start, Start::ZstdBlock { .. })) => "zstd",
        // A layer of one span is a member, too: nothing more can be told.
        [_, _, ..] if all(|start| matches!(start, Start::GzipMember { .. })) => "gzip members",
        _ => "gzip",
    }
}

fn print(image: &Inspected) {
    println!("  {}", image.platform);
    println!("    manifest      {}", image.manifest);
    println!("    mode          {}", image.mode);
    if let Some(base) = &image.base_manifest {
        let needs = if image.needs_base { "its layers must stay in the registry" } else { "not needed" };
        println!("    base image    {base} ({needs})");
    }
    println!("    layers        {} compressed, {} unpacked", human(image.layers_size), human(image.device_size));
    println!("    index         {} {}", image.index, human(image.index_size));
    match image.checkpoints {
        Some(digest) => println!("    checkpoints   {digest} {}", human(image.checkpoints_size)),
        None => println!("    checkpoints   none needed"),
    }
    match &image.hot {
        Some(hot) => println!(
            "    start-up      {} {} for {} of files in {} frames",
            hot.digest,
            human(hot.size),
            human(hot.device_size),
            hot.frames
        ),
        None => println!("    start-up      not recorded: see clipper record"),
    }
    println!("    overhead      {:.2} % of the compressed layers", image.overhead_percent);
    let longest = image.layers.iter().map(|layer| layer.longest_span).max().unwrap_or_default();
    println!("    spans         {} of at most {}", image.spans, human(longest.max(image.span_size).into()));
    println!(
        "    {:14}{:13}{:>12} {:>12} {:>9} {:>7} {:>12} {:>13} {:>9}",
        "layer", "format", "compressed", "unpacked", "files", "spans", "longest", "checkpoints", "overhead"
    );
    for layer in &image.layers {
        println!(
            "    {:14}{:13}{:>12} {:>12} {:>9} {:>7} {:>12} {:>13} {:>7.2} %",
            &layer.digest.hex()[..12],
            layer.format,
            human(layer.size),
            human(layer.device_size),
            layer.inodes,
            layer.spans,
            human(layer.longest_span.into()),
            human(layer.checkpoints_size),
            layer.overhead_percent,
        );
    }
}
