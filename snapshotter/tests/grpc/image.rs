//! Images in an OCI layout directory, with an index for some of their layers.
use crate::daemon::Labels;
use clipper_format::{
    Digest,
    checkpoints::CheckpointGroups,
    gzip::{self, IndexOptions, IndexedSpan},
    index::{ANNOTATION_INDEX, ANNOTATION_LAYER, BlobRef, Index, LayerIndex, PackedTree},
    span::SpanTable,
    tar::{LayerWalker, Limits},
};
use clipper_tests::tarball::{Entry, TarWriter};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Small spans: a small layer has many.
const SPAN_SIZE: u32 = 64 << 10;

/// A layer of an image to be made.
pub enum Source<'a> {
    /// With Clipper's annotations.
    Indexed(&'a [Entry]),
    /// Without.
    Ordinary(&'a [Entry]),
}

/// An image in a layout directory.
pub struct Image {
    dir: TempDir,
    pub layers: Vec<Layer>,
}

/// A layer of an image.
pub struct Layer {
    pub digest: Digest,
    pub chain: Digest,
    /// What it is packed from.
    pub tar: Vec<u8>,
    pub indexed: bool,
    /// As containerd's CRI plugin and `clipper pull` give them.
    pub labels: Labels,
}

impl Image {
    /// Packs layers, bottom first.
    pub fn new(sources: &[Source<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        fs::write(dir.path().join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        let (mut checkpoints, mut indexes, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        let mut diff_ids = Vec::new();
        for source in sources {
            let (entries, indexed) = match source {
                Source::Indexed(entries) => (entries, true),
                Source::Ordinary(entries) => (entries, false),
            };
            let mut writer = TarWriter::new(Vec::new());
            for entry in *entries {
                writer.entry(entry).unwrap();
            }
            let tar = writer.finish().unwrap();
            let packed = pack(&tar);
            let digest = store(dir.path(), &packed);
            diff_ids.push(Digest::of(&tar));
            if indexed {
                indexes.push(index_layer(&tar, &packed, &mut checkpoints));
            }
            let chain = Digest::chain_id(&diff_ids).unwrap();
            layers.push(Layer { digest, chain, tar, indexed, labels: Labels::new() });
        }
        let blob = BlobRef { digest: store(dir.path(), &checkpoints), size: checkpoints.len() as u64 };
        let index =
            Index { span_size: SPAN_SIZE, checkpoints: Some(blob), layers: indexes, prefetch: Vec::new(), hot: None };
        let index = index.encode().unwrap();
        let index = store(dir.path(), &index);
        let mut image = Self { dir, layers };
        let reference = image.reference();
        for layer in &mut image.layers {
            let mut label = |key: &str, value: String| layer.labels.insert(key.into(), value);
            label("containerd.io/snapshot.ref", layer.chain.to_string());
            label("containerd.io/snapshot/cri.image-ref", reference.clone());
            if layer.indexed {
                label(ANNOTATION_INDEX, index.to_string());
                label(ANNOTATION_LAYER, layer.digest.to_string());
            }
        }
        image
    }

    /// As if the image came with a manifest and containerd told its digest; without one, nothing tells what lies above
    /// a layer. `compression` ends the media type of the ordinary layers: `gzip` is what they are.
    pub fn with_manifest(mut self, compression: &str) -> Self {
        let descriptor = |digest: &Digest, media_type: String| {
            let size = fs::metadata(self.blob(digest)).unwrap().len();
            json!({"mediaType": media_type, "digest": digest.to_string(), "size": size})
        };
        let layers = self.layers.iter().map(|layer| {
            let compression = if layer.indexed { "gzip" } else { compression };
            let media_type = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
            let mut listed = descriptor(&layer.digest, media_type);
            if layer.indexed {
                let annotations = [ANNOTATION_INDEX, ANNOTATION_LAYER].map(|key| (key, layer.labels[key].as_str()));
                listed["annotations"] = annotations.into_iter().collect();
            }
            listed
        });
        let layers: Vec<_> = layers.collect();
        let config = store(self.dir.path(), b"{}");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(&config, "application/vnd.oci.image.config.v1+json".into()),
            "layers": layers,
        });
        let manifest = store(self.dir.path(), manifest.to_string().as_bytes()).to_string();
        for layer in &mut self.layers {
            layer.labels.insert("containerd.io/snapshot/cri.manifest-digest".into(), manifest.clone());
            layer.labels.insert("containerd.io/snapshot/cri.layer-digest".into(), layer.digest.to_string());
        }
        self
    }

    pub fn reference(&self) -> String {
        format!("oci:{}:latest_accelerated", self.dir.path().display())
    }

    pub fn index(&self) -> Digest {
        self.layers.iter().find_map(|layer| layer.labels.get(ANNOTATION_INDEX)).unwrap().parse().unwrap()
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// Makes everything but what is cached unreachable.
    pub fn unplug(&self) {
        fs::rename(self.dir.path().join("blobs"), self.dir.path().join("unplugged")).unwrap();
    }
}

fn store(dir: &Path, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    digest
}

fn pack(tar: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

/// A packed layer's part of the index; its checkpoints are put behind `checkpoints`.
fn index_layer(tar: &[u8], packed: &[u8], checkpoints: &mut Vec<u8>) -> LayerIndex {
    let mut spans = Vec::new();
    let mut indexer = gzip::Indexer::new(IndexOptions { span_size: SPAN_SIZE });
    indexer.push(packed, &mut spans).unwrap();
    indexer.finish(&mut spans).unwrap();
    let mut walker = LayerWalker::new(Limits::default());
    walker.push(tar).unwrap();
    let mut points = CheckpointGroups::new(3);
    spans.iter().filter_map(|span| span.checkpoint.clone()).for_each(|checkpoint| points.push(checkpoint));
    let (own, groups) = points.finish();
    let first = checkpoints.len() as u64;
    let groups = groups.into_iter().map(|group| group.start + first..group.end + first).collect();
    checkpoints.extend(own);
    LayerIndex {
        digest: Digest::of(packed),
        diff_id: Digest::of(tar),
        source_size: packed.len() as u64,
        tree: PackedTree::pack(&walker.finish().unwrap()).unwrap(),
        spans: SpanTable::new(spans.iter().map(IndexedSpan::to_span).collect(), packed.len() as u64).unwrap(),
        checkpoint_groups: groups,
    }
}

/// Bytes that don't compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
