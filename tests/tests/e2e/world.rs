//! What the tests share: one registry with the test images in it, ordinary and accelerated.

use std::sync::OnceLock;

use clipper_tests::clipper::convert;
use clipper_tests::corpus;
use clipper_tests::layout::Layout;
use clipper_tests::registry::Registry;
use clipper_tests::scratch::Scratch;
use serde_json::Value;

/// The registry and what is in it. Tests only add to it; those that damage something have a registry of their own.
pub struct World {
    pub registry: Registry,
    /// A Debian userland in six layers.
    pub small: Converted,
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
        let busybox = Converted::from(registry.push_cached("busybox").unwrap());
        World { registry, small, busybox }
    })
}

/// The awkward images, each converted.
pub fn awkward() -> &'static [Converted] {
    static AWKWARD: OnceLock<Vec<Converted>> = OnceLock::new();
    AWKWARD.get_or_init(|| {
        let scratch = Scratch::new("corpus").unwrap();
        let layout = Layout::create(scratch.path()).unwrap();
        let push = |image: corpus::ImageRecipe| {
            image.write(&layout).unwrap();
            let source = format!("oci:{}:{}", scratch.path().display(), image.name);
            Converted::from(world().registry.push(&source, &format!("awkward/{}:1", image.name)).unwrap())
        };
        corpus::images().into_iter().map(push).collect()
    })
}
