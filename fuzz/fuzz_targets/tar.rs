//! The tar walker over hostile layers, in pieces of varying length: the result must not depend on how they are cut.
#![no_main]
use clipper_format::erofs;
use clipper_format::merge::merge;
use clipper_format::tar::{LayerWalker, Limits};
use clipper_format::tree::Tree;
use libfuzzer_sys::fuzz_target;

fn walk(data: &[u8], piece: usize) -> Option<Tree> {
    let mut walker = LayerWalker::new(Limits::default());
    for part in data.chunks(piece) {
        walker.push(part).ok()?;
    }
    walker.finish().ok()
}

fuzz_target!(|data: &[u8]| {
    let whole = walk(data, usize::MAX);
    let piece = data.first().map_or(1, |b| usize::from(*b) + 1);
    assert_eq!(walk(data, piece), whole);
    let Some(tree) = whole else { return };
    if let Ok(image) = erofs::write(&tree) {
        erofs::Image::parse(image.into()).and_then(|i| i.to_tree()).expect("own image");
    }
    let _ = merge(vec![tree.clone(), tree], false);
});
