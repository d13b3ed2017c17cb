//! What the tests share: one registry with the test images in it, ordinary and accelerated.

use std::sync::OnceLock;

use clipper_tests::clipper::{convert, convert_with};
use clipper_tests::corpus;
use clipper_tests::layout::Layout;
use clipper_tests::registry::Registry;
use clipper_tests::scratch::Scratch;
use clipper_tests::tarball::Entry;
use serde_json::Value;

/// The registry and what is in it. Tests only add to it; those that damage something have a registry of their own.
pub struct World {
    pub registry: Registry,
    /// A Debian userland in six layers.
    pub small: Converted,
    /// The same with layers compressed as zstd, of one frame each.
    pub small_zstd: Converted,
    /// A static busybox in one layer; also the sandbox image.
    pub busybox: Converted,
}

/// An image, its accelerated twin, and what the conversion reported.
pub struct Converted {
    pub base: String,
    pub accelerated: String,
    pub report: Value,
}

impl Converted {
    /// Converts an image of the registry.
    pub fn from(base: String) -> Self {
        let (accelerated, report) = convert(&base).unwrap();
        Self { base, accelerated, report }
    }

    /// The digests of the layers, bottom first.
    pub fn layers(&self) -> Vec<String> {
        strings(&self.report["images"][0]["layers"])
    }
}

/// The strings of a JSON array.
pub fn strings(array: &Value) -> Vec<String> {
    array.as_array().into_iter().flatten().filter_map(|value| value.as_str().map(String::from)).collect()
}

/// The world, made by whoever asks first.
pub fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let registry = Registry::start().unwrap();
        let small = Converted::from(registry.push_cached("small").unwrap());
        let source = format!("docker://{}", small.base);
        let small_zstd = Converted::from(registry.push_zstd(&source, "small-zstd:latest").unwrap());
        let busybox = Converted::from(registry.push_cached("busybox").unwrap());
        World { registry, small, small_zstd, busybox }
    })
}

/// The image of `image` all of whose layers but the topmost `converted` are ordinary, as if they came from elsewhere.
/// It lies in the same repository; gives its reference.
pub fn converted_above(registry: &Registry, image: &Converted, converted: usize) -> String {
    let (index, _) = registry.manifest(&image.accelerated).unwrap();
    let (repository, tag) = image.accelerated.rsplit_once(':').unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    let (mut manifest, _) = registry.manifest(&format!("{repository}@{digest}")).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    let ordinary = layers.len() - converted;
    for layer in &mut layers[..ordinary] {
        layer.as_object_mut().unwrap().remove("annotations").expect("a converted layer");
    }
    let reference = format!("{repository}:{tag}_above_{ordinary}");
    registry.put_manifest(&reference, &manifest).unwrap();
    reference
}

/// The awkward images, each converted.
pub fn awkward() -> &'static [Converted] {
    static AWKWARD: OnceLock<Vec<Converted>> = OnceLock::new();
    AWKWARD.get_or_init(|| converted("awkward", corpus::images()))
}

/// The awkward images in layers of one zstd frame each, of every make; spans are so small that frames are entered.
pub fn awkward_zstd() -> Vec<Converted> {
    let mut makes = ["zstd", "zstd-1", "zstd-9", "zstd-long", "zstd-threads", "zstd-19"].into_iter().cycle();
    let mut images = corpus::images();
    for layer in images.iter_mut().flat_map(|image| &mut image.layers) {
        layer.compression = makes.next().unwrap();
    }
    let convert = |base: String| {
        let (accelerated, report) = convert_with(&base, &["--span-size", "64K"]).unwrap();
        Converted { base, accelerated, report }
    };
    pushed("awkward-zstd", images).into_iter().map(convert).collect()
}

/// The awkward images with one more layer, which is converted while they aren't: their references, and the digest of
/// the layer.
pub fn awkward_below() -> Vec<(Converted, String)> {
    let mut images = corpus::images();
    for image in &mut images {
        let entries = vec![Entry::dir("converted"), Entry::file("converted/file", corpus::noise(11, 30_000))];
        image.layers.push(corpus::LayerRecipe { entries, compression: "gzip" });
    }
    let below = |mut image: Converted| {
        let top = image.layers().pop().unwrap();
        image.accelerated = converted_above(&world().registry, &image, 1);
        (image, top)
    };
    converted("awkward-below", images).into_iter().map(below).collect()
}

/// Images converted in repositories below `folder`.
fn converted(folder: &str, images: Vec<corpus::ImageRecipe>) -> Vec<Converted> {
    pushed(folder, images).into_iter().map(Converted::from).collect()
}

/// Images in repositories below `folder`: their references.
fn pushed(folder: &str, images: Vec<corpus::ImageRecipe>) -> Vec<String> {
    let scratch = Scratch::new("corpus").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let push = |image: corpus::ImageRecipe| {
        image.write(&layout).unwrap();
        let source = format!("oci:{}:{}", scratch.path().display(), image.name);
        world().registry.push(&source, &format!("{folder}/{}:1", image.name)).unwrap()
    };
    images.into_iter().map(push).collect()
}
