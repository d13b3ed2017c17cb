//! What is converted: gzip layers of a cached image as an image of their own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clipper_tests::layout::{Compression, Image, Layer, Layout};
use clipper_tests::registry::cached_image;
use clipper_tests::scratch::Scratch;
use serde_json::Value;

/// An image in a layout of its own.
pub struct Subject {
    /// Its name in reports.
    pub name: String,
    /// The files of its layers.
    pub blobs: Vec<PathBuf>,
    /// Their bytes.
    pub size: u64,
    /// How `clipper` is told of it.
    pub reference: String,
    /// What the layout held before any conversion.
    before: (Vec<u8>, BTreeSet<OsString>),
    scratch: Scratch,
}

impl Subject {
    /// The image's big layers, one by one.
    pub fn layers(image: &str, least: u64) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for (number, layer) in gzip_layers(image)?.0 {
            if layer.descriptor["size"].as_u64().is_some_and(|size| size >= least * 1_000_000) {
                let name = format!("{image}, layer {number}");
                found.push(Self::new(image, name, Image { layers: vec![layer], ..Image::default() })?);
            }
        }
        Ok(found)
    }

    /// All gzip layers of the image, with its configuration: what its start reads is guessed.
    pub fn whole(image: &str) -> Result<Self> {
        let (layers, config) = gzip_layers(image)?;
        let layers = layers.into_iter().map(|(_, layer)| layer).collect();
        Self::new(image, image.to_owned(), Image { layers, config, architecture: None })
    }

    /// The same with layers of one zstd frame each, compressed at this level.
    pub fn zstd(image: &str, level: u8) -> Result<Self> {
        let (dir, scratch) = (cached_image(image)?, Scratch::new("recompressed")?);
        let (mut layers, config) = gzip_layers(image)?;
        let layout = Layout::create(scratch.path())?;
        for (_, layer) in &mut layers {
            let blob = dir.join("blobs/sha256").join(&digest_of(layer)?[7..]);
            let how = Compression::Zstd(format!("gzip -dc | zstd -q -{level} -T0 -c"));
            let packed = layout.layer(&how, |out| Ok(std::io::copy(&mut File::open(blob)?, out).map(drop)?))?;
            layer.descriptor = packed.descriptor;
        }
        let layers = layers.into_iter().map(|(_, layer)| layer).collect();
        let content = Image { layers, config, architecture: None };
        Self::of(scratch.path(), format!("{image}, zstd -{level}"), content)
    }

    fn new(image: &str, name: String, content: Image) -> Result<Self> {
        Self::of(&cached_image(image)?, name, content)
    }

    /// An image whose layers are in the layout `dir`.
    fn of(dir: &Path, name: String, content: Image) -> Result<Self> {
        let scratch = Scratch::new("convert")?;
        let layout = Layout::create(scratch.path())?;
        let (mut blobs, mut size) = (Vec::new(), 0);
        for layer in &content.layers {
            let digest = digest_of(layer)?;
            fs::copy(dir.join("blobs/sha256").join(&digest[7..]), layout.path_of(digest))?;
            blobs.push(layout.path_of(digest));
            size += layer.descriptor["size"].as_u64().unwrap_or(0);
        }
        layout.tag("1", &layout.image(&content)?)?;
        let reference = format!("oci:{}:1", scratch.path().display());
        let before = (fs::read(scratch.join("index.json"))?, names(&scratch.join("blobs/sha256"))?);
        Ok(Self { name, blobs, size, reference, before, scratch })
    }

    /// Deletes what a conversion has left, so that the next one has as much to write.
    pub fn restore(&self) -> Result<()> {
        let (index, kept) = &self.before;
        fs::write(self.scratch.join("index.json"), index)?;
        let blobs = self.scratch.join("blobs/sha256");
        for name in names(&blobs)?.difference(kept) {
            fs::remove_file(blobs.join(name))?;
        }
        Ok(())
    }
}

fn digest_of(layer: &Layer) -> Result<&str> {
    layer.descriptor["digest"].as_str().context("no digest")
}

/// The image's gzip layers, each with its number among all, and how it is run.
fn gzip_layers(image: &str) -> Result<(Vec<(usize, Layer)>, Value)> {
    let dir = cached_image(image)?;
    let read = |digest: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(dir.join("blobs/sha256").join(&digest[7..]))?)?)
    };
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json"))?)?;
    let manifest = read(index["manifests"][0]["digest"].as_str().context("an empty layout")?)?;
    let config = read(manifest["config"]["digest"].as_str().context("no config")?)?;
    let descriptors = manifest["layers"].as_array().into_iter().flatten();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
    let layers = descriptors.zip(diff_ids).map(|(descriptor, diff_id)| Layer {
        descriptor: descriptor.clone(),
        diff_id: diff_id.as_str().unwrap_or_default().to_owned(),
    });
    let gzip = |layer: &Layer| layer.descriptor["mediaType"].as_str().is_some_and(|kind| kind.ends_with("gzip"));
    Ok((layers.enumerate().filter(|(_, layer)| gzip(layer)).collect(), config["config"].clone()))
}

fn names(dir: &Path) -> Result<BTreeSet<OsString>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
}
