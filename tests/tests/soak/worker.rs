//! A user of the node: pulls images, runs containers that read and write, removes images.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;

use rand::Rng;
use rand::rngs::StdRng;

use crate::images::SoakImage;
use crate::node::{Moment, Node};
use crate::pick;
use crate::tally::{Tally, count};

/// Pulls an image, reads all of it, and removes it.
pub fn warm_up(node: &Node, image: &SoakImage) {
    node.pull(&image.reference).unwrap();
    let files: Vec<_> = image.files.iter().collect();
    let said = read(node, image, &files).unwrap();
    assert_eq!(said, expected(&files), "{}", node.last_words());
    node.containerd.remove_image(&image.reference).unwrap();
}

/// Works until told to stop.
pub fn work(node: &Node, images: &[SoakImage], mut random: StdRng, stop: &AtomicBool, tally: &Tally) {
    while !stop.load(SeqCst) {
        let image = pick(images, &mut random);
        if random.random_ratio(1, 12) {
            remove(node, image, tally);
        } else if is_pulled(node, image, tally) {
            run(node, image, &mut random, tally);
        }
    }
}

/// Pulls the image if it isn't there; tells whether it is.
fn is_pulled(node: &Node, image: &SoakImage, tally: &Tally) -> bool {
    if *image.pulled.read().unwrap() {
        return true;
    }
    let mut pulled = image.pulled.write().unwrap();
    if *pulled {
        return true;
    }
    let then = node.now();
    match node.pull(&image.reference) {
        Ok(()) => {
            count(&tally.pulls);
            *pulled = true;
        }
        Err(error) => {
            let excused = node.network_may_have_failed_since(then)
                || node.may_have_failed_since(then)
                || node.is_cut_off(&error, then);
            assert!(excused, "pull of {}: {error}\n{}", image.name, node.last_words());
            count(&tally.failed_pulls);
        }
    }
    *pulled
}

fn remove(node: &Node, image: &SoakImage, tally: &Tally) {
    let mut pulled = image.pulled.write().unwrap();
    if !std::mem::take(&mut *pulled) {
        return;
    }
    let then = node.now();
    match node.containerd.remove_image(&image.reference) {
        Ok(()) => count(&tally.removals),
        Err(error) => excuse(node, then, &format!("removal of {}: {error:#}", image.name), tally),
    }
}

fn run(node: &Node, image: &SoakImage, random: &mut StdRng, tally: &Tally) {
    let pulled = image.pulled.read().unwrap();
    if !*pulled {
        return;
    }
    let files = image.some(random);
    let then = node.now();
    match read(node, image, &files) {
        Ok(said) => {
            let words = || format!("{}\n{}", image.name, node.last_words());
            tally.compare(&said, &expected(&files), &tally.runs, words);
        }
        Err(error) => excuse(node, then, &format!("container of {}: {error:#}", image.name), tally),
    }
}

/// Panics unless what went wrong since `then` may have.
fn excuse(node: &Node, then: Moment, what: &str, tally: &Tally) {
    assert!(node.may_have_failed_since(then) || node.is_cut_off(what, then), "{what}\n{}", node.last_words());
    count(&tally.excused);
}

/// Reads files in a container, which also writes, and gives their sums.
fn read(node: &Node, image: &SoakImage, files: &[&(String, String)]) -> anyhow::Result<String> {
    let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    let script = format!(
        "set -e; head -c 200000 /dev/zero > /mine; sha256sum {} | cut -d' ' -f1 > /sums; cat /sums; test $(wc -l < \
         /sums) = {}; test $(wc -c < /mine) = 200000",
        paths.join(" "),
        paths.len()
    );
    node.containerd.run("clipper", &image.reference, &node.id("run"), &["sh", "-c", &script])
}

fn expected(files: &[&(String, String)]) -> String {
    files.iter().map(|(_, sum)| format!("{sum}\n")).collect()
}
