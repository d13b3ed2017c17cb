//! Many containers of several images at once: none fails, each reads its own bytes, and nothing is fetched twice.

use clipper_tests::clipper::convert;
use clipper_tests::fetched::Fetched;
use clipper_tests::filler::Filler;
use clipper_tests::layout::{Compression, Image, Layout};
use clipper_tests::registry::cached_image;
use clipper_tests::scratch::Scratch;

use crate::run::Node;
use crate::world::world;

/// Images, and containers of each.
const IMAGES: u64 = 4;
const CONTAINERS: usize = 5;

#[test]
fn containers_that_start_at_once_share_what_is_fetched() {
    let scratch = Scratch::new("crowd").unwrap();
    let layout = Layout::create(scratch.path()).unwrap();
    let (base, config) = layout.adopt(&cached_image("busybox").unwrap()).unwrap();
    // Small enough for a reader who begins at the end to wait for the GET of one who began at the start.
    let images = (0..IMAGES).map(|seed| {
        let filler = Filler::new(seed, 60, 50_000);
        let mut layers = base.clone();
        layers.push(filler.layer(&layout, &Compression::gzip()).unwrap());
        let manifest = layout.image(&Image { layers, config: config.clone(), ..Image::default() }).unwrap();
        layout.tag(&seed.to_string(), &manifest).unwrap();
        let source = format!("oci:{}:{seed}", scratch.path().display());
        let base = world().registry.push(&source, &format!("crowd/{seed}:1")).unwrap();
        (convert(&base).unwrap().0, [filler.sha256(false), filler.sha256(true)])
    });
    let images: Vec<_> = images.collect();
    let node = Node::new();
    std::thread::scope(|scope| {
        for (number, (reference, sums)) in images.iter().enumerate() {
            let (node, image) = (&node, node.proxy.by_way(reference));
            scope.spawn(move || {
                node.pull(&image);
                std::thread::scope(|scope| {
                    for container in 0..CONTAINERS {
                        let (image, backwards) = (&image, container % 2 == 1);
                        scope.spawn(move || {
                            let (id, sort) =
                                (format!("c{number}-{container}"), if backwards { "sort -r" } else { "sort" });
                            let script = format!("find /data -type f | {sort} | xargs cat | sha256sum");
                            let said = node.containerd.run("clipper", image, &id, &["sh", "-c", &script]).unwrap();
                            assert_eq!(said, format!("{}  -\n", sums[usize::from(backwards)]), "{id}");
                        });
                    }
                });
            });
        }
    });
    let fetched = Fetched::of(&node.proxy.log());
    assert!(fetched.ratio() <= 1.05, "{fetched:?}: {:?}", node.proxy.log());
}
