//! What a start-up touches: where a list of it lies in the layers, and the hot blob made of that.
mod files;
mod hot;
mod list;
mod reader;

use super::layer::IndexedLayer;
use super::plan::{Plan, PlannedImage};
use crate::cli::{ConvertArgs, HotLimit};
use crate::report::Progress;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use files::{ImageFiles, LayerBytes};
pub use hot::HotBlob;
use hot::HotInput;
use list::Entry;
use reader::SpanReader;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

/// Label of an image's config that holds a prefetch list.
pub const LABEL_PREFETCH: &str = "io.clipper.prefetch";
/// Largest list that is read.
const LIST_MAX: u64 = 16 << 20;

/// What is stored of an image's start-up.
#[derive(Default)]
pub struct Startup {
    /// The prefetch list.
    pub list: Vec<Vec<u8>>,
    /// The hot blob.
    pub hot: Option<HotBlob>,
}

/// The list that the user gave, for all images.
///
/// # Errors
/// It can't be read, or a line is malformed.
pub fn read_list(args: &ConvertArgs) -> Result<Option<Vec<Entry>>> {
    let Some(path) = &args.prefetch_list else { return Ok(None) };
    let (name, mut text) = (path.display().to_string(), Vec::new());
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(LIST_MAX + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LIST_MAX + 1).read_to_end(&mut text))
    };
    read.with_context(|| format!("reading the prefetch list {name}"))?;
    if text.len() as u64 > LIST_MAX {
        bail!("the prefetch list {name} is larger than {LIST_MAX} bytes");
    }
    Ok(Some(list::parse(&text).with_context(|| format!("prefetch list {name}"))?))
}

/// The start-up of `image`, by `given` or else by the list in its own label.
///
/// # Errors
/// The label's list is malformed, a path isn't there and the user is strict, or a layer can't be read again.
pub async fn prepare(
    plan: &Plan,
    image: &PlannedImage,
    indexed: &BTreeMap<Digest, Arc<IndexedLayer>>,
    args: &ConvertArgs,
    given: Option<&[Entry]>,
    progress: &Progress,
) -> Result<Startup> {
    let label = image.labels.get(LABEL_PREFETCH).map(|text| list::parse(text.as_bytes())).transpose();
    let label = label.with_context(|| format!("{}: label {LABEL_PREFETCH}", image.platform_name()))?;
    let Some(list) = given.or(label.as_deref()) else { return Ok(Startup::default()) };

    let mut trees = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        trees.push(indexed[&layer.digest].index.tree.unpack()?);
    }
    let files = ImageFiles::merge(trees)?;
    let mut ranges = Vec::new();
    for Entry { line, path } in list {
        match files.resolve(path) {
            Some(found) => {
                for file in files.files(found) {
                    ranges.extend(files.bytes(file, 0..files.size(file)));
                }
            }
            None => {
                let text = format!("prefetch list, line {line}: {} is not in the image", String::from_utf8_lossy(path));
                if args.strict {
                    bail!("{text} ({})", image.platform_name());
                }
                progress.warn(&text);
            }
        }
    }
    let hot = hot_blob(plan, image, indexed, ranges, args.hot_limit, progress).await?;
    Ok(Startup { list: list.iter().map(|entry| entry.path.clone()).collect(), hot })
}

/// The hot blob of `ranges`, whose layers are numbers among the image's; `None` if there is nothing in it.
async fn hot_blob(
    plan: &Plan,
    image: &PlannedImage,
    indexed: &BTreeMap<Digest, Arc<IndexedLayer>>,
    mut ranges: Vec<LayerBytes>,
    limit: HotLimit,
    progress: &Progress,
) -> Result<Option<HotBlob>> {
    let distinct = image.distinct_layers();
    for LayerBytes { layer, .. } in &mut ranges {
        let digest = image.layers.get(*layer).context("a file outside all layers")?.digest;
        *layer = distinct.iter().position(|known| *known == digest).context("a layer that was not indexed")?;
    }
    let reader =
        |digest: &Digest| SpanReader { blob: plan.layers[digest].blob.clone(), layer: Arc::clone(&indexed[digest]) };
    let layers: Vec<_> = distinct.iter().map(reader).collect();
    let limit = limit.bytes(image.layers.iter().map(|layer| layer.size).sum());
    let hot = hot::pack(HotInput { layers: &layers, ranges, limit }).await?;
    if hot.cut {
        progress.warn(&format!(
            "the start-up's data don't fit --hot-limit ({limit} bytes): what comes last is left to prefetching on demand"
        ));
    }
    Ok((!hot.frames.is_empty()).then_some(hot))
}
