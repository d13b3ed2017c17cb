//! Podman with a storage of its own, told to fetch zstd:chunked layers in parts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::daemon::run;
use crate::scratch::Scratch;

/// Podman's storage. Its mounts go with it.
pub struct Podman {
    scratch: Scratch,
}

impl Podman {
    /// An empty storage.
    pub fn new() -> Result<Self> {
        let scratch = Scratch::new("podman")?;
        let (run, graph) = (scratch.subdir("run")?, scratch.subdir("graph")?);
        let text = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = {run:?}\ngraphroot = {graph:?}\n\
             [storage.options]\npull_options = {{enable_partial_images = \"true\"}}\n"
        );
        fs::write(scratch.join("storage.conf"), text)?;
        Ok(Self { scratch })
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_STORAGE_CONF", self.scratch.join("storage.conf"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command
    }

    /// Pulls an image; gives how many layers were fetched in parts, by their tables of contents.
    pub fn pull(&self, reference: &str) -> Result<usize> {
        let args = ["--log-level", "debug", "pull", "--tls-verify=false", reference];
        let output = self.command().args(args).output()?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("podman pull {reference}: {log}");
        }
        Ok(log.matches("Retrieved partial blob").count())
    }

    /// Mounts an image that was pulled.
    pub fn mount(&self, reference: &str) -> Result<PathBuf> {
        Ok(Path::new(run(self.command().args(["image", "mount", reference]))?.trim()).to_owned())
    }

    /// Runs an image that was pulled; gives what it printed.
    pub fn run(&self, reference: &str) -> Result<String> {
        // Podman's own limits may be above the machine's.
        let args = ["run", "--pull", "never", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024"];
        let args = args.iter().chain(&["--ulimit", "nproc=1024:1024"]);
        run(self.command().args(args).arg(reference))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command().args(["image", "unmount", "--all", "--force"]).output();
    }
}
