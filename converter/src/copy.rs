//! `clipper copy`: an image with all that belongs to it to another registry or layout, digests unchanged.
use crate::cli::{Common, CopyArgs};
use crate::convert::{ANNOTATION_BASE, BASE_LAYERS, TAG_SUFFIX};
use crate::report::{Progress, human};
use crate::transfer;
use anyhow::{Context, Result, bail};
use clipper_format::Digest;
use clipper_format::index::BlobRef;
use clipper_registry::{Client, Manifest, Reference, Repository, Selector};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

/// Manifests that an image may have, and indexes within indexes.
const MANIFESTS_MAX: usize = 1000;
const DEPTH_MAX: usize = 4;

/// What a copy has done. Sizes are bytes.
#[derive(Serialize)]
struct Copied {
    source: String,
    target: String,
    /// What the target's tag points at: the same as the source's.
    digest: Digest,
    manifests: usize,
    blobs: usize,
    /// Blobs that the target didn't have, and their bytes.
    copied_blobs: usize,
    copied_bytes: u64,
    /// The base image's tag or digest at the target, with --with-base.
    base: Option<String>,
    seconds: f64,
}

/// An image and all that belongs to it.
#[derive(Default)]
struct Bundle {
    /// Manifests, each after those that it names; without those that have a tag.
    manifests: Vec<Manifest>,
    blobs: BTreeMap<Digest, BlobRef>,
    /// Digests of base images that manifests name.
    bases: Vec<Digest>,
    seen: HashSet<Digest>,
}

/// Runs the command.
pub async fn run(common: &Common, args: CopyArgs) -> Result<()> {
    let begun = Instant::now();
    let progress = Progress::new(common);
    let client = common.client()?;
    let target = target(&args)?;
    let (from, to) = (client.repository(&args.source)?, client.repository(&target)?);
    let top = from.manifest(&from.selector(&args.source).await?).await?;
    let mut bundle = Bundle::default();
    bundle.gather(&from, &top, 0).await.with_context(|| args.source.to_string())?;
    // Tags that are set once all else is there; the image's own is the last.
    let mut tags = Vec::new();
    let mut base = None;
    if args.with_base {
        let bases = std::mem::take(&mut bundle.bases);
        if bases.is_empty() {
            bail!("{}: it names no base image: is it one that `clipper convert` made?", args.source);
        }
        let named = base_by_tag(&client, &args.source, &target, &bases).await?;
        for digest in bases {
            let manifest = from.manifest(&Selector::Digest(digest)).await;
            let manifest = manifest.with_context(|| format!("{}: its base image {digest}", args.source))?;
            bundle.gather(&from, &manifest, 0).await?;
            bundle.keep(manifest);
            base = Some(digest.to_string());
        }
        if let Some((tag, manifest)) = named {
            bundle.gather(&from, &manifest, 0).await?;
            base = Some(tag.to_string());
            tags.push((tag, manifest));
        }
    }
    let tag = target.tag().unwrap_or_default().to_owned();
    tags.push((Selector::Tag(tag), top.clone()));

    let sent = bundle.send(&from, &to, &progress).await?;
    for (tag, manifest) in &tags {
        put(&to, tag, manifest).await?;
    }
    let there = to.manifest(&Selector::Digest(top.digest)).await.with_context(|| format!("reading {target} back"))?;
    let copied = Copied {
        source: args.source.to_string(),
        target: target.to_string(),
        digest: there.digest,
        manifests: bundle.manifests.len() + tags.len(),
        blobs: bundle.blobs.len(),
        copied_blobs: sent.len(),
        copied_bytes: sent.iter().sum(),
        base,
        seconds: begun.elapsed().as_secs_f64(),
    };
    if common.json {
        println!("{}", serde_json::to_string_pretty(&copied)?);
    } else {
        println!(
            "{}\n  digest       {}\n  blobs        {} copied ({}), {} there already\n  time         {:.1} s",
            copied.target,
            copied.digest,
            copied.copied_blobs,
            human(copied.copied_bytes),
            copied.blobs - copied.copied_blobs,
            copied.seconds
        );
    }
    Ok(())
}

/// Where the copy goes: the source's tag, unless the target has one.
fn target(args: &CopyArgs) -> Result<Reference> {
    let target = match (args.target.tag(), args.source.tag()) {
        (Some(_), _) => args.target.clone(),
        (None, Some(tag)) => args.target.with_tag(tag)?,
        (None, None) => bail!("TARGET {} needs a tag, since SOURCE has none", args.target),
    };
    if target == args.source {
        bail!("SOURCE and TARGET are the same");
    }
    Ok(target)
}

/// The base image by the tag without the suffix, if that still is the image that was converted.
async fn base_by_tag(
    client: &Client,
    source: &Reference,
    target: &Reference,
    bases: &[Digest],
) -> Result<Option<(Selector, Manifest)>> {
    let base = |reference: &Reference| {
        let tag = reference.tag()?.strip_suffix(TAG_SUFFIX)?;
        Some(tag.strip_suffix(BASE_LAYERS).unwrap_or(tag).to_owned())
    };
    let (Some(from), Some(to)) = (base(source), base(target)) else { return Ok(None) };
    let manifest = match client.repository(source)?.manifest(&Selector::Tag(from)).await {
        Ok(manifest) => manifest,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let listed = descriptors(&manifest)?.manifests.into_iter().map(|blob| blob.digest);
    let known: HashSet<Digest> = listed.chain([manifest.digest]).collect();
    Ok(bases.iter().all(|digest| known.contains(digest)).then_some((Selector::Tag(to), manifest)))
}

/// What a manifest names.
#[derive(Default)]
struct Named {
    manifests: Vec<BlobRef>,
    blobs: Vec<BlobRef>,
    base: Option<Digest>,
}

fn descriptors(manifest: &Manifest) -> Result<Named> {
    let bad = || format!("manifest {}", manifest.digest);
    let parsed: Value = serde_json::from_slice(&manifest.bytes).with_context(bad)?;
    let descriptor = |value: &Value| -> Result<BlobRef> {
        let digest = value["digest"].as_str().context("a descriptor without a digest")?.parse()?;
        Ok(BlobRef { digest, size: value["size"].as_u64().context("a descriptor without a size")? })
    };
    let list =
        |key: &str| -> Result<Vec<BlobRef>> { parsed[key].as_array().into_iter().flatten().map(descriptor).collect() };
    let mut named = Named { manifests: list("manifests").with_context(bad)?, ..Named::default() };
    named.blobs = list("layers").with_context(bad)?;
    if parsed["config"].is_object() {
        named.blobs.push(descriptor(&parsed["config"]).with_context(bad)?);
    }
    named.base = parsed["annotations"][ANNOTATION_BASE].as_str().and_then(|digest| digest.parse().ok());
    Ok(named)
}

impl Bundle {
    /// Adds all that `top` names, but not `top` itself.
    async fn gather(&mut self, from: &Repository, top: &Manifest, depth: usize) -> Result<()> {
        let named = descriptors(top)?;
        self.blobs.extend(named.blobs.into_iter().map(|blob| (blob.digest, blob)));
        self.bases.extend(named.base);
        if depth > DEPTH_MAX || self.manifests.len() + named.manifests.len() > MANIFESTS_MAX {
            bail!("manifest {}: more than {MANIFESTS_MAX} manifests, or indexes nested too deep", top.digest);
        }
        for entry in named.manifests {
            if self.seen.contains(&entry.digest) {
                continue;
            }
            let manifest = from.manifest(&Selector::Digest(entry.digest)).await?;
            Box::pin(self.gather(from, &manifest, depth + 1)).await?;
            self.keep(manifest);
        }
        Ok(())
    }

    fn keep(&mut self, manifest: Manifest) {
        if self.seen.insert(manifest.digest) {
            self.manifests.push(manifest);
        }
    }

    /// Brings blobs, then manifests, to the target; returns the sizes of the blobs that it didn't have.
    async fn send(&self, from: &Repository, to: &Repository, progress: &Progress) -> Result<Vec<u64>> {
        let sent: Vec<Option<u64>> = futures::stream::iter(self.blobs.values())
            .map(|blob| async move { transfer::blob(from, to, blob, progress).await })
            .buffer_unordered(transfer::SIDE_BY_SIDE)
            .try_collect()
            .await?;
        for manifest in &self.manifests {
            put(to, &Selector::Digest(manifest.digest), manifest).await?;
        }
        Ok(sent.into_iter().flatten().collect())
    }
}

async fn put(to: &Repository, selector: &Selector, manifest: &Manifest) -> Result<()> {
    let put = to.put_manifest(selector, &manifest.media_type, manifest.bytes.clone()).await;
    put.with_context(|| format!("publishing {selector} in {to}"))?;
    Ok(())
}
