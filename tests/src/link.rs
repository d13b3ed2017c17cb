//! A slow network on one machine: a network namespace behind a pair of virtual interfaces, whose way out is shaped.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::Result;
use rustix::process::{Pid, test_kill_process};

use crate::daemon::run;

/// A namespace with a shaped link to ours. Downloads from it are shaped, uploads into it are not.
#[derive(Debug)]
pub struct Link {
    namespace: String,
    interface: String,
    address: String,
}

impl Link {
    /// Makes one of so many megabits per second.
    pub fn new(megabits: u32) -> Result<Self> {
        sweep();
        let pid = std::process::id();
        let (namespace, interface, inner) = (format!("clipper-{pid}"), format!("clp{pid}"), format!("clq{pid}"));
        // 198.18.0.0/15 is set aside for benchmarks (RFC 2544, appendix C.2.2).
        let (ours, address) = (format!("198.18.{}.1/30", pid % 256), format!("198.18.{}.2", pid % 256));
        ip(&["netns", "add", &namespace])?;
        let link = Self { namespace, interface, address };
        let Self { namespace, interface, address } = &link;
        let within = |args: &[&str]| run(Command::new("ip").args(["netns", "exec", namespace]).args(args));
        ip(&["link", "add", interface, "type", "veth", "peer", "name", &inner, "netns", namespace])?;
        ip(&["addr", "add", &ours, "dev", interface])?;
        ip(&["link", "set", interface, "up"])?;
        within(&["ip", "addr", "add", &format!("{address}/30"), "dev", &inner])?;
        within(&["ip", "link", "set", &inner, "up"])?;
        within(&["ip", "link", "set", "lo", "up"])?;
        link.shape(megabits)?;
        Ok(link)
    }

    /// Gives it another rate: so many megabits per second.
    pub fn shape(&self, megabits: u32) -> Result<()> {
        let (inner, rate) = (format!("clq{}", std::process::id()), format!("{megabits}mbit"));
        let shaping = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "50ms"];
        let line = [&self.prefix()[1..], &["tc", "qdisc", "replace", "dev", &inner], &shaping].concat();
        ip(&line).map(|_| ())
    }

    /// An address at its far end, for a server that is started by way of `prefix`.
    pub fn address(&self, port: u16) -> Result<SocketAddr> {
        Ok(format!("{}:{port}", self.address).parse()?)
    }

    /// The address of the end on this side.
    pub fn near_end(&self) -> Result<IpAddr> {
        let network = self.address.rsplit_once('.').map_or("", |(network, _)| network);
        Ok(format!("{network}.1").parse()?)
    }

    /// The beginning of a command line that runs at its far end.
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespace]
    }

    /// Bytes that have come through it to this side, frames and all.
    pub fn received(&self) -> Result<u64> {
        let path = format!("/sys/class/net/{}/statistics/rx_bytes", self.interface);
        Ok(fs::read_to_string(path)?.trim().parse()?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.namespace]);
        let _ = ip(&["link", "delete", &self.interface]);
    }
}

fn ip(args: &[&str]) -> Result<String> {
    run(Command::new("ip").args(args))
}

/// Deletes the namespaces of processes that are no more.
fn sweep() {
    let list = ip(&["netns", "list"]).unwrap_or_default();
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let owner = name.strip_prefix("clipper-").and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if owner.is_some_and(|pid| test_kill_process(pid).is_err()) {
            let _ = ip(&["netns", "delete", name]);
        }
    }
}
