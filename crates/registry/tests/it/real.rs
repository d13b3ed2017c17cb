//! Against the reference registry, as Debian packages it.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, Repository, Selector, image::ImageSet, media};
use std::{path::Path, process::Stdio};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

/// A registry with a directory and a port of its own; it ends when dropped.
struct Registry {
    host: String,
    _process: Child,
    _dir: TempDir,
}

impl Registry {
    async fn start() -> Self {
        let program = Path::new("/usr/bin/docker-registry");
        assert!(program.exists(), "install the package docker-registry: {} is missing", program.display());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new(program)
            .args(["serve".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let host = loop {
            let line = lines.next_line().await.unwrap().expect("the registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().unwrap().to_owned();
            }
        };
        // Its log is read on, or it would block.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { host, _process: process, _dir: dir }
    }

    fn repository(&self, client: &Client, name: &str) -> Repository {
        repository(client, &format!("{}/{name}", self.host))
    }
}

#[tokio::test]
async fn push_mount_range_tags_and_resolve() {
    let registry = Registry::start().await;
    let client = client();
    let (base, app) = (registry.repository(&client, "base/os"), registry.repository(&client, "app"));
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

    let name = reference(&format!("{}/app:t3", registry.host));
    let set = ImageSet::resolve(&app, &name).await.unwrap();
    assert_eq!(set.top.bytes, manifest);
    assert_eq!(set.images[0].digest, Digest::of(&manifest));
    let by_digest = name.with_digest(Digest::of(&manifest));
    assert_eq!(ImageSet::resolve(&app, &by_digest).await.unwrap().top, set.top);
    let gone = app.manifest(&Selector::Tag("gone".into())).await.unwrap_err();
    assert!(gone.is_not_found() && gone.to_string().contains("MANIFEST_UNKNOWN"), "{gone}");
}
