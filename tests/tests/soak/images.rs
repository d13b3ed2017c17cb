//! What is run: images of every kind, and what is in them.

use std::sync::RwLock;

use clipper_tests::clipper::{convert, convert_with};
use clipper_tests::filler::Filler;
use clipper_tests::layout::{Compression, Image, Layer, Layout, hex_digest};
use clipper_tests::proxy::Proxy;
use clipper_tests::registry::{Registry, cached_image};
use clipper_tests::scratch::Scratch;
use rand::Rng;
use rand::rngs::StdRng;

/// Files of an image: together more than a third of the cache.
const FILES: usize = 60;
const FILE_LEN: usize = 300 << 10;

/// An image and its truth.
pub struct SoakImage {
    /// Its reference, by way of the proxy.
    pub reference: String,
    /// The registry's tag, for messages.
    pub name: &'static str,
    /// Paths and SHA-256 of its files.
    pub files: Vec<(String, String)>,
    /// Whether it is pulled. Whoever runs it reads; whoever pulls or removes it writes.
    pub pulled: RwLock<bool>,
}

impl SoakImage {
    /// Some of its files.
    pub fn some(&self, random: &mut StdRng) -> Vec<&(String, String)> {
        (0..random.random_range(1..=12)).map(|_| &self.files[random.random_range(0..self.files.len())]).collect()
    }
}

/// Makes and converts them: gzip and zstd layers of one frame described, layers repacked, and an ordinary image.
pub fn make(registry: &Registry, proxy: &Proxy) -> Vec<SoakImage> {
    let scratch = Scratch::new("soak-images").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let (busybox, config) = layout.adopt(&cached_image("busybox").unwrap()).unwrap();
    let push = |name: &'static str, fillers: &[(&Filler, &str)], how: &str| {
        let layer = |(filler, dir): &(&Filler, &str)| -> Layer {
            filler.layer_in(dir, &layout, &Compression::by_name(how).unwrap()).unwrap()
        };
        let layers = busybox.iter().cloned().chain(fillers.iter().map(layer)).collect();
        let image = layout.image(&Image { layers, config: config.clone(), ..Image::default() }).unwrap();
        layout.tag(name, &image).unwrap();
        registry.push_as_is(&format!("oci:{}:{name}", scratch.path().display()), &format!("soak/{name}:1")).unwrap()
    };
    let image = |name: &'static str, reference: &str, fillers: &[(&Filler, &str)]| SoakImage {
        reference: proxy.by_way(reference),
        name,
        files: fillers.iter().flat_map(|(filler, dir)| truth(filler, dir)).collect(),
        pulled: RwLock::new(false),
    };
    let [one, two, three, four, shared] = [1, 2, 3, 4, 5].map(|seed| Filler::new(seed, FILES, FILE_LEN));
    let (gzip, zstd) = ([(&one, "data"), (&shared, "shared")], [(&two, "data")]);
    let (full, plain) = ([(&three, "data"), (&shared, "shared")], [(&four, "data")]);
    vec![
        image("gzip", &convert(&push("gzip", &gzip, "gzip")).unwrap().0, &gzip),
        image("zstd", &convert(&push("zstd", &zstd, "zstd")).unwrap().0, &zstd),
        image("full", &convert_with(&push("full", &full, "gzip"), &["--mode", "full"]).unwrap().0, &full),
        image("plain", &push("plain", &plain, "gzip"), &plain),
    ]
}

fn truth(filler: &Filler, dir: &str) -> Vec<(String, String)> {
    let path = |number| filler.path(number).replacen("data", dir, 1);
    let sum = |number| hex_digest(&filler.content(number)).trim_start_matches("sha256:").to_owned();
    (0..filler.count()).map(|number| (format!("/{}", path(number)), sum(number))).collect()
}
