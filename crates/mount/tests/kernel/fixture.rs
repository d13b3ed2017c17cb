//! Indexed images in an OCI layout directory, and a store on a directory of its own.
use crate::tarball::{Entry, tarball};
use clipper_device::{DeviceError, DeviceOptions};
use clipper_format::{
    Digest,
    checkpoints::CheckpointGroups,
    gzip::{self, IndexOptions, IndexedSpan},
    index::{
        ANNOTATION_INDEX, ANNOTATION_LAYER, BlobRef, Index, LayerIndex, MEDIA_TYPE_CHECKPOINTS,
        MEDIA_TYPE_INDEX_ARTIFACT, MEDIA_TYPE_INDEX_LAYER, PackedTree,
    },
    span::SpanTable,
    stored::StoredIndexer,
    tar::{LayerWalker, Limits},
    zstd,
};
use clipper_mount::{Driver, LayerRef, MountOptions, Mounted, Store, StoreError, StoreOptions, accelerated};
use clipper_registry::{Client, ClientOptions, Reference};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Handle;

/// Small spans: a small layer has many.
const SPAN_SIZE: u32 = 64 << 10;

#[derive(Clone, Copy)]
pub enum Packing {
    Tar,
    Gzip,
    /// Frames of 10 000 bytes each.
    Zstd,
}

/// An accelerated image in a layout directory, with the tag `latest_accelerated`.
pub struct Image {
    dir: TempDir,
    pub layers: Vec<LayerRef>,
}

impl Image {
    /// Packs each of `layers`, bottom first, and indexes them.
    pub fn new(layers: &[(&[Entry], Packing)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let blob = |bytes: &[u8]| -> Digest {
            let digest = Digest::of(bytes);
            fs::write(dir.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
            digest
        };
        let mut checkpoints = Vec::new();
        let mut indexes = Vec::new();
        for (entries, packing) in layers {
            let tar = tarball(entries);
            let (packed, layer) = index_layer(&tar, *packing, &mut checkpoints);
            assert_eq!(blob(&packed), layer.digest);
            indexes.push(layer);
        }
        let digests: Vec<Digest> = indexes.iter().map(|layer| layer.digest).collect();
        let sizes: Vec<u64> = indexes.iter().map(|layer| layer.source_size).collect();
        let checkpoints_ref =
            (!checkpoints.is_empty()).then(|| BlobRef { digest: blob(&checkpoints), size: checkpoints.len() as u64 });
        let index = Index {
            span_size: SPAN_SIZE,
            checkpoints: checkpoints_ref,
            layers: indexes,
            prefetch: Vec::new(),
            hot: None,
        };
        let index = index.encode().unwrap();
        let index_ref = BlobRef { digest: blob(&index), size: index.len() as u64 };

        let put = |value: Value| -> Value {
            let bytes = value.to_string().into_bytes();
            json!({ "mediaType": value["mediaType"], "digest": blob(&bytes), "size": bytes.len() })
        };
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let described = |media_type: &str, digest: Digest, size: u64| json!({ "mediaType": media_type, "digest": digest, "size": size });
        let config = described("application/vnd.oci.image.config.v1+json", blob(config), config.len() as u64);
        let layers_json: Vec<Value> = digests
            .iter()
            .zip(&sizes)
            .map(|(digest, size)| {
                let mut layer = described("application/vnd.oci.image.layer.v1.tar+gzip", *digest, *size);
                layer["annotations"] = json!({ ANNOTATION_INDEX: index_ref.digest, ANNOTATION_LAYER: digest });
                layer
            })
            .collect();
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let mut image = put(json!({
            "schemaVersion": 2, "mediaType": manifest, "config": config, "layers": layers_json,
        }));
        let mut parts = vec![described(MEDIA_TYPE_INDEX_LAYER, index_ref.digest, index_ref.size)];
        parts.extend(checkpoints_ref.map(|blob| described(MEDIA_TYPE_CHECKPOINTS, blob.digest, blob.size)));
        let mut attachment = put(json!({
            "schemaVersion": 2, "mediaType": manifest, "artifactType": MEDIA_TYPE_INDEX_ARTIFACT,
            "config": described("application/vnd.oci.empty.v1+json", blob(b"{}"), 2),
            "layers": parts, "subject": image,
        }));
        image["platform"] = json!({ "os": "linux", "architecture": "amd64" });
        attachment["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        attachment["artifactType"] = json!(MEDIA_TYPE_INDEX_ARTIFACT);
        let index_type = "application/vnd.oci.image.index.v1+json";
        let mut top = put(json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": [image, attachment] }));
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest_accelerated" });
        image["annotations"] = json!({ "org.opencontainers.image.ref.name": "plain" });
        let layout = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": [top, image] });
        fs::write(dir.path().join("index.json"), layout.to_string()).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();

        let reference = reference(dir.path().to_owned(), "latest_accelerated");
        let layers = digests
            .into_iter()
            .map(|layer| LayerRef {
                index: index_ref.digest,
                layer,
                repositories: vec![reference.clone()],
                image: None,
            })
            .collect();
        Self { dir, layers }
    }

    pub fn gzip(entries: &[Entry]) -> Self {
        Self::new(&[(entries, Packing::Gzip)])
    }

    /// A reference to the tag `tag` of the layout.
    pub fn reference(&self, tag: &str) -> Reference {
        reference(self.dir.path().to_owned(), tag)
    }

    /// The file of a blob.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// Makes everything but what is cached unreachable.
    pub fn unplug(&self) {
        fs::rename(self.dir.path().join("blobs"), self.dir.path().join("unplugged")).unwrap();
    }
}

fn reference(dir: PathBuf, tag: &str) -> Reference {
    format!("oci:{}:{tag}", dir.display()).parse().unwrap()
}

/// The packed layer and its part of the index; its checkpoints are put behind `checkpoints`.
fn index_layer(tar: &[u8], packing: Packing, checkpoints: &mut Vec<u8>) -> (Vec<u8>, LayerIndex) {
    let mut spans = Vec::new();
    let packed = match packing {
        Packing::Tar => {
            let mut indexer = StoredIndexer::new(IndexOptions { span_size: SPAN_SIZE });
            indexer.push(tar, &mut spans);
            indexer.finish(&mut spans);
            tar.to_vec()
        }
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(tar).unwrap();
            let packed = encoder.finish().unwrap();
            let mut indexer = gzip::Indexer::new(IndexOptions { span_size: SPAN_SIZE });
            indexer.push(&packed, &mut spans).unwrap();
            indexer.finish(&mut spans).unwrap();
            packed
        }
        Packing::Zstd => {
            let packed: Vec<u8> =
                tar.chunks(10_000).flat_map(|part| ::zstd::bulk::compress(part, 3).unwrap()).collect();
            let mut indexer = zstd::Indexer::new(IndexOptions { span_size: SPAN_SIZE });
            indexer.push(&packed, &mut spans).unwrap();
            indexer.finish(&mut spans).unwrap();
            packed
        }
    };
    let mut walker = LayerWalker::new(Limits::default());
    for span in &spans {
        walker.push(&span.bytes).unwrap();
    }
    let tree = PackedTree::pack(&walker.finish().unwrap()).unwrap();
    let mut points = CheckpointGroups::new(3);
    spans.iter().filter_map(|span| span.checkpoint.clone()).for_each(|checkpoint| points.push(checkpoint));
    let (own, groups) = points.finish();
    let first = checkpoints.len() as u64;
    let groups = groups.into_iter().map(|group| group.start + first..group.end + first).collect();
    checkpoints.extend(own);
    let spans = spans.iter().map(IndexedSpan::to_span).collect();
    let layer = LayerIndex {
        digest: Digest::of(&packed),
        diff_id: Digest::of(tar),
        source_size: packed.len() as u64,
        tree,
        spans: SpanTable::new(spans, packed.len() as u64).unwrap(),
        checkpoint_groups: groups,
    };
    (packed, layer)
}

/// A store in a directory of its own, and a place to mount on.
pub struct Node {
    root: PathBuf,
    pub store: Arc<Store>,
    pub options: MountOptions,
    temporary: Option<TempDir>,
}

impl Node {
    /// In a directory of its own, with images mounted by `driver`.
    pub fn new(driver: Driver) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let node = Self::at(temporary.path().to_owned(), driver);
        Self { temporary: Some(temporary), ..node }
    }

    /// In the directory `root`.
    pub fn at(root: PathBuf, driver: Driver) -> Self {
        let store = open_store(root.join("store"));
        Self { root, store, options: options(driver), temporary: None }
    }

    /// The same node with a new process.
    pub fn restarted(self) -> Self {
        let Self { root, store, options, temporary } = self;
        drop(store);
        let store = open_store(root.join("store"));
        Self { root, store, options, temporary }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub async fn mount(&self, image: &Image) -> Mounted {
        self.store.mount(&image.layers, false, &self.dir("mnt"), &self.options).await.unwrap()
    }
}

/// The defaults, but with this driver.
pub fn options(driver: Driver) -> MountOptions {
    MountOptions { driver, ..MountOptions::default() }
}

pub fn client() -> Client {
    Client::new(ClientOptions::default()).unwrap()
}

fn open_store(root: PathBuf) -> Arc<Store> {
    let open = || {
        let options = StoreOptions { root: root.clone(), client: client(), devices: DeviceOptions::default() };
        Store::open(options, Handle::current())
    };
    // A program that another test is starting holds the lock of a dropped store until its exec.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Err(StoreError::Devices { source, .. })
                if matches!(*source, DeviceError::InUse { .. }) && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// The image that `reference` leads to.
pub async fn resolve(reference: &Reference) -> Result<accelerated::AcceleratedImage, accelerated::AcceleratedError> {
    accelerated::resolve(&client(), reference, None).await
}
