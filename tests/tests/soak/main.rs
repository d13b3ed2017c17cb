//! A node that is given no rest: random images, containers, kills of either process, network faults, evictions and
//! removals, for `CLIPPER_SOAK_SECONDS` (120). At the end every byte that was read was right, and nothing is left over.

mod chaos;
mod images;
mod leftovers;
mod node;
mod resident;
mod tally;
mod worker;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use images::SoakImage;
use leftovers::Leftovers;
use node::Node;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tally::Tally;

/// Threads that start containers.
const WORKERS: u64 = 3;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn a_node_without_rest() {
    let length = Duration::from_secs(number("CLIPPER_SOAK_SECONDS").unwrap_or(120));
    let seed = number("CLIPPER_SOAK_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    eprintln!("soaking for {length:?} with CLIPPER_SOAK_SEED={seed}");
    let node = Node::start();
    let images = images::make(&node.registry, &node.proxy);
    // What a node keeps once it has done everything once is no leak.
    for image in &images {
        worker::warm_up(&node, image);
    }
    let before = Leftovers::of(&node, &images);

    let (stop, tally) = (AtomicBool::new(false), Tally::default());
    let generator = |number: u64| StdRng::seed_from_u64(seed.wrapping_mul(1000) + number);
    thread::scope(|scope| {
        let (node, images, stop, tally) = (&node, &images[..], &stop, &tally);
        for number in 0..WORKERS {
            let random = generator(number);
            spawn(scope, stop, move || worker::work(node, images, random, stop, tally));
        }
        let random = generator(WORKERS);
        spawn(scope, stop, move || resident::live(node, &images[0], random, stop, tally));
        let random = generator(WORKERS + 1);
        spawn(scope, stop, move || chaos::rage(node, random, length, stop, tally));
        let begun = Instant::now();
        while begun.elapsed() < length && !stop.load(SeqCst) {
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, SeqCst);
    });
    eprintln!("{tally}");
    tally.assert_all_happened(length);
    Leftovers::of(&node, &images).assert_none_since(&before, &node);
}

/// Does `work` in a thread. Should it panic, the others are told to end as well.
fn spawn<'s>(scope: &'s thread::Scope<'s, '_>, stop: &'s AtomicBool, work: impl FnOnce() + Send + 's) {
    scope.spawn(move || {
        let _ends_all = tally::StopOnPanic(stop);
        work();
    });
}

/// Any of the images.
fn pick<'a>(images: &'a [SoakImage], random: &mut StdRng) -> &'a SoakImage {
    &images[random.random_range(0..images.len())]
}
