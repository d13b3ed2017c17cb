//! A cold start: from nothing on the node to a container that answers, over a slow link, with nothing cached.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clipper_tests::clipper::{Snapshotter, clipper_ok};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::link::Link;
use clipper_tests::proxy::Proxy;
use clipper_tests::registry::{Registry, free_port};
use serde::Serialize;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// containerd as it comes: download all, unpack all, start.
    Overlayfs,
    /// Clipper in index-only mode, nothing known of the start-up.
    Unlisted,
    /// Clipper in index-only mode as it comes: the start-up is worked out by the converter.
    Clipper,
    /// The same with a hot blob laid out by a recorded start.
    Traced,
}

impl System {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            System::Overlayfs => "overlayfs",
            System::Unlisted => "Clipper, no list",
            System::Clipper => "Clipper",
            System::Traced => "Clipper, recorded",
        }
    }
}

impl System {
    /// What it pulls instead of `image`.
    pub fn reference(self, image: &str) -> String {
        match self {
            System::Overlayfs => image.to_owned(),
            System::Unlisted => format!("{image}_unlisted_accelerated"),
            System::Clipper => format!("{image}_accelerated"),
            System::Traced => format!("{image}_recorded_accelerated"),
        }
    }
}

/// An application in an image, and how it is known to be ready: GET / on `port` answers 200.
#[derive(Clone, Debug)]
pub struct Application {
    /// The image, as the registry itself knows it.
    pub image: String,
    /// Environment variable that tells the application its port.
    pub port_variable: String,
}

/// One cold start.
#[derive(Clone, Debug, Serialize)]
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

    /// Records what the start of an application reads, on a new, empty node, until it answers.
    pub fn record(&self, application: &Application, trace: &str) -> Result<()> {
        let snapshotter = Snapshotter::start()?;
        let containerd = Containerd::start(Settings::clipper(snapshotter.socket()))?;
        let reference = System::Clipper.reference(&self.proxy.by_way(&application.image));
        let port = free_port()?;
        let (socket, url) = (containerd.socket().display().to_string(), format!("http://{port}/"));
        let variable = format!("{}={}", application.port_variable, port.port());
        let line = ["--address", &socket, "--namespace", containerd.namespace(), "--url", &url, "--env", &variable];
        clipper_ok(&[&["record", "--timeout", "120", "--output", trace][..], &line, &[&reference]].concat())?;
        Ok(())
    }

    /// Starts an application on a new, empty node; gives the figures once it answers, and the node is gone.
    pub fn cold_start(&self, system: System, application: &Application) -> Result<Run> {
        let snapshotter = match system {
            System::Overlayfs => None,
            System::Unlisted | System::Clipper | System::Traced => Some(Snapshotter::start()?),
        };
        let settings = snapshotter.as_ref().map_or_else(Settings::overlayfs, |own| Settings::clipper(own.socket()));
        let containerd = Containerd::start(settings)?;
        let image = self.proxy.by_way(&application.image);
        forget_the_page_cache(&self.registry)?;
        self.proxy.take_log();
        let (wire_before, begun) = (self.link.received()?, Instant::now());
        let (kind, reference) = match system {
            System::Overlayfs => {
                containerd.pull("overlayfs", &image)?;
                ("overlayfs", image)
            }
            System::Unlisted | System::Clipper | System::Traced => {
                let (reference, socket) = (system.reference(&image), containerd.socket().display().to_string());
                clipper_ok(&[
                    "pull",
                    "--address",
                    &socket,
                    "--namespace",
                    containerd.namespace(),
                    "--snapshotter",
                    "clipper",
                    &reference,
                ])?;
                ("clipper", reference)
            }
        };
        let pulled = begun.elapsed();
        let port = free_port()?;
        let variable = format!("{}={}", application.port_variable, port.port());
        let line = ["run", "--detach", "--net-host", "--env", &variable, "--snapshotter", kind, &reference, "app"];
        containerd.ctr(&line)?;
        wait_for_page(port, Duration::from_secs(120)).with_context(|| {
            let log = snapshotter.as_ref().map(Snapshotter::log).unwrap_or_default();
            format!("the application does not answer; the snapshotter logged:\n{log}")
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

/// Asks for / every few milliseconds until the answer is 200.
fn wait_for_page(address: SocketAddr, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        if page_status(address).is_ok_and(|status| status == 200) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!("GET http://{address}/ did not answer 200 within {limit:?}")
}

fn page_status(address: SocketAddr) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64).read_to_string(&mut answer)?;
    Ok(answer.split_whitespace().nth(1).context("no status line")?.parse()?)
}
