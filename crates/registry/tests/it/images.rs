//! What a reference stands for: images, platforms, attachments.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{
    ErrorKind, PlatformName, Repository, Selector,
    image::{ImageSet, digest_of},
    media,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A layout to put images in.
struct Store {
    dir: TempDir,
    repository: Repository,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(&client(), &format!("oci:{}", dir.path().display()));
        Self { dir, repository }
    }

    async fn put(&self, tag: Option<&str>, media_type: &str, document: &Value) -> Value {
        let bytes = Bytes::from(document.to_string());
        let digest = Digest::of(&bytes);
        let selector = tag.map_or(Selector::Digest(digest), |t| Selector::Tag(t.into()));
        self.repository.put_manifest(&selector, media_type, bytes.clone()).await.unwrap();
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    }

    async fn config(&self, platform: Value) -> Value {
        let bytes = Bytes::from(platform.to_string());
        let digest = Digest::of(&bytes);
        self.repository.push_blob(digest, bytes.clone()).await.unwrap();
        json!({ "mediaType": media::OCI_CONFIG, "digest": digest.to_string(), "size": bytes.len() })
    }

    /// An image for an architecture; its descriptor.
    async fn image(&self, tag: Option<&str>, architecture: &str) -> Value {
        let config = self.config(json!({"os": "linux", "architecture": architecture, "rootfs": {}})).await;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer()]});
        self.put(tag, media::OCI_MANIFEST, &manifest).await
    }

    async fn index(&self, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
        self.put(Some("v"), media::OCI_INDEX, &index).await;
    }

    async fn resolve(&self) -> Result<ImageSet, clipper_registry::RegistryError> {
        let name = reference(&format!("oci:{}:v", self.dir.path().display()));
        ImageSet::resolve(&self.repository, &name).await
    }

    async fn resolve_for(&self, platform: &str) -> Result<ImageSet, clipper_registry::RegistryError> {
        let name = reference(&format!("oci:{}:v", self.dir.path().display()));
        ImageSet::resolve_platform(&self.repository, &name, &platform.parse().unwrap()).await
    }
}

fn layer() -> Value {
    json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": other_digest().to_string(), "size": 7 })
}

fn on(mut descriptor: Value, platform: Value) -> Value {
    descriptor["platform"] = platform;
    descriptor
}

fn linux(architecture: &str) -> Value {
    json!({"os": "linux", "architecture": architecture})
}

fn unknown() -> Value {
    json!({"os": "unknown", "architecture": "unknown"})
}

#[tokio::test]
async fn a_single_manifest_is_an_image_of_its_config_s_platform() {
    let store = Store::new();
    let descriptor = store.image(Some("v"), "arm64").await;
    let set = store.resolve().await.unwrap();
    assert!(set.index.is_none() && set.attachments.is_empty());
    let [image] = set.images.as_slice() else { panic!("{:?}", set.images) };
    assert_eq!(image.digest.to_string(), descriptor["digest"]);
    assert_eq!(PlatformName::of(&image.platform).to_string(), "linux/arm64");
    assert_eq!(image.descriptor.size(), descriptor["size"].as_u64().unwrap());
    assert_eq!(image.source.bytes, set.top.bytes);
    assert_eq!(digest_of(&image.manifest.layers()[0]).unwrap(), other_digest());
}

#[tokio::test]
async fn docker_s_documents_are_understood_too() {
    let store = Store::new();
    let mut config = store.config(linux("amd64")).await;
    config["mediaType"] = media::DOCKER_CONFIG.into();
    let mut layer = layer();
    layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media::DOCKER_MANIFEST, "config": config, "layers": [layer]});
    let image = store.put(None, media::DOCKER_MANIFEST, &manifest).await;
    let list = json!({"schemaVersion": 2, "mediaType": media::DOCKER_INDEX, "manifests": [on(image, linux("amd64"))]});
    store.put(Some("v"), media::DOCKER_INDEX, &list).await;
    let set = store.resolve().await.unwrap();
    assert_eq!(set.top.media_type, media::DOCKER_INDEX);
    let layers = set.images[0].manifest.layers();
    assert_eq!(media::layer_compression(layers[0].media_type().as_ref()), Some(media::Compression::Gzip));
}

#[tokio::test]
async fn an_index_gives_images_and_attachments() {
    let store = Store::new();
    let amd = on(store.image(None, "amd64").await, linux("amd64"));
    let arm = store.image(None, "arm64").await;
    let empty = store.config(json!({})).await;
    let with_subject = json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": "application/vnd.example.thing.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty["digest"], "size": 2},
        "layers": [layer()], "subject": amd,
    });
    let thing = on(store.put(None, media::OCI_MANIFEST, &with_subject).await, unknown());
    // As Buildkit writes them: an image configuration, and the subject in an annotation.
    let attestation = json!({"schemaVersion": 2, "config": store.config(unknown()).await, "layers": []});
    let mut attestation = on(store.put(None, media::OCI_MANIFEST, &attestation).await, unknown());
    attestation["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": arm["digest"],
    });
    let strange = json!({"mediaType": "application/x-strange", "digest": other_digest().to_string(), "size": 1});
    store.index(&[amd.clone(), thing, arm.clone(), attestation, strange, amd.clone()]).await;

    let set = store.resolve().await.unwrap();
    let digests: Vec<_> = set.images.iter().map(|i| i.digest.to_string()).collect();
    assert_eq!(digests, [amd["digest"].as_str().unwrap(), arm["digest"].as_str().unwrap()]);
    assert_eq!(PlatformName::of(&set.images[1].platform).to_string(), "linux/arm64", "from its configuration");
    let types: Vec<_> = set.attachments.iter().map(|a| a.artifact_type.as_str()).collect();
    assert_eq!(types, ["application/vnd.example.thing.v1", media::OCI_CONFIG]);
    let of: Vec<_> = set.attachments_of(&set.images[0].digest).map(|a| a.artifact_type.as_str()).collect();
    assert_eq!(of, ["application/vnd.example.thing.v1"]);
    assert_eq!(set.attachments_of(&set.images[1].digest).count(), 1);
    assert_eq!(set.index.unwrap().manifests().len(), 6);
}

#[tokio::test]
async fn one_platform_needs_only_its_own_manifest() {
    let store = Store::new();
    let amd = on(store.image(None, "amd64").await, linux("amd64"));
    let absent = json!({"mediaType": media::OCI_MANIFEST, "digest": other_digest().to_string(), "size": 9});
    store.index(&[on(absent.clone(), linux("s390x")), amd, on(absent, unknown())]).await;
    let set = store.resolve_for("linux/x86_64").await.unwrap();
    assert_eq!(set.images.len(), 1);
    assert!(set.image(&"linux/amd64".parse().unwrap()).is_some());
    let error = store.resolve_for("linux/riscv64").await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x, linux/amd64") && error.contains("linux/riscv64"), "{error}");
    assert!(store.resolve().await.unwrap_err().is_not_found(), "all platforms are wanted, and one is absent");
}

#[tokio::test]
async fn variants_are_chosen_as_asked() {
    let store = Store::new();
    let mut entries = Vec::new();
    for (variant, n) in [("v6", 6), ("v7", 7)] {
        let config = store.config(json!({"os": "linux", "architecture": "arm", "n": n})).await;
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
        let platform = json!({"os": "linux", "architecture": "arm", "variant": variant});
        entries.push(on(store.put(None, media::OCI_MANIFEST, &manifest).await, platform));
    }
    store.index(&entries).await;
    let set = store.resolve().await.unwrap();
    for (asked, got) in [("linux/arm", "linux/arm/v7"), ("linux/arm/v6", "linux/arm/v6")] {
        let image = set.image(&asked.parse().unwrap()).unwrap();
        assert_eq!(PlatformName::of(&image.platform).to_string(), got);
    }
    assert!(set.image(&"linux/arm/v5".parse().unwrap()).is_none());
}

#[tokio::test]
async fn an_index_within_an_index_is_refused() {
    let store = Store::new();
    let inner = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []});
    let inner = store.put(None, media::OCI_INDEX, &inner).await;
    store.index(std::slice::from_ref(&inner)).await;
    let error = store.resolve().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains("index within an index") && text.contains(inner["digest"].as_str().unwrap()), "{text}");
}

#[tokio::test]
async fn indexes_that_lie_about_their_entries_are_refused() {
    let store = Store::new();
    let image = store.image(None, "amd64").await;
    let mut size = image.clone();
    size["size"] = 3.into();
    let mut kind = image.clone();
    kind["mediaType"] = media::DOCKER_MANIFEST.into();
    let mut algorithm = image.clone();
    algorithm["digest"] = format!("sha512:{}", "0".repeat(128)).into();
    for (entry, words) in [(size, "3 bytes"), (kind, "but it's"), (algorithm, "sha512")] {
        store.index(&[entry]).await;
        let error = store.resolve().await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    store.put(Some("v"), media::OCI_MANIFEST, &json!({"schemaVersion": 2, "config": {}, "layers": 1})).await;
    assert!(matches!(store.resolve().await.unwrap_err().kind(), ErrorKind::Malformed(_)));
}
