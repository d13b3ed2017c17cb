//! The images that a conversion publishes: which layers they have, and under which tags.
use super::Layers;
use super::layer::IndexedLayer;
use super::plan::{Plan, PlannedImage};
use crate::cli::{ConvertArgs, LayerFormat, Mode};
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use clipper_format::chunked::Compression;
use clipper_registry::{Blob, Reference};
use std::sync::Arc;

/// The suffix of an accelerated image's tag, unless the user wants another.
pub const TAG_SUFFIX: &str = "_accelerated";
/// What comes before the suffix of full mode's second tag.
pub const BASE_LAYERS: &str = "_containerd";
/// zstd level in full mode. Of the benchmark's Node.js image levels 3, 4, 5 and 6 made 103, 102, 100 and 98 % of its gzip
/// layers, with 11, 13, 17 and 20 s of processor time; small frames at 6 and the others at 5 make 99.9 %.
const ZSTD_LEVEL: u8 = 5;
/// gzip level in full mode: what docker and gzip take.
const GZIP_LEVEL: u8 = 6;

/// One of the images.
pub struct Edition {
    /// Its reference.
    pub target: Reference,
    /// How its layers are compressed; `None` for the base image's own.
    pub repacked: Option<Compression>,
}

/// A layer of an edition.
pub struct EditionLayer<'a> {
    /// The base image's layer.
    pub base: Digest,
    /// Its index.
    pub layer: &'a Arc<IndexedLayer>,
    /// Annotations that its descriptor gets.
    pub annotations: &'a [(String, String)],
}

impl EditionLayer<'_> {
    /// Its blob, where it can be read while the image is being converted.
    pub fn blob(&self, plan: &Plan) -> Blob {
        let index = &self.layer.index;
        match plan.layers.get(&index.digest) {
            Some(input) => input.blob.clone(),
            None => plan.to.blob(index.digest, index.source_size),
        }
    }
}

impl Edition {
    /// What `args` ask for, the image that `target` names first.
    pub fn of(args: &ConvertArgs, target: &Reference) -> Result<Vec<Self>> {
        let own = Self { target: target.clone(), repacked: compression(args)? };
        if args.mode == Mode::IndexOnly {
            return Ok(vec![own]);
        }
        let tag = target.tag().unwrap_or_default();
        let (tag, suffix) = match tag.strip_suffix(&args.tag_suffix) {
            Some(tag) => (tag, args.tag_suffix.as_str()),
            None => (tag, TAG_SUFFIX),
        };
        let tag = format!("{tag}{BASE_LAYERS}{suffix}");
        let base = target.with_tag(&tag).with_context(|| format!("the tag of the second image, {tag}"))?;
        Ok(vec![own, Self { target: base, repacked: None }])
    }

    /// The mode, as the manifest's annotation tells it.
    pub fn mode(&self) -> &'static str {
        if self.repacked.is_some() { "full" } else { "index-only" }
    }

    /// The layers of `image`, bottom first; `None` if one of them can't be indexed as it is.
    pub fn layers<'a>(&self, image: &PlannedImage, layers: &'a Layers) -> Option<Vec<EditionLayer<'a>>> {
        let layer = |base: Digest| match self.repacked {
            Some(_) => layers.repacked.get(&base).map(|repacked| EditionLayer {
                base,
                layer: &repacked.layer,
                annotations: &repacked.annotations,
            }),
            None => layers.indexed.get(&base).map(|layer| EditionLayer { base, layer, annotations: &[] }),
        };
        image.layers.iter().map(|blob| layer(blob.digest)).collect()
    }
}

/// How layers are to be repacked, if at all.
fn compression(args: &ConvertArgs) -> Result<Option<Compression>> {
    let default = if args.compression == LayerFormat::Zstd { ZSTD_LEVEL } else { GZIP_LEVEL };
    let level = args.level.unwrap_or(default);
    Ok(match (args.mode, args.compression) {
        (Mode::IndexOnly, _) if args.level.is_some() => bail!("--level only means something with --mode full"),
        (Mode::IndexOnly, LayerFormat::Gzip) => bail!("--compression only means something with --mode full"),
        (Mode::IndexOnly, LayerFormat::Zstd) => None,
        (Mode::Full, LayerFormat::Zstd) => Some(Compression::Zstd(level.into())),
        (Mode::Full, LayerFormat::Gzip) if level > 9 => bail!("--level {level}: gzip's levels are 1 to 9"),
        (Mode::Full, LayerFormat::Gzip) => Some(Compression::Gzip(level.into())),
    })
}

/// The compression as the manifest's annotation tells it.
pub fn name(compression: Compression) -> String {
    match compression {
        Compression::Zstd(level) => format!("zstd:{level}"),
        Compression::Gzip(level) => format!("gzip:{level}"),
    }
}
