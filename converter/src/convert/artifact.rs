//! The documents that are published: image manifest, index manifest, and the OCI image index that holds both.
use super::edition::{self, Edition, EditionLayer};
use clipper_format::Digest;
use clipper_format::chunked::Compression;
use clipper_format::index::{
    ANNOTATION_INDEX, ANNOTATION_LAYER, BlobRef, MEDIA_TYPE_CHECKPOINTS, MEDIA_TYPE_HOT, MEDIA_TYPE_INDEX_ARTIFACT,
    MEDIA_TYPE_INDEX_LAYER,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Media type of an OCI image index (image-spec, image-index.md).
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image manifest (image-spec, manifest.md).
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const EMPTY_JSON: &str = "application/vnd.oci.empty.v1+json";
/// The content of the empty descriptor (image-spec, manifest.md, "Guidance for an Empty Descriptor").
pub const EMPTY: &[u8] = b"{}";

/// Annotation of the image manifest: the digest of the manifest that was converted.
pub const ANNOTATION_BASE: &str = "io.clipper.base.digest";
/// Annotation of the image manifest: the mode of conversion.
pub const ANNOTATION_MODE: &str = "io.clipper.mode";
/// Annotation of the image manifest in full mode: format and level of the layers' compression.
pub const ANNOTATION_COMPRESSION: &str = "io.clipper.compression";
/// Annotation of a repacked layer: the digest of the layer that it was made from.
pub const ANNOTATION_BASE_LAYER: &str = "io.clipper.base.layer";

/// Annotations that describe the bytes of a layer, and so aren't true of it any more when it is repacked.
const OF_BYTES: [&str; 4] = [
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
];

/// A document ready to be pushed. Keys are sorted, so that equal content has equal digests.
pub struct Document {
    /// Its media type.
    pub media_type: &'static str,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Document {
    fn new(media_type: &'static str, value: &Value) -> Self {
        let bytes = sorted(value).to_string().into_bytes();
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// `value` with the keys of all objects in order, whatever order serde_json was built to keep.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            Value::Object(keys.into_iter().map(|k| (k.clone(), sorted(&map[k]))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// Docker's media types as OCI's: the blobs are the same, and an OCI index should hold OCI manifests.
fn oci_media_type(media_type: &str) -> String {
    match media_type {
        "application/vnd.docker.container.image.v1+json" => IMAGE_CONFIG,
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        }
        "application/vnd.docker.image.rootfs.foreign.diff.tar" => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
        }
        other => other,
    }
    .to_owned()
}

fn annotate(object: &mut Map<String, Value>, annotations: &[(&str, String)]) {
    let slot = object.entry("annotations").or_insert_with(|| json!({}));
    if !slot.is_object() {
        *slot = json!({});
    }
    if let Value::Object(map) = slot {
        map.extend(annotations.iter().map(|(k, v)| ((*k).to_owned(), Value::from(v.as_str()))));
    }
}

/// What an image manifest says besides what the base's does.
pub struct ImageParts<'a> {
    /// The digest of the base's manifest.
    pub base: Digest,
    /// The index blob.
    pub index: &'a BlobRef,
    /// The edition that it is of.
    pub edition: &'a Edition,
    /// Its layers, bottom first.
    pub layers: &'a [EditionLayer<'a>],
}

/// The image manifest: the base's own, in OCI media types, with the annotations by which a snapshotter knows its layers,
/// and with other layers if they were repacked. All else in it is kept.
pub fn image_manifest(base: &Value, parts: &ImageParts<'_>) -> Document {
    let mut manifest = base.as_object().cloned().unwrap_or_default();
    manifest.insert("schemaVersion".into(), json!(2));
    manifest.insert("mediaType".into(), json!(IMAGE_MANIFEST));
    let translate = |descriptor: &mut Value| {
        if let Some(text) = descriptor.get("mediaType").and_then(Value::as_str).map(oci_media_type) {
            descriptor["mediaType"] = Value::from(text);
        }
    };
    if let Some(config) = manifest.get_mut("config") {
        translate(config);
    }
    let described = manifest.get_mut("layers").and_then(Value::as_array_mut).into_iter().flatten();
    for (descriptor, layer) in described.zip(parts.layers) {
        translate(descriptor);
        if let Value::Object(descriptor) = descriptor {
            if let Some(compression) = parts.edition.repacked {
                repacked(descriptor, layer, compression);
            }
            let digest = layer.layer.index.digest.to_string();
            annotate(descriptor, &[(ANNOTATION_INDEX, parts.index.digest.to_string()), (ANNOTATION_LAYER, digest)]);
        }
    }
    let mode = (ANNOTATION_MODE, parts.edition.mode().to_owned());
    annotate(&mut manifest, &[(ANNOTATION_BASE, parts.base.to_string()), mode]);
    if let Some(compression) = parts.edition.repacked {
        annotate(&mut manifest, &[(ANNOTATION_COMPRESSION, edition::name(compression))]);
    }
    Document::new(IMAGE_MANIFEST, &Value::Object(manifest))
}

/// Makes a layer's descriptor that of the repacked layer.
fn repacked(descriptor: &mut Map<String, Value>, layer: &EditionLayer<'_>, compression: Compression) {
    let media_type = match compression {
        Compression::Zstd(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Gzip(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
    };
    descriptor.insert("mediaType".into(), json!(media_type));
    descriptor.insert("digest".into(), json!(layer.layer.index.digest));
    descriptor.insert("size".into(), json!(layer.layer.index.source_size));
    // A copy of the base's bytes elsewhere isn't one of these.
    descriptor.remove("urls");
    if let Some(Value::Object(annotations)) = descriptor.get_mut("annotations") {
        annotations.retain(|key, _| !OF_BYTES.iter().any(|prefix| key.starts_with(prefix)));
    }
    annotate(descriptor, &[(ANNOTATION_BASE_LAYER, layer.base.to_string())]);
    for (key, value) in layer.annotations {
        annotate(descriptor, &[(key.as_str(), value.clone())]);
    }
}

/// The index manifest: an OCI artifact whose subject is the image manifest.
pub fn index_manifest(
    image: &Document,
    index: &BlobRef,
    checkpoints: Option<&BlobRef>,
    hot: Option<&BlobRef>,
) -> Document {
    let blob =
        |media_type: &str, blob: &BlobRef| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let mut layers = vec![blob(MEDIA_TYPE_INDEX_LAYER, index)];
    layers.extend(checkpoints.map(|c| blob(MEDIA_TYPE_CHECKPOINTS, c)));
    layers.extend(hot.map(|h| blob(MEDIA_TYPE_HOT, h)));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": MEDIA_TYPE_INDEX_ARTIFACT,
        "config": { "mediaType": EMPTY_JSON, "digest": Digest::of(EMPTY), "size": EMPTY.len() },
        "layers": layers,
        "subject": image.descriptor(),
    });
    Document::new(IMAGE_MANIFEST, &manifest)
}

/// An OCI image index as Go's OCI structs write it: fields in their order and none that older ones lack (such as
/// `artifactType`). Tools that read and write an index again when they copy it, as skopeo before 1.14 does, then arrive
/// at the same bytes and so at the same digest.
#[derive(Serialize)]
struct ImageIndex<'a> {
    #[serde(rename = "schemaVersion")]
    schema_version: u8,
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    manifests: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "mediaType")]
    media_type: &'a str,
    digest: Digest,
    size: usize,
    platform: Platform<'a>,
}

#[derive(Serialize)]
struct Platform<'a> {
    architecture: &'a Value,
    os: &'a Value,
    #[serde(rename = "os.version", skip_serializing_if = "Option::is_none")]
    os_version: Option<&'a Value>,
    #[serde(rename = "os.features", skip_serializing_if = "Option::is_none")]
    os_features: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a Value>,
}

impl<'a> Platform<'a> {
    fn of(value: &'a Value) -> Self {
        Self {
            architecture: &value["architecture"],
            os: &value["os"],
            os_version: value.get("os.version"),
            os_features: value.get("os.features"),
            variant: value.get("variant"),
        }
    }
}

/// The OCI image index of all `(platform, image manifest, index manifest)`. Index manifests follow all images, for
/// clients that take the first entry without looking at platforms.
///
/// # Errors
/// If it can't be written as JSON: never, with strings for keys.
pub fn image_index(images: &[(Value, Document, Document)]) -> serde_json::Result<Document> {
    let unknown = json!({ "architecture": "unknown", "os": "unknown" });
    let entry = |document: &Document, platform| Entry {
        media_type: document.media_type,
        digest: document.digest,
        size: document.bytes.len(),
        platform,
    };
    let own = images.iter().map(|(platform, image, _)| entry(image, Platform::of(platform)));
    let attached = images.iter().map(|(_, _, index)| entry(index, Platform::of(&unknown)));
    let manifests = own.chain(attached).collect();
    let bytes = serde_json::to_vec(&ImageIndex { schema_version: 2, media_type: IMAGE_INDEX, manifests })?;
    Ok(Document { media_type: IMAGE_INDEX, digest: Digest::of(&bytes), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::layer::IndexedLayer;
    use clipper_format::index::{LayerIndex, PackedTree};
    use clipper_format::span::SpanTable;
    use clipper_format::tar::{LayerWalker, Limits};
    use std::sync::Arc;

    /// A layer with an empty tar, as if it had been made from `base`.
    fn layer(base: Digest, own: Digest) -> (Digest, Arc<IndexedLayer>) {
        let tree = PackedTree::pack(&LayerWalker::new(Limits::default()).finish().unwrap()).unwrap();
        let spans = SpanTable::new(Vec::new(), 7).unwrap();
        let (diff_id, source_size, checkpoint_groups) = (base, 7, Vec::new());
        let index = LayerIndex { digest: own, diff_id, source_size, tree, spans, checkpoint_groups };
        (base, Arc::new(IndexedLayer { index, checkpoints: Vec::new(), took: None, parts: None }))
    }

    fn edition(repacked: Option<Compression>) -> Edition {
        Edition { target: "example.com/a:b_accelerated".parse().unwrap(), repacked }
    }

    fn manifest(base: &Value, edition: &Edition, layers: &[(Digest, Arc<IndexedLayer>)], index: &BlobRef) -> Document {
        let annotations = [("toc".to_owned(), "there".to_owned())];
        let annotations: &[_] = if edition.repacked.is_some() { &annotations } else { &[] };
        let layers: Vec<_> =
            layers.iter().map(|(base, layer)| EditionLayer { base: *base, layer, annotations }).collect();
        image_manifest(base, &ImageParts { base: Digest::of(b"base"), index, edition, layers: &layers })
    }

    #[test]
    fn repacked_layers_take_the_place_of_the_bases() {
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let stale = "io.github.containers.zstd-chunked.manifest-position";
        let base = json!({ "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": old, "size": 5,
            "annotations": { "kept": "yes", stale: "1:2:3:1" }, "urls": ["https://example.com"],
        }] });
        let edition = edition(Some(Compression::Zstd(6)));
        let document = manifest(&base, &edition, &[layer(old, new)], &blob("index"));
        let made: Value = serde_json::from_slice(&document.bytes).unwrap();
        let expected = json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": new, "size": 7,
            "annotations": { "kept": "yes", "toc": "there", ANNOTATION_BASE_LAYER: old, ANNOTATION_LAYER: new,
                             ANNOTATION_INDEX: blob("index").digest },
        });
        assert_eq!(made["layers"], json!([expected]));
        assert_eq!(made["annotations"][ANNOTATION_MODE], "full");
        assert_eq!(made["annotations"][ANNOTATION_COMPRESSION], "zstd:6");
    }

    fn blob(text: &str) -> BlobRef {
        BlobRef { digest: Digest::of(text.as_bytes()), size: text.len() as u64 }
    }

    #[test]
    fn docker_manifests_become_oci_and_keep_everything_else() {
        let layer = Digest::of(b"layer");
        let base = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": { "mediaType": "application/vnd.docker.container.image.v1+json", "digest": layer, "size": 7 },
            "layers": [{ "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": layer, "size": 5,
                         "annotations": { "kept": "yes" } }],
            "annotations": { "also": "kept" },
            "unheardOf": [1, 2],
        });
        let (index, base_digest) = (blob("index"), Digest::of(b"base"));
        let document = manifest(&base, &edition(None), &[self::layer(layer, layer)], &index);
        assert_eq!(document.digest, Digest::of(&document.bytes));
        let made: Value = serde_json::from_slice(&document.bytes).unwrap();
        assert_eq!(made["mediaType"], IMAGE_MANIFEST);
        assert_eq!(made["config"]["mediaType"], IMAGE_CONFIG);
        assert_eq!(made["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
        assert_eq!(made["layers"][0]["annotations"]["kept"], "yes");
        assert_eq!(made["layers"][0]["annotations"][ANNOTATION_INDEX], index.digest.to_string());
        assert_eq!(made["layers"][0]["annotations"][ANNOTATION_LAYER], layer.to_string());
        assert_eq!(made["annotations"]["also"], "kept");
        assert_eq!(made["annotations"][ANNOTATION_BASE], base_digest.to_string());
        assert_eq!(made["unheardOf"], json!([1, 2]));
    }

    #[test]
    fn the_index_manifest_points_at_its_image_and_comes_after_all_images() {
        let index = blob("index");
        let image = manifest(&json!({ "layers": [] }), &edition(None), &[], &index);
        let artifact = index_manifest(&image, &index, Some(&blob("checkpoints")), Some(&blob("hot")));
        let made: Value = serde_json::from_slice(&artifact.bytes).unwrap();
        assert_eq!(made["subject"]["digest"], image.digest.to_string());
        assert_eq!(made["artifactType"], MEDIA_TYPE_INDEX_ARTIFACT);
        assert_eq!(made["layers"].as_array().map(Vec::len), Some(3));
        assert_eq!(made["layers"][2]["mediaType"], MEDIA_TYPE_HOT);
        let top = image_index(&[(json!({ "os": "linux", "architecture": "amd64" }), image, artifact)]).unwrap();
        assert!(top.bytes.starts_with(
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"#
        ));
        let made: Value = serde_json::from_slice(&top.bytes).unwrap();
        assert_eq!(made["manifests"][0]["platform"]["os"], "linux");
        assert_eq!(made["manifests"][1]["platform"]["os"], "unknown");
    }

    #[test]
    fn keys_are_sorted() {
        let value: Value = serde_json::from_str(r#"{"b":[{"z":1,"a":2}],"a":{"y":1,"x":2}}"#).unwrap();
        assert_eq!(sorted(&value).to_string(), r#"{"a":{"x":2,"y":1},"b":[{"a":2,"z":1}]}"#);
    }
}
