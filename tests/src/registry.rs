//! A private OCI registry: Docker's own (`docker-registry`), on a loopback port, with its storage in scratch space.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::daemon::{Daemon, run, workspace};
use crate::scratch::Scratch;

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    daemon: Daemon,
    address: SocketAddr,
    storage: PathBuf,
    _scratch: Scratch,
}

impl Registry {
    /// Starts one, empty.
    pub fn start() -> Result<Self> {
        Self::start_with(free_port()?, &[])
    }

    /// Starts one with more in its configuration: YAML of whole sections, as `auth: {…}`.
    pub fn start_configured(more: &str) -> Result<Self> {
        Self::launch(free_port()?, &[], more)
    }

    /// Starts one on an address, by way of another command (`ip netns exec …`).
    pub fn start_with(address: SocketAddr, prefix: &[&str]) -> Result<Self> {
        Self::launch(address, prefix, "")
    }

    /// As [`start_with`](Self::start_with), but what it stores lies in memory, and no disk is ever waited for.
    pub fn start_in_memory(address: SocketAddr, prefix: &[&str]) -> Result<Self> {
        let scratch = Scratch::new("registry")?;
        let storage = scratch.subdir("storage")?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=0700,size=75%", "registry"]).arg(&storage))?;
        Self::launch_in(scratch, address, prefix, "")
    }

    fn launch(address: SocketAddr, prefix: &[&str], more: &str) -> Result<Self> {
        Self::launch_in(Scratch::new("registry")?, address, prefix, more)
    }

    fn launch_in(scratch: Scratch, address: SocketAddr, prefix: &[&str], more: &str) -> Result<Self> {
        let storage = scratch.subdir("storage")?;
        let config = scratch.join("config.yml");
        fs::write(&config, config_text(&storage, address) + more)?;
        let config = config.display().to_string();
        let mut line: Vec<&str> = prefix.to_vec();
        line.extend(["docker-registry", "serve", &config]);
        let mut daemon = Daemon::start("docker-registry", Path::new(line[0]), &line[1..], &scratch.join("log"))?;
        daemon.wait_until("answering", Duration::from_secs(20), || answers(address, prefix).then_some(()))?;
        Ok(Self { daemon, address, storage, _scratch: scratch })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Copies an image of `.cache/images` into it as `NAME:latest`; gives its reference.
    pub fn push_cached(&self, name: &str) -> Result<String> {
        self.push(&format!("oci:{}:latest", cached_image(name)?.display()), &format!("{name}:latest"))
    }

    /// Copies an image from wherever skopeo finds it, all platforms; gives its reference.
    pub fn push(&self, source: &str, repository_and_tag: &str) -> Result<String> {
        self.copy(source, repository_and_tag, &[])
    }

    /// As [`push`](Self::push), but for what skopeo can't compress as it likes: it takes zstd that begins with a
    /// skippable frame for uncompressed.
    pub fn push_as_is(&self, source: &str, repository_and_tag: &str) -> Result<String> {
        self.copy(source, repository_and_tag, &["--preserve-digests"])
    }

    /// As [`push`](Self::push), with layers compressed as zstd by skopeo: one frame each, by the encoder that BuildKit and
    /// podman use, too.
    pub fn push_zstd(&self, source: &str, repository_and_tag: &str) -> Result<String> {
        // It compresses only what isn't compressed yet, and a registry would be found to have the layers already.
        let scratch = tempfile::tempdir()?;
        let [plain, packed] = ["dir", "oci"].map(|kind| format!("{kind}:{}", scratch.path().join(kind).display()));
        let packed = format!("{packed}:1");
        run(Command::new("skopeo").args([
            "copy",
            "-q",
            "--src-tls-verify=false",
            "--dest-decompress",
            source,
            &plain,
        ]))?;
        run(Command::new("skopeo").args(["copy", "-q", "--dest-compress-format", "zstd", &plain, &packed]))?;
        self.push_as_is(&packed, repository_and_tag)
    }

    fn copy(&self, source: &str, repository_and_tag: &str, flags: &[&str]) -> Result<String> {
        let target = format!("{}/{repository_and_tag}", self.host());
        let to = format!("docker://{target}");
        run(Command::new("skopeo")
            .args(["copy", "-q", "--all", "--dest-tls-verify=false", "--src-tls-verify=false"])
            .args(flags)
            .args([source, &to]))?;
        Ok(target)
    }

    /// The file in which the registry keeps a blob (`sha256:…`), to be damaged by a test.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Every blob it holds and its size in bytes.
    pub fn blobs(&self) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for prefix in fs::read_dir(self.storage.join("docker/registry/v2/blobs/sha256"))? {
            for blob in fs::read_dir(prefix?.path())? {
                let blob = blob?;
                let size = fs::metadata(blob.path().join("data")).map(|meta| meta.len()).unwrap_or_default();
                found.push((format!("sha256:{}", blob.file_name().to_string_lossy()), size));
            }
        }
        found.sort();
        Ok(found)
    }

    /// A manifest as JSON, and its digest.
    pub fn manifest(&self, reference: &str) -> Result<(Value, String)> {
        let (repository, selector) = split_reference(reference)?;
        let accept = [
            "oci.image.index.v1",
            "oci.image.manifest.v1",
            "docker.distribution.manifest.list.v2",
            "docker.distribution.manifest.v2",
        ]
        .map(|kind| format!("application/vnd.{kind}+json"))
        .join(", ");
        let url = format!("http://{}/v2/{repository}/manifests/{selector}", self.host());
        let body = run(Command::new("curl").args(["-sS", "-f", "-H", &format!("Accept: {accept}"), &url]))?;
        let digest = crate::layout::hex_digest(body.as_bytes());
        Ok((serde_json::from_str(&body)?, digest))
    }

    /// Gives a manifest that is made up here a tag; gives its digest. Its blobs have to be in the repository.
    pub fn put_manifest(&self, reference: &str, manifest: &Value) -> Result<String> {
        let (repository, selector) = split_reference(reference)?;
        let bytes = serde_json::to_vec(manifest)?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), &bytes)?;
        let kind = manifest["mediaType"].as_str().context("a manifest without a media type")?;
        let (kind, body) = (format!("Content-Type: {kind}"), format!("@{}", file.path().display()));
        let url = format!("http://{}/v2/{repository}/manifests/{selector}", self.host());
        run(Command::new("curl").args(["-sS", "-f", "-X", "PUT", "-H", &kind, "--data-binary", &body, &url]))?;
        Ok(crate::layout::hex_digest(&bytes))
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Result<Vec<String>> {
        let url = format!("http://{}/v2/{repository}/tags/list", self.host());
        let list: Value = serde_json::from_str(&run(Command::new("curl").args(["-sS", &url]))?)?;
        let mut tags: Vec<String> =
            list["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str().map(String::from)).collect();
        tags.sort();
        Ok(tags)
    }

    /// Ends it: the network is down.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.stop().map(|_| ())
    }
}

/// An image's layout below `.cache/images`.
pub fn cached_image(name: &str) -> Result<PathBuf> {
    let dir = workspace().join(".cache/images").join(name);
    if !dir.join("index.json").is_file() {
        bail!("the image {name} is not built: run `make images` (or `scripts/images {name}`)");
    }
    Ok(dir)
}

/// A loopback address that nobody listens on.
pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Whether a registry answers there, be it with a refusal, as seen from where the prefix leads.
fn answers(address: SocketAddr, prefix: &[&str]) -> bool {
    let url = format!("http://{address}/v2/");
    let mut line = prefix.to_vec();
    line.extend(["curl", "-s", "-m", "1", "-o", "/dev/null", &url]);
    Command::new(line[0]).args(&line[1..]).status().is_ok_and(|status| status.success())
}

/// `host/repository:tag` or `host/repository@digest`, without the host.
fn split_reference(reference: &str) -> Result<(&str, &str)> {
    let (_, path) = reference.split_once('/').context("a reference without a host")?;
    path.split_once('@').or_else(|| path.rsplit_once(':')).context("a reference without a tag")
}

fn config_text(storage: &Path, address: SocketAddr) -> String {
    format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
         http:\n  addr: {address}\n",
        storage.display()
    )
}
