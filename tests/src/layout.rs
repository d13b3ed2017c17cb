//! Writes OCI image layouts: blobs by digest, image manifests, an index of tags. Input for `skopeo copy oci:DIR:TAG`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How a layer's tar is compressed, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compression {
    /// An uncompressed layer.
    Tar,
    /// A shell command that compresses standard input to standard output as gzip.
    Gzip(String),
    /// A shell command that compresses standard input to standard output as zstd.
    Zstd(String),
}

impl Compression {
    /// GNU gzip at its default level, as a reproducible byte stream.
    pub fn gzip() -> Self {
        Self::Gzip("gzip -6n".into())
    }

    /// By name: `tar`, `zstd`, `gzip`, `store` (gzip without compressing), `pigz` (blocks flushed and joined),
    /// `bgzip` (a member every 64 KiB), `members` (members of uneven sizes); `zstd`, `zstd-1`, `zstd-9`, `zstd-19`, `zstd-long`
    /// (a window of 128 MiB) and `zstd-threads` (one frame), `frames` (frames of uneven sizes), `pzstd` (frames of 8 MiB).
    pub fn by_name(name: &str) -> Result<Self> {
        Ok(match name {
            "tar" => Self::Tar,
            "gzip" => Self::gzip(),
            "pigz" => Self::Gzip("pigz -6nc -p2".into()),
            "store" => Self::Gzip("pigz -0nc".into()),
            "bgzip" => Self::Gzip("bgzip -c".into()),
            "members" => Self::Gzip("split -b 777777 --filter='gzip -6n' -".into()),
            "frames" => Self::Zstd("split -b 77777 --filter='zstd -q -3 -c' -".into()),
            "pzstd" => Self::Zstd("pzstd -q -3 -c -p2".into()),
            "zstd" => Self::Zstd("zstd -q -3 -c".into()),
            "zstd-1" => Self::Zstd("zstd -q -1 -c --no-check".into()),
            "zstd-9" => Self::Zstd("zstd -q -9 -c".into()),
            "zstd-19" => Self::Zstd("zstd -q -19 -c".into()),
            "zstd-long" => Self::Zstd("zstd -q -3 --long=27 -c".into()),
            "zstd-threads" => Self::Zstd("zstd -q -3 -T0 -c".into()),
            other => bail!("no compression is called {other}"),
        })
    }

    fn media_type(&self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer in a layout.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its descriptor as it stands in a manifest.
    pub descriptor: Value,
    /// `sha256:…` of the uncompressed tar.
    pub diff_id: String,
}

/// An image to be written.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Layers, bottom first.
    pub layers: Vec<Layer>,
    /// The `config` object of the image configuration: `Cmd`, `Env`, and so on.
    pub config: Value,
    /// The platform's architecture, `amd64` if not said.
    pub architecture: Option<String>,
}

/// An OCI layout directory.
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes the directory a layout, or opens the one that is there.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256")).with_context(|| format!("making {}", dir.display()))?;
        let marker = dir.join("oci-layout");
        if !marker.exists() {
            fs::write(marker, r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Stores bytes; gives their digest.
    pub fn blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = hex_digest(bytes);
        fs::write(self.path_of(&digest), bytes)?;
        Ok(digest)
    }

    /// Takes over the layers of the first image of the layout in `from`, bottom first, and its `config` object.
    pub fn adopt(&self, from: &Path) -> Result<(Vec<Layer>, Value)> {
        let source = Self { dir: from.to_owned() };
        let parse = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
        let read = |digest: &Value| parse(source.path_of(digest.as_str().context("no digest")?));
        let manifest = read(&parse(from.join("index.json"))?["manifests"][0]["digest"])?;
        let config = read(&manifest["config"]["digest"])?;
        let mut layers = Vec::new();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
        for (descriptor, diff_id) in manifest["layers"].as_array().into_iter().flatten().zip(diff_ids) {
            let digest = descriptor["digest"].as_str().context("a layer without a digest")?;
            if !self.path_of(digest).exists() {
                fs::copy(source.path_of(digest), self.path_of(digest))?;
            }
            let diff_id = diff_id.as_str().context("a diff_id that is no text")?.to_owned();
            layers.push(Layer { descriptor: descriptor.clone(), diff_id });
        }
        Ok((layers, config["config"].clone()))
    }

    /// The file that holds a blob.
    pub fn path_of(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Streams a tar, written by `fill`, through the compressor into a blob.
    pub fn layer(&self, how: &Compression, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Layer> {
        let temporary = tempfile::NamedTempFile::new_in(self.dir.join("blobs"))?;
        let diff_id = match how {
            Compression::Tar => {
                let mut out = Hashed::new(io::BufWriter::new(temporary.reopen()?));
                fill(&mut out)?;
                out.finish()?
            }
            Compression::Gzip(command) | Compression::Zstd(command) => {
                let mut child = Command::new("bash")
                    .args(["-o", "pipefail", "-c", command])
                    .stdin(Stdio::piped())
                    .stdout(temporary.reopen()?)
                    .spawn()?;
                let stdin = child.stdin.take().context("no pipe to the compressor")?;
                let mut out = Hashed::new(io::BufWriter::with_capacity(1 << 20, stdin));
                let filled = fill(&mut out);
                let diff_id = out.finish();
                let status = child.wait()?;
                filled?;
                if !status.success() {
                    bail!("`{command}` failed: {status}");
                }
                diff_id?
            }
        };
        let (digest, size) = digest_file(temporary.path())?;
        temporary.persist(self.path_of(&digest))?;
        let descriptor = json!({"mediaType": how.media_type(), "digest": digest, "size": size});
        Ok(Layer { descriptor, diff_id })
    }

    /// Stores a layer that the caller has packed: `blob` decompresses to `tar`.
    pub fn packed(&self, media_type: &str, tar: &[u8], blob: &[u8]) -> Result<Layer> {
        let descriptor = json!({"mediaType": media_type, "digest": self.blob(blob)?, "size": blob.len()});
        Ok(Layer { descriptor, diff_id: hex_digest(tar) })
    }

    /// Writes an image's configuration and manifest; gives the manifest's descriptor.
    pub fn image(&self, image: &Image) -> Result<Value> {
        let architecture = image.architecture.as_deref().unwrap_or("amd64");
        let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": if image.config.is_null() { json!({}) } else { image.config.clone() },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config)?;
        let layers: Vec<&Value> = image.layers.iter().map(|layer| &layer.descriptor).collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config)?,
                "size": config.len(),
            },
            "layers": layers,
        }))?;
        Ok(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.blob(&manifest)?,
            "size": manifest.len(),
            "platform": {"architecture": architecture, "os": "linux"},
        }))
    }

    /// Writes an image index over these manifests; gives its descriptor.
    pub fn index(&self, manifests: &[Value]) -> Result<Value> {
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}))?;
        Ok(json!({"mediaType": media_type, "digest": self.blob(&index)?, "size": index.len()}))
    }

    /// Gives a manifest or an index a tag, taking the tag away from whatever had it.
    pub fn tag(&self, tag: &str, descriptor: &Value) -> Result<()> {
        let path = self.dir.join("index.json");
        let mut index: Value = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => json!({"schemaVersion": 2, "manifests": []}),
        };
        let mut entry = descriptor.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let manifests = index["manifests"].as_array_mut().context("index.json without manifests")?;
        manifests.retain(|other| other["annotations"]["org.opencontainers.image.ref.name"] != tag);
        manifests.push(entry);
        Ok(fs::write(path, serde_json::to_vec(&index)?)?)
    }
}

/// `sha256:…` of some bytes.
pub fn hex_digest(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    named(hash)
}

/// `sha256:…` and the size of a file.
pub fn digest_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((named(hash), size)),
            read => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

fn named(hash: Sha256) -> String {
    let mut name = String::from("sha256:");
    for byte in hash.finalize() {
        name.push_str(&format!("{byte:02x}"));
    }
    name
}

/// Passes bytes on and hashes them.
struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Hashed<W> {
    fn new(out: W) -> Self {
        Self { out, hash: Sha256::new() }
    }

    fn finish(mut self) -> io::Result<String> {
        self.out.flush()?;
        Ok(named(self.hash))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
