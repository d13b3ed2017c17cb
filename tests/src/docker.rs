//! A Docker daemon with a folder of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::{Daemon, run};
use crate::scratch::Scratch;

/// A running dockerd, with a containerd that it starts itself.
pub struct Docker {
    // Before the folder that it uses.
    _daemon: Daemon,
    socket: PathBuf,
    _scratch: Scratch,
}

impl Docker {
    /// Starts one that speaks plain HTTP to the registry `host`.
    pub fn start(host: &str) -> Result<Self> {
        let scratch = Scratch::new("docker")?;
        let socket = scratch.join("docker.sock");
        let text = |name: &str| scratch.join(name).display().to_string();
        let listen = format!("unix://{}", socket.display());
        let (data, exec, pid) = (text("data"), text("exec"), text("pid"));
        let mut args = vec!["--data-root", &data, "--exec-root", &exec, "--pidfile", &pid, "--host", &listen];
        // Neither bridges nor packet filters: containers here need no network.
        args.extend(["--insecure-registry", host, "--bridge", "none", "--iptables=false"]);
        let mut daemon = Daemon::start("dockerd", "dockerd".as_ref(), &args, &scratch.join("log"))?;
        let answers = || run(Command::new("docker").args(["--host", &listen, "version"])).ok();
        daemon.wait_until("answering", Duration::from_secs(60), answers)?;
        Ok(Self { _daemon: daemon, socket, _scratch: scratch })
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        run(Command::new("docker").arg("--host").arg(format!("unix://{}", self.socket.display())).args(args))
    }

    /// Pulls an image.
    pub fn pull(&self, reference: &str) -> Result<()> {
        self.docker(&["pull", "--quiet", reference]).map(drop)
    }

    /// Runs an image that was pulled; gives what it printed.
    pub fn run(&self, reference: &str) -> Result<String> {
        self.docker(&["run", "--rm", "--network", "none", reference])
    }
}
