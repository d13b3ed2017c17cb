//! stargz-snapshotter: the image is converted to eStargz by `ctr-remote`, and its daemon mounts that.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::daemon::{Daemon, run};
use clipper_tests::scratch::Scratch;

use super::{Node, Peer, Subject, tool};
use crate::cold_start::FarRegistry;

/// An eStargz image, converted without knowledge of its start, as the daemon takes it by default.
#[derive(Debug)]
pub struct Stargz;

impl Peer for Stargz {
    fn suffix(&self) -> String {
        "_estargz".into()
    }

    fn prepare(&self, subject: &Subject<'_>) -> Result<()> {
        // Before the long work of converting.
        tool("stargz", "stargzd")?;
        let containerd = Containerd::start(Settings::overlayfs())?;
        let converted = format!("{}{}", subject.image, self.suffix());
        containerd.ctr(&["content", "fetch", "--plain-http", subject.image])?;
        remote(&containerd, &["images", "convert", "--estargz", "--oci", subject.image, &converted])?;
        containerd.ctr(&["images", "push", "--plain-http", &converted]).map(|_| ())
    }

    fn node(&self, _far: &FarRegistry) -> Result<Box<dyn Node>> {
        let scratch = Scratch::new("stargz")?;
        let (socket, root) = (scratch.join("s.sock"), scratch.join("root"));
        let args = ["-address", &socket.display().to_string(), "-root", &root.display().to_string()];
        let mut daemon = Daemon::start("stargzd", &tool("stargz", "stargzd")?, &args, &scratch.join("log"))?;
        daemon.wait_until("listening", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).ok()
        })?;
        let containerd = Containerd::start(Settings::plugin("stargz", &socket))?;
        Ok(Box::new(Running { containerd, daemon, _scratch: scratch }))
    }
}

struct Running {
    containerd: Containerd,
    daemon: Daemon,
    _scratch: Scratch,
}

impl Node for Running {
    fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    fn snapshotter(&self) -> &str {
        "stargz"
    }

    fn pull(&mut self, reference: &str) -> Result<()> {
        remote(&self.containerd, &["images", "rpull", "--plain-http", reference])
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.daemon.pid()]
    }

    fn log(&self) -> String {
        self.daemon.log()
    }
}

/// Runs `ctr-remote ARGS`.
fn remote(containerd: &Containerd, args: &[&str]) -> Result<()> {
    let socket: &Path = containerd.socket();
    let mut command = Command::new(tool("stargz", "ctr-remote")?);
    command.arg("--address").arg(socket).args(["--namespace", containerd.namespace()]).args(args);
    run(&mut command).map(|_| ())
}
