//! What was measured, in words: the section of benches/RESULTS.md.

use clipper_benches::figures::Figures;
use clipper_benches::system::Driver;

use crate::crowd::Crowd;
use crate::fill::Filling;
use crate::measured::{Measured, Part};
use crate::memory::Memory;
use crate::parity::Parity;
use crate::uncached::Uncached;
use crate::works::Work;

/// The whole section.
pub fn results(all: &Measured) -> String {
    let mut text = String::from(
        "## A node at work\n\nEach figure is a ratio to a limit or a peer measured in the same run, for both drivers. What is \
         read is compared with what containerd's own unpacker makes of the image, or with what is known to be in it.\n",
    );
    text += &part(&all.parity, |images| parity(images));
    text += &part(&all.uncached, uncached);
    text += &part(&all.fill, fill);
    text += &part(&all.memory, memory);
    text += &part(&all.crowd, crowd);
    text
}

fn part<T>(part: &Option<Part<T>>, write: impl FnOnce(&T) -> String) -> String {
    part.as_ref().map_or_else(String::new, |part| format!("{}\n{}\n", write(&part.figures), part.circumstances))
}

fn parity(images: &[Parity]) -> String {
    let mut text = String::from(
        "\n### Warm, against overlayfs on ext4\n\nThe roots of containers: Clipper's, filled, and the same image unpacked by \
         containerd, in turns, with everything in the page cache. Times as multiples of overlayfs's in the same round; median \
         (lowest–highest). Target for the geometric mean: 1.05 with `erofs`, 1.3 with `fuse`. Work: lstat of every path; open, \
         read and close of every file up to 64 KiB; reading files from 1 MiB on from start to end; 100 000 reads of 4 KiB at \
         random places of these; mapping these and touching every page; listing every directory.\n\n| |",
    );
    let heads: Vec<&str> = Work::ALL.iter().map(|work| work.name()).collect();
    text += &format!(" {} | geometric mean |\n|---|{}---|\n", heads.join(" | "), "---|".repeat(Work::ALL.len()));
    for image in images {
        let (paths, small, large) = image.extent;
        let rounds = image.plain(Work::Stat).0.len();
        let plain: Vec<String> =
            Work::ALL.iter().map(|work| format!("{:.0} ms", image.plain(*work).median() * 1e3)).collect();
        text += &format!(
            "| {}: {paths} paths, {small} small files, {large} MB of large ones; {rounds} rounds; overlayfs | {} | |\n",
            image.image,
            plain.join(" | ")
        );
        for driver in Driver::ALL {
            let ratios: Vec<String> = Work::ALL.iter().map(|work| image.ratios(driver, *work).text(2)).collect();
            text +=
                &format!("| {}, `{driver}` | {} | **{:.2}** |\n", image.image, ratios.join(" | "), image.mean(driver));
        }
    }
    text
}

fn uncached(reads: &Uncached) -> String {
    let way = reads.link;
    let mut text = format!(
        "\n### A read of 4 KiB that isn't here\n\nSingle reads of {}, each of a span that nothing has fetched, {way}. The limit: the way there and back ({} ms), the span's bytes at the link's rate, and \
         decoding and verifying it, measured for each. After a pause the link lets 256 KB through at once, so that a read \
         may take less. Targets: 1.3 (p50), 3 (p99). The bare GET fetches the same bytes over an \
         open connection by the same way, registry and all; decoding is added to it.\n\n\
         | | reads | p50, ms | p99, ms | limit, p50, ms | of the limit, p50 | p99 | of a bare GET, p50 | p99 |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        reads.image,
        reads.link.round_trip() * 1e3
    );
    for driver in Driver::ALL {
        let (seconds, ratios) = (reads.figures(driver, |one| one.seconds * 1e3), reads.ratios(driver));
        let (bare, limits) = (reads.bare_ratios(driver), reads.limits(driver));
        text += &format!(
            "| `{driver}` | {} | {:.1} | {:.1} | {:.1} | **{:.2}** | **{:.2}** | {:.2} | {:.2} |\n",
            ratios.0.len(),
            seconds.median(),
            seconds.percentile(99.0),
            limits.median() * 1e3,
            ratios.median(),
            ratios.percentile(99.0),
            bare.median(),
            bare.percentile(99.0),
        );
    }
    text
}

fn fill(filling: &Filling) -> String {
    let way = filling.link;
    let limit = filling.limit();
    let mut text = format!(
        "\n### Background fill\n\nAll {:.0} MB of {}, {way}: {limit:.2} s on the link. By \
         design fill waits for 3 s in which nobody reads; counted from the first request for a layer that isn't in it, counted \
         from the mount it is. Target: 1.15.\n\n\
         | | seconds from the first request | of the limit | from the mount | of the limit | on the wire, of the image |\n\
         |---|---|---|---|---|---|\n",
        filling.bytes as f64 / 1e6,
        filling.image
    );
    let over = |figures: Figures| Figures(figures.0.iter().map(|seconds| seconds / limit).collect());
    for driver in Driver::ALL {
        let (request, mount) =
            (filling.figures(driver, |run| run.from_request), filling.figures(driver, |run| run.from_mount));
        let wire = filling.figures(driver, |run| run.wire_bytes as f64 / filling.bytes as f64);
        text += &format!(
            "| `{driver}` | {} | **{}** | {} | {} | {} |\n",
            request.text(2),
            over(request).text(3),
            mount.text(2),
            over(mount).text(3),
            wire.text(3)
        );
    }
    text
}

fn memory(memory: &Memory) -> String {
    let mut text = format!(
        "\n### Memory\n\nThe daemon with {} images mounted, {:.1} GB unpacked and {} inodes in all their layers, everything \
         filled and 6.5 GB of it read. Target: 100 MB.\n\n\
         | | at most (VmHWM), MB | filled and read (VmRSS), MB | 15 s later, MB |\n|---|---|---|---|\n",
        memory.images,
        memory.unpacked as f64 / 1e9,
        memory.inodes
    );
    for daemon in &memory.daemons {
        let [peak, filled, idle] = [daemon.peak, daemon.filled, daemon.idle].map(|kib| kib as f64 * 1024.0 / 1e6);
        text += &format!("| `{}` | **{peak:.0}** | **{filled:.0}** | {idle:.0} |\n", daemon.driver);
    }
    text
}

fn crowd(crowd: &Crowd) -> String {
    let way = crowd.link;
    let mut text = format!(
        "\n### Many containers at once\n\n{} images are pulled at once onto an empty node, and as soon as one is there, its \
         containers start at once, {} in all; each reads all of its image's files, every second one backwards, and prints a \
         checksum. {way}. Targets: no failure; bytes of bodies at most 1.05 of those \
         without what had arrived before.\n\n\
         | | failures | seconds | fetched, MB | of what is needed | on the wire, MB |\n|---|---|---|---|---|---|\n",
        crowd.images, crowd.containers
    );
    for run in &crowd.runs {
        text += &format!(
            "| `{}` | **{}** | {:.1} | {:.1} | **{:.3}** | {:.1} |\n",
            run.driver,
            run.failures,
            run.seconds,
            run.fetched as f64 / 1e6,
            run.fetched as f64 / run.distinct as f64,
            run.wire_bytes as f64 / 1e6
        );
    }
    text
}
