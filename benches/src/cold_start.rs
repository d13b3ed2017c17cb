//! A cold start: from nothing on the node to a container that answers, over a slow link, with nothing cached.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clipper_tests::clipper::{Snapshotter, clipper_ok};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::link::Link;
use clipper_tests::proxy::Proxy;
use clipper_tests::registry::{Registry, free_port};
use serde::{Deserialize, Serialize};

use crate::application::Application;
use crate::peer::Node;
use crate::system::System;
use crate::usage::Usage;

/// Longest that an application may take to be ready.
const PATIENCE: Duration = Duration::from_secs(180);

/// The far end: a registry behind a shaped link, and a proxy that makes it distant as well.
#[derive(Debug)]
pub struct FarRegistry {
    /// Speaks to nodes: on loopback, and so over plain HTTP.
    pub proxy: Proxy,
    /// Speaks to whoever pushes and converts: not shaped in that direction, not delayed.
    pub registry: Registry,
    link: Link,
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
    /// The most memory that the processes that show the image had resident until then, in KiB.
    #[serde(default)]
    pub peak_kib: Option<u64>,
    /// Seconds of processor time that these took until then.
    #[serde(default)]
    pub daemon_cpu: Option<f64>,
    /// The same of these, containerd, and the commands that pulled and started.
    #[serde(default)]
    pub node_cpu: Option<f64>,
    /// Seconds that the application then took to start again from the unpacked image, all of it in memory; overlayfs only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<f64>,
}

impl FarRegistry {
    /// Builds it: so many megabits per second, so long a way.
    pub fn new(megabits: u32, delay: Duration) -> Result<Self> {
        let link = Link::new(megabits)?;
        let registry = Registry::start_in_memory(link.address(5000)?, &link.prefix())?;
        let proxy = Proxy::start(registry.address(), delay)?;
        Ok(Self { proxy, registry, link })
    }

    /// Moves it elsewhere, with all that it holds. Nodes know its images by new names from then on.
    pub fn move_to(&mut self, megabits: u32, delay: Duration) -> Result<()> {
        self.link.shape(megabits)?;
        self.proxy = Proxy::start(self.registry.address(), delay)?;
        Ok(())
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

    /// The address of the nodes' end of the link.
    pub fn near_end(&self) -> Result<IpAddr> {
        self.link.near_end()
    }

    /// Records what the start of an application reads, on a new, empty node, until it is ready: with each driver, or only
    /// with the one that is named. `accelerated` is the converted image as nodes know it.
    pub fn record(
        &self,
        application: &Application,
        accelerated: &str,
        driver: Option<&str>,
        trace: &Path,
    ) -> Result<()> {
        let snapshotter = Snapshotter::start()?;
        let containerd = Containerd::start(Settings::clipper(snapshotter.socket())?)?;
        let port = free_port()?;
        let (socket, url) = (containerd.socket().display().to_string(), application.ready.url(port)?);
        let variable = format!("{}={}", application.port_variable, port.port());
        let (limit, trace) = (PATIENCE.as_secs().to_string(), trace.display().to_string());
        let line = ["--address", &socket, "--namespace", containerd.namespace(), "--url", &url, "--env", &variable];
        let driver: Vec<&str> = driver.iter().flat_map(|driver| ["--driver", driver]).collect();
        let record = ["record", "--timeout", &limit, "--output", &trace];
        clipper_ok(&[&record[..], &line, &driver, &[accelerated]].concat())?;
        Ok(())
    }

    /// Starts an application on a new, empty node; gives the figures once it is ready, and the node is gone. `image` is as
    /// the registry itself knows it, and prepared for this system.
    pub fn cold_start(&self, system: System, application: &Application, image: &str) -> Result<Run> {
        let mut node = system.peer().node(self)?;
        let reference = system.reference(&self.near(image));
        forget_the_page_cache()?;
        self.proxy.take_log();
        let before = (Costs::of(&*node), self.link.received()?);
        let begun = Instant::now();
        node.pull(&reference)?;
        let pulled = begun.elapsed();
        start_until_ready(&mut *node, application, &reference)?;
        let ready = begun.elapsed();
        let (costs, wire_bytes, requests) =
            (Costs::of(&*node), self.link.received()? - before.1, self.proxy.log().len());
        node.remove()?;
        let warm = match system {
            System::Overlayfs => {
                let again = Instant::now();
                start_until_ready(&mut *node, application, &reference)?;
                let warm = again.elapsed().as_secs_f64();
                node.remove()?;
                Some(warm)
            }
            _ => None,
        };
        Ok(Run {
            system,
            pull: pulled.as_secs_f64(),
            start: (ready - pulled).as_secs_f64(),
            wire_bytes,
            requests,
            peak_kib: Some(costs.peak_kib),
            daemon_cpu: Some(costs.daemons - before.0.daemons),
            node_cpu: Some(costs.node - before.0.node),
            warm,
        })
    }
}

/// What a node has cost so far.
struct Costs {
    /// Processor seconds of the processes that show the image.
    daemons: f64,
    /// The same and those of everything else that had a part in it.
    node: f64,
    peak_kib: u64,
}

impl Costs {
    fn of(node: &dyn Node) -> Self {
        let daemons = node.daemons();
        let mut all = daemons.clone();
        all.extend(node.containerd().daemon().map(|daemon| daemon.pid()).filter(|pid| !daemons.contains(pid)));
        let own = Usage::of(&daemons);
        let node = Usage::of(&all).cpu + Usage::of_programs_run();
        Self { daemons: own.cpu, node, peak_kib: own.peak_kib }
    }
}

/// Starts the container, waits until the application answers.
fn start_until_ready(node: &mut dyn Node, application: &Application, reference: &str) -> Result<()> {
    let port = free_port()?;
    node.start(reference, &format!("{}={}", application.port_variable, port.port()))?;
    application
        .ready
        .wait(port, PATIENCE)
        .with_context(|| format!("the application is not ready; the snapshotter logged:\n{}", node.log()))
}

/// Empties the machine's page cache. What the registry holds stays in memory: its disk is not what is measured.
fn forget_the_page_cache() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache")
}
