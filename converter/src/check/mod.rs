//! `clipper check`: an accelerated image compared with its base.
mod differences;
mod lazy;
mod reference;
mod sparse;

use crate::cli::{CheckArgs, Common};
use crate::images::{self, TemporaryStore};
use crate::report::{Progress, Task, human};
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use clipper_format::index::BlobRef;
use clipper_mount::AcceleratedImage;
use clipper_registry::image::ImageSet;
use clipper_registry::{Client, Reference, Repository};
use differences::Difference;
use futures::TryStreamExt;
use reference::Paths;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read};
use std::process::ExitCode;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// What came of comparing one platform's image.
#[derive(Serialize)]
struct Checked {
    platform: String,
    manifest: Digest,
    paths: usize,
    bytes: u64,
    differences: Vec<Difference>,
    /// Differences found, also those that aren't listed.
    difference_count: usize,
}

/// Runs the command; the exit code tells whether there are differences.
pub async fn run(common: &Common, args: CheckArgs) -> Result<ExitCode> {
    let progress = Progress::new(common);
    let client = common.client()?;
    let store = TemporaryStore::open(&client)?;
    let mut results = Vec::new();
    for image in images::accelerated(&client, &args.reference, args.platform.as_deref()).await? {
        let base = base_layers(&client, &args, &image).await?;
        let paths = unpack(&base, &progress).await?;
        let lazy = lazy::read(&store, &image, &progress).await?;
        let mut differences = differences::compare(&paths, &lazy.paths);
        let difference_count = differences.len();
        differences.truncate(args.limit);
        results.push(Checked {
            platform: image.platform.to_string(),
            manifest: image.image.digest,
            paths: paths.names.len(),
            bytes: lazy.bytes,
            differences,
            difference_count,
        });
    }
    store.remove().await?;
    if common.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print(&args.reference, &results);
    }
    let same = results.iter().all(|r| r.difference_count == 0);
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(reference: &Reference, results: &[Checked]) {
    for result in results {
        for difference in &result.differences {
            println!("{difference}");
        }
        let Checked { platform, paths, bytes, difference_count, .. } = result;
        let verdict = match difference_count {
            0 => "the same as its base".to_owned(),
            n => format!("{n} differences, {} shown", result.differences.len()),
        };
        println!("{reference} {platform}: {paths} paths, {} of file data: {verdict}", human(*bytes));
    }
}

/// The base image's layers of one platform, and where they are.
struct Base {
    repository: Repository,
    layers: Vec<BlobRef>,
}

/// The layers to compare with: those of `--base`, or else those that the accelerated image's manifest names, which
/// is what a runtime without Clipper unpacks.
async fn base_layers(client: &Client, args: &CheckArgs, image: &AcceleratedImage) -> Result<Base> {
    let own: Vec<_> = image.layers.iter().map(|l| BlobRef { digest: l.digest, size: l.size }).collect();
    let Some(reference) = &args.base else {
        return Ok(Base { repository: client.repository(&args.reference)?, layers: own });
    };
    let repository = client.repository(reference)?;
    let set = ImageSet::resolve(&repository, reference).await?;
    let platform = &image.platform;
    let base = set.image(platform).with_context(|| format!("{reference} has no image for {platform}"))?;
    let mut layers = Vec::new();
    for layer in base.manifest.layers() {
        let digest = layer.digest().as_ref().parse().with_context(|| format!("{reference}: a layer's digest"))?;
        layers.push(BlobRef { digest, size: layer.size() });
    }
    Ok(Base { repository, layers })
}

/// Unpacks the layers, bottom first, into a map of paths.
async fn unpack(base: &Base, progress: &Progress) -> Result<Paths> {
    let mut paths = Paths::default();
    for layer in &base.layers {
        let task = progress.task(&layer.digest.hex()[..12], layer.size);
        let stream = base.repository.blob(layer.digest, layer.size).read(0..layer.size).await?;
        let bytes: BlobBytes = Box::pin(stream.map_err(io::Error::other));
        let reader = StreamReader::new(bytes);
        let bridge = SyncIoBridge::new(reader);
        let digest = layer.digest;
        let (result, task) = tokio::task::spawn_blocking(move || {
            let mut hashed = Hashed { inner: bridge, hash: Sha256::new(), task };
            let result = unpack_layer(&mut paths, &mut hashed, digest);
            (result.map(|()| paths), hashed.task)
        })
        .await?;
        paths = result.with_context(|| format!("base layer {digest}"))?;
        task.done(&format!("{}  unpacked {}", &digest.hex()[..12], human(layer.size)));
    }
    Ok(paths)
}

fn unpack_layer(paths: &mut Paths, source: &mut Hashed, digest: Digest) -> Result<()> {
    let mut head = Vec::new();
    (&mut *source).take(4).read_to_end(&mut head)?;
    let magic = head.clone();
    let whole = io::Cursor::new(head).chain(&mut *source);
    match magic[..] {
        [0x1f, 0x8b, ..] => {
            let mut tar = flate2::read::MultiGzDecoder::new(whole);
            reference::apply(paths, &mut tar)?;
            io::copy(&mut tar, &mut io::sink())?;
        }
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut tar = zstd::Decoder::new(whole)?;
            reference::apply(paths, &mut tar)?;
            io::copy(&mut tar, &mut io::sink())?;
        }
        _ => reference::apply(paths, whole)?,
    }
    io::copy(source, &mut io::sink())?;
    let actual = Digest::from_bytes(source.hash.clone().finalize().into());
    if actual != digest {
        bail!("the registry sent other bytes, with digest {actual}");
    }
    Ok(())
}

/// A reader that hashes and counts what goes through it.
struct Hashed {
    inner: SyncIoBridge<StreamReader<BlobBytes, bytes::Bytes>>,
    hash: Sha256,
    task: Task,
}

/// The stream under [`Hashed`].
type BlobBytes = std::pin::Pin<Box<dyn futures::Stream<Item = io::Result<bytes::Bytes>> + Send>>;

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.task.advance(n as u64);
        Ok(n)
    }
}
