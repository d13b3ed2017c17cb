//! SOCI: an index of checkpoints lies beside the base image, and its snapshotter mounts the layers. It fetches indexes over
//! HTTPS alone, so between its node and the proxy stands a front that speaks TLS, with a certificate that the node trusts.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::daemon::{Daemon, run};
use clipper_tests::registry::free_port;
use clipper_tests::scratch::Scratch;

use super::{CONTAINER, Node, Peer, Subject, tool};
use crate::cold_start::FarRegistry;

/// Where both of its programs keep what they make, whatever they are told.
const HOME: &str = "/var/lib/soci-snapshotter-grpc";
/// Runs a command whose [`HOME`] is a directory of ours: `sh -c THIS sh DIRECTORY COMMAND…`.
const AT_HOME: &str = r#"mount --bind "$1" /var/lib/soci-snapshotter-grpc && shift && exec "$@""#;

/// The base image with an index as `soci create` makes it unless told otherwise.
#[derive(Debug)]
pub struct Soci;

impl Peer for Soci {
    fn suffix(&self) -> String {
        "_soci".into()
    }

    fn prepare(&self, subject: &Subject<'_>) -> Result<()> {
        let soci = tool("forky/bin", "soci")?.display().to_string();
        let (_, path) = subject.image.split_once('/').context("a reference without a host")?;
        let tagged = format!("{path}{}", self.suffix());
        let registry = &subject.far.registry;
        registry.push_as_is(&format!("docker://{}/{path}", registry.host()), &tagged)?;
        let image = format!("{}{}", subject.image, self.suffix());
        let (containerd, scratch) = (Containerd::start(Settings::overlayfs())?, Scratch::new("soci")?);
        let home = home(&scratch)?;
        containerd.ctr(&["content", "fetch", "--plain-http", &image])?;
        let socket = containerd.socket().display().to_string();
        let program = [soci.as_str(), "--address", &socket, "--namespace", containerd.namespace()];
        for what in [&["create", &image][..], &["push", "--plain-http", &image]] {
            run(Command::new("unshare").args(at_home(&home)).args([&program[..], what].concat()))?;
        }
        Ok(())
    }

    fn node(&self, far: &FarRegistry) -> Result<Box<dyn Node>> {
        let scratch = Scratch::new("soci")?;
        let (front, trusted) = front(&scratch, far)?;
        let socket = scratch.join("s.sock");
        let program = tool("forky/bin", "soci-snapshotter-grpc")?.display().to_string();
        let trust = format!("SSL_CERT_FILE={}", trusted.display());
        let (home, address) = (home(&scratch)?, socket.display().to_string());
        // All as it comes, but it insists on a file.
        let config = scratch.join("config.toml").display().to_string();
        fs::write(&config, "")?;
        let line = ["env", &trust, &program, "--address", &address, "--root", HOME, "--config", &config];
        let args = [at_home(&home), line.map(String::from).to_vec()].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut daemon = Daemon::start("soci-snapshotter-grpc", Path::new("unshare"), &args, &scratch.join("log"))?;
        daemon.wait_until("listening", Duration::from_secs(20), || {
            std::os::unix::net::UnixStream::connect(&socket).ok()
        })?;
        // What the snapshotter mounts is only seen where it lives.
        let prefix = ["nsenter".into(), format!("--mount=/proc/{}/ns/mnt", daemon.pid()), "--".into()];
        let settings = Settings { prefix: prefix.to_vec(), ..Settings::plugin("soci", &socket) };
        let containerd = Containerd::start(settings)?;
        Ok(Box::new(Running { containerd, daemon, front, trusted, _scratch: scratch }))
    }
}

struct Running {
    containerd: Containerd,
    daemon: Daemon,
    front: Front,
    /// The certificate that clients are to trust.
    trusted: PathBuf,
    _scratch: Scratch,
}

/// Takes TLS off what comes, and passes it on to the proxy.
struct Front {
    address: SocketAddr,
    _daemon: Daemon,
}

impl Front {
    /// The image by way of it.
    fn by_way(&self, reference: &str) -> String {
        let path = reference.split_once('/').map_or(reference, |(_, path)| path);
        format!("{}/{path}", self.address)
    }
}

impl Node for Running {
    fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    fn snapshotter(&self) -> &str {
        "soci"
    }

    fn pull(&mut self, reference: &str) -> Result<()> {
        let mut command = Command::new(tool("forky/bin", "soci")?);
        command.env("SSL_CERT_FILE", &self.trusted).arg("--address").arg(self.containerd.socket());
        command.args(["--namespace", self.containerd.namespace(), "image", "rpull", &self.front.by_way(reference)]);
        run(&mut command).map(|_| ())
    }

    fn reference(&self, reference: &str) -> String {
        self.front.by_way(reference)
    }

    /// `ctr run` looks into the image itself, so it has to see what the snapshotter mounts.
    fn start(&mut self, reference: &str, variable: &str) -> Result<()> {
        let within = format!("--mount=/proc/{}/ns/mnt", self.daemon.pid());
        let mut command = Command::new("nsenter");
        command.args([&within, "--", "ctr", "--address"]).arg(self.containerd.socket());
        command.args(["--namespace", self.containerd.namespace(), "run", "--detach", "--net-host", "--env", variable]);
        command.args(["--snapshotter", "soci", &self.reference(reference), CONTAINER]);
        run(&mut command).map(|_| ())
    }

    fn daemons(&self) -> Vec<u32> {
        vec![self.daemon.pid()]
    }

    fn log(&self) -> String {
        self.daemon.log()
    }
}

fn home(scratch: &Scratch) -> Result<String> {
    fs::create_dir_all(HOME)?;
    Ok(scratch.subdir("home")?.display().to_string())
}

/// Arguments of `unshare` in front of a command.
fn at_home(home: &str) -> Vec<String> {
    ["--mount", "--propagation", "private", "--", "sh", "-c", AT_HOME, "sh", home].map(String::from).to_vec()
}

/// A front on this side of the link, because for names of loopback addresses SOCI mixes HTTP and HTTPS; and its
/// certificate.
fn front(scratch: &Scratch, far: &FarRegistry) -> Result<(Front, PathBuf)> {
    let host = far.near_end()?;
    let address = SocketAddr::new(host, free_port()?.port());
    let (key, certificate) = (scratch.join("key.pem"), scratch.join("certificate.pem"));
    let name = format!("subjectAltName=IP:{host}");
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=bench", "-addext", &name, "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    let listen = format!(
        "OPENSSL-LISTEN:{},bind={host},reuseaddr,fork,nodelay,verify=0,cert={},key={}",
        address.port(),
        certificate.display(),
        key.display()
    );
    let target = format!("TCP:{},nodelay", far.proxy.host());
    let mut daemon =
        Daemon::start("socat", Path::new("socat"), &["-b", "65536", &listen, &target], &scratch.join("front-log"))?;
    daemon.wait_until("listening", Duration::from_secs(5), || std::net::TcpStream::connect(address).ok())?;
    Ok((Front { address, _daemon: daemon }, certificate))
}
