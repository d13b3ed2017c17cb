//! What a start-up touches: where a list of it lies in the layers, and the hot blob made of that.
mod files;
mod guess;
mod hot;
mod list;
mod reader;

use super::again::again;
use super::edition::EditionLayer;
use super::plan::{Plan, PlannedImage};
use crate::cli::{ConvertArgs, HotLimit};
use crate::report::Progress;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use clipper_format::index::HotLevel;
use clipper_format::trace::{TRACE_MAX, Touch, parse_trace};
use clipper_registry::RegistryError;
use files::{ImageFiles, LayerBytes};
use guess::{Expected, guess};
pub use hot::HotBlob;
use hot::HotInput;
use list::Entry;
use reader::{FileReader, SpanReader};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
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

/// What the user says about start-ups, for all images.
pub struct Given {
    list: Option<Vec<Entry>>,
    trace: Option<Vec<Touch>>,
}

impl Given {
    /// Reads the files that the command line names.
    ///
    /// # Errors
    /// One can't be read, or a line is malformed.
    pub fn read(args: &ConvertArgs) -> Result<Self> {
        let list = args.prefetch_list.as_ref().map(|path| {
            list::parse(&read(path, LIST_MAX)?).with_context(|| format!("prefetch list {}", path.display()))
        });
        let traces = args
            .trace
            .iter()
            .map(|path| parse_trace(&read(path, TRACE_MAX)?).with_context(|| format!("trace {}", path.display())));
        let traces = traces.collect::<Result<Vec<_>>>()?;
        Ok(Self { list: list.transpose()?, trace: (!traces.is_empty()).then(|| traces.concat()) })
    }
}

/// A file of at most `max` bytes; `-` is standard input.
fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(max + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(max + 1).read_to_end(&mut text))
    };
    read.with_context(|| format!("reading {}", path.display()))?;
    if text.len() as u64 > max {
        bail!("{} is larger than {max} bytes", path.display());
    }
    Ok(text)
}

/// The start-up of `image`, by what is `given` or else by the list in its own label. A trace says what the hot blob holds;
/// what only the list names comes after it. With neither, what can be worked out from the image itself, unless the user
/// doesn't want that.
///
/// # Errors
/// The label's list is malformed, a path isn't there and the user is strict, or a layer can't be read again.
pub async fn prepare(
    plan: &Plan,
    image: &PlannedImage,
    layers: &[EditionLayer<'_>],
    args: &ConvertArgs,
    given: &Given,
    progress: &Progress,
) -> Result<Startup> {
    let label = image.config_json["config"]["Labels"][LABEL_PREFETCH].as_str();
    let label = label.map(|text| list::parse(text.as_bytes())).transpose();
    let label = label.with_context(|| format!("{}: label {LABEL_PREFETCH}", image.platform_name()))?;
    let list = given.list.as_ref().or(label.as_ref());
    let guessing = list.is_none() && given.trace.is_none();
    if guessing && args.no_guess {
        return Ok(Startup::default());
    }
    let mut trees = Vec::with_capacity(image.layers.len());
    for layer in layers {
        trees.push(layer.layer.index.tree.unpack()?);
    }
    let files = ImageFiles::merge(trees)?;
    let reader = |layer: &EditionLayer<'_>| SpanReader { blob: layer.blob(plan), layer: Arc::clone(layer.layer) };
    let layers: Vec<_> = layers.iter().map(reader).collect();
    let mut ranges = Vec::new();
    let missing = |what: String| {
        if args.strict {
            bail!("{what} is not in the image ({})", image.platform_name());
        }
        progress.warn(&format!("{what} is not in the image"));
        Ok(())
    };
    let mut absent = BTreeSet::new();
    for Touch { path, range } in given.trace.iter().flatten() {
        match files.resolve(path) {
            Some(file) => ranges.extend(files.bytes(file, range.clone())),
            None if absent.insert(path) => missing(format!("trace: {}", String::from_utf8_lossy(path)))?,
            None => {}
        }
    }
    for Entry { line, path } in list.into_iter().flatten() {
        match files.resolve(path) {
            Some(found) => {
                for file in files.files(found) {
                    ranges.extend(files.bytes(file, 0..files.size(file)));
                }
            }
            None => missing(format!("prefetch list, line {line}: {}", String::from_utf8_lossy(path)))?,
        }
    }
    let mut list: Vec<_> = list.into_iter().flatten().map(|entry| entry.path.clone()).collect();
    if guessing {
        let mut listed = BTreeSet::new();
        for Expected { path, ranges: parts } in guess(&files, &FileReader::new(&layers), &image.config_json).await {
            if let Some(file) = files.resolve(&path) {
                ranges.extend(parts.into_iter().flat_map(|part| files.bytes(file, part)));
            }
            if listed.insert(path.clone()) {
                list.push(path);
            }
        }
        tracing::debug!(files = list.len(), "guessed what the start reads");
    }
    // A guess is large, and much of it may never be read.
    let level = if guessing { HotLevel::Fast } else { HotLevel::Small };
    let hot = hot_blob(plan, image, &layers, ranges, level, args.hot_limit, progress).await?;
    Ok(Startup { list, hot })
}

/// The hot blob of `ranges`, whose layers are numbers among the image's; `None` if there is nothing in it.
async fn hot_blob(
    plan: &Plan,
    image: &PlannedImage,
    layers: &[SpanReader],
    mut ranges: Vec<LayerBytes>,
    level: HotLevel,
    limit: HotLimit,
    progress: &Progress,
) -> Result<Option<HotBlob>> {
    let distinct = image.distinct_layers();
    for LayerBytes { layer, .. } in &mut ranges {
        let digest = image.layers.get(*layer).context("a file outside all layers")?.digest;
        *layer = distinct.iter().position(|known| *known == digest).context("a layer that was not indexed")?;
    }
    // The index has a layer that is in the image twice once.
    let place = |digest: &Digest| image.layers.iter().position(|layer| layer.digest == *digest);
    let layers: Vec<_> = distinct.iter().filter_map(place).map(|layer| layers[layer].clone()).collect();
    let limit = limit.bytes(image.layers.iter().map(|layer| layer.size).sum());
    let copies = level == HotLevel::Fast && plan.repacked().is_some();
    let input = HotInput { layers: &layers, ranges, level, copies, limit };
    let lost = |error: &anyhow::Error| error.downcast_ref::<RegistryError>().is_some_and(RegistryError::is_transient);
    let hot = again(async || hot::pack(&input, &plan.to).await, lost).await?;
    if hot.cut {
        progress.warn(&format!(
            "the start-up's data don't fit --hot-limit ({limit} bytes): what comes last is left to prefetching on demand"
        ));
    }
    Ok(hot.blob.is_some().then_some(hot))
}
