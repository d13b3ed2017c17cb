//! Against the reference registry, as Debian packages it.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, Repository, Selector, image::ImageSet, media};
use clipper_tests::registry::Registry;

/// A repository of a registry.
pub fn at(registry: &Registry, client: &Client, name: &str) -> Repository {
    repository(client, &format!("{}/{name}", registry.host()))
}

#[tokio::test]
async fn push_mount_range_tags_and_resolve() {
    let registry = Registry::start().unwrap();
    let client = client();
    let (base, app) = (at(&registry, &client, "base/os"), at(&registry, &client, "app"));
    let layer = sample(3 << 20);
    let digest = Digest::of(&layer);

    let missing = base.tags().await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("NAME_UNKNOWN"), "{missing}");
    assert_eq!(base.blob_size(&digest).await.unwrap(), None);
    assert!(base.push_blob(digest, layer.clone()).await.unwrap());
    assert_eq!(base.blob_size(&digest).await.unwrap(), Some(3 << 20));
    let blob = base.blob(digest, 3 << 20);
    assert_eq!(read(&blob, 1_000_000..2_000_001).await.unwrap(), layer.slice(1_000_000..2_000_001));
    assert_eq!(blob.read_all(4 << 20).await.unwrap(), layer);

    assert!(app.mount_blob(&base, digest, 3 << 20).await.unwrap());
    assert!(!app.push_blob(digest, layer.clone()).await.unwrap(), "it's there by the mount");
    assert!(!app.mount_blob(&base, other_digest(), 10).await.unwrap(), "what isn't there can't be mounted");

    let config =
        Bytes::from_static(br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#);
    assert!(app.push_blob(Digest::of(&config), config.clone()).await.unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": media::OCI_CONFIG, "digest": Digest::of(&config).to_string(), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.to_string(), "size": 3 << 20}],
    });
    let manifest = Bytes::from(manifest.to_string());
    let mut tags: Vec<String> = (0..5).map(|n| format!("t{n}")).collect();
    for tag in &tags {
        app.put_manifest(&Selector::Tag(tag.clone()), media::OCI_MANIFEST, manifest.clone()).await.unwrap();
    }
    let mut listed = app.tags().await.unwrap();
    listed.sort();
    tags.sort();
    assert_eq!(listed, tags);

    let name = reference(&format!("{}/app:t3", registry.host()));
    let set = ImageSet::resolve(&app, &name).await.unwrap();
    assert_eq!(set.top.bytes, manifest);
    assert_eq!(set.images[0].digest, Digest::of(&manifest));
    let by_digest = name.with_digest(Digest::of(&manifest));
    assert_eq!(ImageSet::resolve(&app, &by_digest).await.unwrap().top, set.top);
    let gone = app.manifest(&Selector::Tag("gone".into())).await.unwrap_err();
    assert!(gone.is_not_found() && gone.to_string().contains("MANIFEST_UNKNOWN"), "{gone}");
}

#[tokio::test]
async fn what_refers_to_an_image_is_left_as_it_is() {
    let registry = Registry::start().unwrap();
    let client = client();
    let app = at(&registry, &client, "app");
    let empty = Bytes::from_static(b"{}");
    app.push_blob(Digest::of(&empty), empty.clone()).await.unwrap();
    let config =
        serde_json::json!({"mediaType": media::OCI_CONFIG, "digest": Digest::of(&empty).to_string(), "size": 2});
    let of = |subject: Option<&Bytes>, note: &str| {
        let mut manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [],
            "annotations": {"note": note},
        });
        if let Some(subject) = subject {
            manifest["subject"] = serde_json::json!({
                "mediaType": media::OCI_MANIFEST, "digest": Digest::of(subject).to_string(), "size": subject.len(),
            });
        }
        Bytes::from(manifest.to_string())
    };
    let tag = |name: &str| Selector::Tag(name.to_owned());
    let image = of(None, "image");
    let signature = of(Some(&image), "signature");
    app.put_manifest(&tag("v1"), media::OCI_MANIFEST, image.clone()).await.unwrap();
    let by_digest = |manifest: &Bytes| Selector::Digest(Digest::of(manifest));
    app.put_manifest(&by_digest(&signature), media::OCI_MANIFEST, signature.clone()).await.unwrap();
    // As other tools list it where the registry has no referrers API (distribution-spec, "Referrers Tag Schema").
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [{
        "mediaType": media::OCI_MANIFEST, "digest": Digest::of(&signature).to_string(), "size": signature.len(),
    }]});
    let list = Bytes::from(list.to_string());
    let fallback = tag(&format!("sha256-{}", Digest::of(&image).hex()));
    app.put_manifest(&fallback, media::OCI_INDEX, list.clone()).await.unwrap();

    // Another manifest about the same image, by digest and under a tag; and the image's own tag again.
    let ours = of(Some(&image), "index");
    app.put_manifest(&by_digest(&ours), media::OCI_MANIFEST, ours.clone()).await.unwrap();
    app.put_manifest(&tag("v1_accelerated"), media::OCI_MANIFEST, ours).await.unwrap();
    app.put_manifest(&tag("v1"), media::OCI_MANIFEST, image).await.unwrap();
    assert_eq!(app.manifest(&fallback).await.unwrap().bytes, list);
    assert_eq!(app.manifest(&by_digest(&signature)).await.unwrap().bytes, signature);
    let mut tags = app.tags().await.unwrap();
    tags.sort();
    assert_eq!(tags.len(), 3, "{tags:?}");
}
