//! A cold start: from nothing on the node to a container that answers, over a slow link, with nothing cached.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clipper_tests::clipper::{Snapshotter, clipper_ok, convert_with};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::link::Link;
use clipper_tests::proxy::Proxy;
use clipper_tests::registry::{Registry, free_port};
use serde::{Deserialize, Serialize};

use crate::application::Application;

/// Longest that an application may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// The far end: a registry behind a shaped link, and a proxy that makes it distant as well.
#[derive(Debug)]
pub struct FarRegistry {
    /// Speaks to nodes: on loopback, and so over plain HTTP.
    pub proxy: Proxy,
    /// Speaks to whoever pushes and converts: not shaped in that direction, not delayed.
    pub registry: Registry,
    link: Link,
}

/// What a node runs images with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// containerd as it comes: download all, unpack all, start.
    Overlayfs,
    /// Clipper in index-only mode, nothing known of the start-up.
    IndexUnlisted,
    /// Clipper in index-only mode as it comes: the start-up is worked out by the converter.
    Index,
    /// The same with a hot blob laid out by a recorded start.
    IndexRecorded,
    /// Clipper in full mode as it comes.
    Full,
    /// The same with a hot blob laid out by a recorded start.
    FullRecorded,
}

impl System {
    /// All, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Overlayfs, Self::IndexUnlisted, Self::Index, Self::IndexRecorded, Self::Full, Self::FullRecorded];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::IndexUnlisted => "index-only, no list",
            Self::Index => "index-only",
            Self::IndexRecorded => "index-only, recorded",
            Self::Full => "full",
            Self::FullRecorded => "full, recorded",
        }
    }

    /// Its name on the command line.
    pub fn option(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::IndexUnlisted => "index-unlisted",
            Self::Index => "index",
            Self::IndexRecorded => "index-recorded",
            Self::Full => "full",
            Self::FullRecorded => "full-recorded",
        }
    }

    /// What stands behind the tag of the image that it pulls.
    fn suffix(self) -> &'static str {
        match self {
            Self::Overlayfs => "",
            Self::IndexUnlisted => "_unlisted_accelerated",
            Self::Index => "_accelerated",
            Self::IndexRecorded => "_recorded_accelerated",
            Self::Full => "_full_accelerated",
            Self::FullRecorded => "_recorded_full_accelerated",
        }
    }

    /// What it pulls instead of `image`.
    pub fn reference(self, image: &str) -> String {
        format!("{image}{}", self.suffix())
    }

    /// Makes what it pulls from `image`, with `more` options of `clipper convert`. A recorded one needs the trace.
    pub fn convert(self, image: &str, trace: Option<&Path>, more: &[&str]) -> Result<()> {
        let mut more = [&["--tag-suffix", self.suffix()], more].concat();
        match self {
            Self::Overlayfs => return Ok(()),
            Self::IndexUnlisted => more.push("--no-guess"),
            Self::Index | Self::IndexRecorded => {}
            Self::Full | Self::FullRecorded => more.extend(["--mode", "full"]),
        }
        let trace = trace.map(|path| path.display().to_string());
        if self.is_recorded() {
            more.extend(["--trace", trace.as_deref().context("no start was recorded")?]);
        }
        convert_with(image, &more).map(|_| ())
    }

    fn is_recorded(self) -> bool {
        matches!(self, Self::IndexRecorded | Self::FullRecorded)
    }
}

/// One cold start.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    /// What ran it.
    pub system: System,
    /// Seconds until the image was there, as far as containerd knows.
    pub pull: f64,
    /// Seconds from then until the application answered.
    pub start: f64,
    /// Bytes that crossed the link until then, frames and all.
    pub wire_bytes: u64,
    /// Requests to the registry until then.
    pub requests: usize,
    /// Resident memory of the snapshotter at that moment, in KiB.
    pub resident_kib: Option<u64>,
}

impl FarRegistry {
    /// Builds it: so many megabits per second, so long a way.
    pub fn new(megabits: u32, delay: Duration) -> Result<Self> {
        let link = Link::new(megabits)?;
        let registry = Registry::start_with(link.address(5000)?, &link.prefix())?;
        let proxy = Proxy::start(registry.address(), delay)?;
        Ok(Self { proxy, registry, link })
    }

    /// The same image as nodes know it. To Clipper, only loopback is a registry that speaks plain HTTP unasked, so
    /// conversions go this way, too.
    pub fn near(&self, image: &str) -> String {
        self.proxy.by_way(image)
    }

    /// Bytes that have come from there so far, frames and all.
    pub fn received(&self) -> Result<u64> {
        self.link.received()
    }

    /// Records what the start of an application reads, on a new, empty node, until it is ready. `image` is as the
    /// registry itself knows it, and converted for [`System::Index`].
    pub fn record(&self, application: &Application, image: &str, trace: &Path) -> Result<()> {
        let snapshotter = Snapshotter::start()?;
        let containerd = Containerd::start(Settings::clipper(snapshotter.socket()))?;
        let reference = System::Index.reference(&self.near(image));
        let port = free_port()?;
        let (socket, url) = (containerd.socket().display().to_string(), application.ready.url(port)?);
        let variable = format!("{}={}", application.port_variable, port.port());
        let (limit, trace) = (PATIENCE.as_secs().to_string(), trace.display().to_string());
        let line = ["--address", &socket, "--namespace", containerd.namespace(), "--url", &url, "--env", &variable];
        clipper_ok(&[&["record", "--timeout", &limit, "--output", &trace][..], &line, &[&reference]].concat())?;
        Ok(())
    }

    /// Starts an application on a new, empty node; gives the figures once it is ready, and the node is gone.
    pub fn cold_start(&self, system: System, application: &Application, image: &str) -> Result<Run> {
        let snapshotter = match system {
            System::Overlayfs => None,
            _ => Some(Snapshotter::start()?),
        };
        let settings = snapshotter.as_ref().map_or_else(Settings::overlayfs, |own| Settings::clipper(own.socket()));
        let containerd = Containerd::start(settings)?;
        let reference = system.reference(&self.near(image));
        forget_the_page_cache(&self.registry)?;
        self.proxy.take_log();
        let (wire_before, begun) = (self.link.received()?, Instant::now());
        let kind = match system {
            System::Overlayfs => {
                containerd.pull("overlayfs", &reference)?;
                "overlayfs"
            }
            _ => {
                let socket = containerd.socket().display().to_string();
                let node = ["--address", &socket, "--namespace", containerd.namespace(), "--snapshotter", "clipper"];
                clipper_ok(&[&["pull"], &node[..], &[&reference]].concat())?;
                "clipper"
            }
        };
        let pulled = begun.elapsed();
        let port = free_port()?;
        let variable = format!("{}={}", application.port_variable, port.port());
        let line = ["run", "--detach", "--net-host", "--env", &variable, "--snapshotter", kind, &reference, "app"];
        containerd.ctr(&line)?;
        application.ready.wait(port, PATIENCE).with_context(|| {
            let log = snapshotter.as_ref().map(Snapshotter::log).unwrap_or_default();
            format!("the application is not ready; the snapshotter logged:\n{log}")
        })?;
        let ready = begun.elapsed();
        let run = Run {
            system,
            pull: pulled.as_secs_f64(),
            start: (ready - pulled).as_secs_f64(),
            wire_bytes: self.link.received()? - wire_before,
            requests: self.proxy.log().len(),
            resident_kib: snapshotter.as_ref().and_then(|own| own.resident_kib().ok()),
        };
        containerd.remove_container("app")?;
        Ok(run)
    }
}

/// Empties the machine's page cache, then fills it with the registry's blobs again: the registry's disk is not what is
/// measured.
fn forget_the_page_cache(registry: &Registry) -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")?;
    for (digest, _) in registry.blobs()? {
        std::io::copy(&mut fs::File::open(registry.blob_file(&digest))?, &mut std::io::sink())?;
    }
    Ok(())
}
