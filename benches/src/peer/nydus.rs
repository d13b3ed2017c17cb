//! Nydus: the image is converted by `nydus-image`, layer by layer, and `nydusd` shows it through FUSE. Between containerd
//! and it there is no snapshotter: the node gets the tree's metadata and mounts in the simplest way, which can only be
//! quicker.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clipper_tests::clipper::is_mounted;
use clipper_tests::containerd::{Containerd, Settings};
use clipper_tests::daemon::{Daemon, run};
use clipper_tests::layout::{Layout, digest_file};
use clipper_tests::scratch::Scratch;
use serde_json::{Value, json};

use super::{CONTAINER, Node, Peer, Subject, tool};
use crate::cold_start::FarRegistry;

/// The media type of Nydus's own layers.
const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
/// Where the tree's metadata lie in the last layer.
const BOOTSTRAP: &str = "image/image.boot";

/// An image for Nydus, and how nydusd serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nydus {
    /// What becomes of the base image's layers.
    pub layers: Layers,
    /// Whether nydusd fetches the whole image in the background.
    pub prefetch: bool,
}

/// What becomes of the base image's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// They are repacked in Nydus's own format.
    Repacked,
    /// They stay, and an index to them is made (zran).
    Referred,
}

impl Peer for Nydus {
    fn suffix(&self) -> String {
        match self.layers {
            Layers::Repacked => "_nydus".into(),
            Layers::Referred => "_nydus_reference".into(),
        }
    }

    fn prepare(&self, subject: &Subject<'_>) -> Result<()> {
        let program = tool("nydus/bin", "nydus-image")?;
        let nydus_image = |args: &[&str]| run(Command::new(&program).args(["-l", "warn"]).args(args));
        let (base, _) = subject.far.registry.manifest(subject.image)?;
        let scratch = Scratch::new("nydus-image")?;
        let layout = Layout::create(&scratch.join("layout"))?;
        let blobs = scratch.join("layout/blobs/sha256").display().to_string();
        let (trees, packed) = (scratch.subdir("trees")?, scratch.subdir("packed")?);
        let (mut layers, mut merged, mut digests, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, layer) in base["layers"].as_array().context("no layers")?.iter().enumerate() {
            let digest = layer["digest"].as_str().context("a layer without a digest")?;
            let (tree, output) = (scratch.join("tree").display().to_string(), scratch.join("output.json"));
            let kind = if self.layers == Layers::Repacked { "targz-rafs" } else { "targz-ref" };
            let source = subject.far.registry.blob_file(digest).display().to_string();
            let told = output.display().to_string();
            let to = ["-D", &blobs, "-B", &tree, "-J", &told, "--whiteout-spec", "none"];
            let known: Vec<String> = fs::read_dir(&blobs)?.flatten().map(|file| name(&file.path())).collect();
            nydus_image(&[&["create", "-t", kind][..], &to, &[&source]].concat())?;
            let output: Value = serde_json::from_slice(&fs::read(output)?)?;
            let made =
                fs::read_dir(&blobs)?.flatten().map(|file| name(&file.path())).find(|blob| !known.contains(blob));
            // A tree is merged under the name of the blob that its files' bytes are in.
            let own = output["blobs"][0].as_str().map_or_else(|| format!("empty-{index}"), String::from);
            let tree_of = trees.join(own);
            fs::rename(&tree, &tree_of)?;
            merged.push(tree_of.display().to_string());
            // What it made, be it the repacked bytes or the index to the layer's.
            let (blob, size) = match &made {
                Some(blob) => (blob.clone(), fs::metadata(Path::new(&blobs).join(blob))?.len()),
                None => ("0".repeat(64), 0),
            };
            if made.is_some() {
                layers.push(json!({"mediaType": BLOB, "digest": format!("sha256:{blob}"), "size": size}));
            }
            if self.layers == Layers::Referred {
                layers.push(layer.clone());
                fs::hard_link(&source, layout.path_of(digest))
                    .or_else(|_| fs::copy(&source, layout.path_of(digest)).map(drop))?;
            }
            digests.push(blob);
            sizes.push(size.to_string());
        }
        fs::create_dir(packed.join("image"))?;
        let bootstrap = packed.join(BOOTSTRAP).display().to_string();
        let (digests, sizes) = (digests.join(","), sizes.join(","));
        let mut line = vec!["merge", "-B", &bootstrap];
        if self.layers == Layers::Referred {
            line.extend(["--blob-digests", &digests, "--blob-sizes", &sizes]);
        }
        line.extend(merged.iter().map(String::as_str));
        nydus_image(&line)?;
        let archive = scratch.join("bootstrap.tar.gz");
        run(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(&packed).arg("image"))?;
        let (digest, size) = digest_file(&archive)?;
        fs::rename(&archive, layout.path_of(&digest))?;
        layers.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size,
            "annotations": {"containerd.io/snapshot/nydus-bootstrap": "true"},
        }));
        let config = base["config"]["digest"].as_str().context("no configuration")?;
        fs::copy(subject.far.registry.blob_file(config), layout.path_of(config))?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": base["config"], "layers": layers});
        let manifest = serde_json::to_vec(&manifest)?;
        let descriptor = json!({"mediaType": media_type, "digest": layout.blob(&manifest)?, "size": manifest.len()});
        layout.tag("latest", &descriptor)?;
        let (_, target) = subject.image.split_once('/').context("a reference without a host")?;
        let source = format!("oci:{}:latest", scratch.join("layout").display());
        subject.far.registry.push_as_is(&source, &format!("{target}{}", self.suffix())).map(|_| ())
    }

    fn node(&self, _far: &FarRegistry) -> Result<Box<dyn Node>> {
        tool("nydus/bin", "nydusd")?;
        let (containerd, scratch) = (Containerd::start(Settings::overlayfs())?, Scratch::new("nydus")?);
        Ok(Box::new(Running { containerd, prefetch: self.prefetch, daemon: None, config: Value::Null, scratch }))
    }
}

struct Running {
    containerd: Containerd,
    prefetch: bool,
    daemon: Option<Daemon>,
    /// The image's configuration.
    config: Value,
    // Goes last: what is mounted in it is nydusd's.
    scratch: Scratch,
}

impl Node for Running {
    fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    fn snapshotter(&self) -> &str {
        "nydus"
    }

    /// The manifest; then its configuration and its bootstrap, side by side; then nydusd is started on that.
    fn pull(&mut self, reference: &str) -> Result<()> {
        let (host, path) = reference.split_once('/').context("a reference without a host")?;
        let (repository, tag) = path.rsplit_once(':').context("a reference without a tag")?;
        let base = format!("http://{host}/v2/{repository}");
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
        let curl = |args: &[&str]| run(Command::new("curl").args(["-sS", "-f"]).args(args));
        let manifest: Value = serde_json::from_str(&curl(&["-H", accept, &format!("{base}/manifests/{tag}")])?)?;
        let digest =
            |value: &Value| value["digest"].as_str().map(String::from).context("a descriptor without a digest");
        let layers = manifest["layers"].as_array().context("no layers")?;
        let archive = self.scratch.join("bootstrap.tar.gz").display().to_string();
        let config = self.scratch.join("config.json").display().to_string();
        let urls = [&manifest["config"], layers.last().context("no layers")?].map(digest);
        let [of_config, of_archive] = urls.map(|digest| digest.map(|digest| format!("{base}/blobs/{digest}")));
        curl(&["-Z", "-o", &config, &of_config?, "-o", &archive, &of_archive?])?;
        self.config = serde_json::from_slice(&fs::read(config)?)?;
        run(Command::new("tar").args(["-xzf", &archive, "-C"]).arg(self.scratch.path()))?;
        let settings = self.scratch.join("nydusd.json");
        fs::write(&settings, settings_text(host, repository, self.prefetch, &self.scratch.subdir("cache")?)?)?;
        let (at, bootstrap) = (self.scratch.subdir("image-tree")?, self.scratch.join(BOOTSTRAP));
        let [at_text, bootstrap, settings] = [&at, &bootstrap, &settings].map(|path| path.display().to_string());
        // As it comes it wants a limit of a million files, which not every container may set.
        let args = ["--config", &settings, "--bootstrap", &bootstrap, "--mountpoint", &at_text, "--rlimit-nofile", "0"];
        let mut daemon = Daemon::start("nydusd", &tool("nydus/bin", "nydusd")?, &args, &self.scratch.join("log"))?;
        daemon.wait_until("mounting", Duration::from_secs(60), || is_mounted(&at).then_some(()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn start(&mut self, _reference: &str, variable: &str) -> Result<()> {
        let (lower, root) = (self.scratch.join("image-tree"), self.scratch.subdir("rootfs")?);
        let [upper, work] = ["upper", "work"].map(|name| self.scratch.subdir(name));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper?.display(), work?.display());
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&root))?;
        let root = root.display().to_string();
        let config = &self.config["config"];
        let words = |field: &str| config[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        ensure!(config["User"].as_str().is_none_or(str::is_empty), "`ctr run --rootfs` knows no user");
        let mut line = vec!["run", "--detach", "--net-host", "--rootfs"];
        line.extend(words("Env").chain([variable]).flat_map(|variable| ["--env", variable]));
        line.extend(config["WorkingDir"].as_str().filter(|dir| !dir.is_empty()).iter().flat_map(|dir| ["--cwd", dir]));
        line.extend([root.as_str(), CONTAINER]);
        line.extend(words("Entrypoint").chain(words("Cmd")));
        self.containerd.ctr(&line).map(|_| ())
    }

    fn daemons(&self) -> Vec<u32> {
        self.daemon.iter().map(Daemon::pid).collect()
    }

    fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }
}

/// As nydus-snapshotter ships it, but for where the registry is and that it speaks plain HTTP.
fn settings_text(host: &str, repository: &str, prefetch: bool, cache: &Path) -> Result<String> {
    let settings = json!({
        "device": {
            "backend": {"type": "registry", "config": {
                "scheme": "http", "host": host, "repo": repository, "timeout": 5, "connect_timeout": 5, "retry_limit": 2,
            }},
            "cache": {"type": "blobcache", "config": {"work_dir": cache}},
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "fs_prefetch": {"enable": prefetch, "threads_count": 2, "prefetch_all": true},
    });
    Ok(serde_json::to_string_pretty(&settings)?)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
