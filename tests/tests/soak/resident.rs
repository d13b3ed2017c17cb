//! A container that lives through everything but the death of the supervisor, and reads all the while.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::images::SoakImage;
use crate::node::{Moment, Node};
use crate::tally::{Tally, count};

/// Keeps a container of an image of its own going until told to stop; what it reads is compared.
pub fn live(node: &Node, image: &SoakImage, mut random: StdRng, stop: &AtomicBool, tally: &Tally) {
    // Its name, and when it began.
    let mut resident: Option<(String, Moment)> = None;
    while !stop.load(SeqCst) {
        let pulled = image.pulled.read().unwrap();
        if !*pulled {
            drop(pulled);
            std::thread::sleep(Duration::from_millis(100));
            continue;
        }
        // Its files are gone for ever with the supervisor that served them.
        if let Some((id, _)) = resident.take_if(|(_, born)| node.may_have_failed_since(*born)) {
            drop(pulled);
            node.wait("a supervisor", Duration::from_secs(60), || node.supervisors.load(SeqCst).is_multiple_of(2));
            node.containerd.remove_container(&id).unwrap();
            continue;
        }
        let then = node.now();
        let done = match &resident {
            None => {
                let new = node.id("resident");
                let started = node.containerd.ctr(&[
                    "run",
                    "--detach",
                    "--net-host",
                    "--snapshotter",
                    "clipper",
                    &image.reference,
                    &new,
                    "sleep",
                    "100000",
                ]);
                started.map(|_| resident = Some((new, then)))
            }
            Some((id, _)) => {
                let files = image.some(&mut random);
                let paths: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
                let exec = node.id("exec");
                node.containerd.exec(id, &exec, &[&["sha256sum"][..], &paths].concat()).map(|said| {
                    let expected: String = files.iter().map(|(path, sum)| format!("{sum}  {path}\n")).collect();
                    tally.compare(&said, &expected, &tally.resident_reads, || node.last_words());
                })
            }
        };
        // Its image may go, it stays; but not while it is being read from here, to tell its errors from others.
        drop(pulled);
        if let Err(error) = done {
            let cut_off = resident.is_none() && node.is_cut_off(&format!("{error:#}"), then);
            let born = resident.as_ref().map_or(then, |(_, born)| *born);
            assert!(
                cut_off || node.may_have_failed_since(born),
                "the resident container: {error:#}\n{}",
                node.last_words()
            );
            count(&tally.excused);
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
    }
    if let Some((id, _)) = resident {
        node.containerd.remove_container(&id).unwrap();
    }
}
