//! OCI layout directories as repositories.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, ErrorKind, Repository, Selector, media};
use futures::{StreamExt, TryStreamExt};
use std::{fs, path::Path};

fn layout(dir: &Path) -> Repository {
    repository(&client(), &format!("oci:{}", dir.display()))
}

fn tag(tag: &str) -> Selector {
    Selector::Tag(tag.into())
}

fn manifest(n: u32) -> Bytes {
    format!(r#"{{"schemaVersion":2,"config":{{"n":{n}}},"layers":[]}}"#).into()
}

#[tokio::test]
async fn what_is_pushed_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("new/layout");
    let repository = layout(&target);
    let data = sample(3_000_000);
    let digest = Digest::of(&data);
    assert_eq!(repository.blob_size(&digest).await.unwrap(), None);
    assert!(repository.push_blob(digest, data.clone()).await.unwrap());
    assert!(!repository.push_blob(digest, data.clone()).await.unwrap());
    assert_eq!(repository.blob_size(&digest).await.unwrap(), Some(3_000_000));
    let blob = repository.blob(digest, 3_000_000);
    assert_eq!(read(&blob, 1_000_001..2_500_000).await.unwrap(), data.slice(1_000_001..2_500_000));
    assert_eq!(blob.read_all(3_000_000).await.unwrap(), data);

    let mut upload = repository.upload().await.unwrap();
    for part in data[1..].chunks(99_999) {
        upload.write(Bytes::copy_from_slice(part)).await.unwrap();
    }
    let second = Digest::of(&data[1..]);
    assert_eq!(upload.finish().await.unwrap(), (second, 2_999_999));
    let mut again = repository.upload().await.unwrap();
    again.write(data.slice(1..)).await.unwrap();
    assert_eq!(again.finish().await.unwrap(), (second, 2_999_999), "it's no error if it's there");
    let mut dropped = repository.upload().await.unwrap();
    dropped.write(data.slice(2..)).await.unwrap();
    drop(dropped);
    assert_eq!(repository.blob(second, 2_999_999).read_all(4_000_000).await.unwrap(), data.slice(1..));
    assert_eq!(fs::read(target.join("oci-layout")).unwrap(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    assert_eq!(fs::read_dir(target.join("blobs")).unwrap().count(), 1, "no temporary files are left");
}

#[tokio::test]
async fn manifests_are_listed_under_their_tags() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    for (name, n) in [("a", 1), ("b", 2), ("a", 3)] {
        let digest = repository.put_manifest(&tag(name), media::OCI_MANIFEST, manifest(n)).await.unwrap();
        assert_eq!(digest, Digest::of(&manifest(n)));
    }
    let hidden = Digest::of(&manifest(4));
    repository.put_manifest(&Selector::Digest(hidden), media::OCI_MANIFEST, manifest(4)).await.unwrap();
    assert_eq!(repository.tags().await.unwrap(), ["b", "a"]);
    let read = repository.manifest(&tag("a")).await.unwrap();
    assert_eq!((read.bytes, read.media_type.as_str()), (manifest(3), media::OCI_MANIFEST));
    assert_eq!(repository.manifest(&Selector::Digest(hidden)).await.unwrap().bytes, manifest(4));
    let missing = repository.manifest(&tag("c")).await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("it has b, a"), "{missing}");
    let missing = repository.manifest(&Selector::Digest(other_digest())).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    let index: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"][1]["size"], manifest(3).len());
    assert_eq!(index["manifests"][1]["mediaType"], media::OCI_MANIFEST);
}

#[tokio::test]
async fn what_other_tools_wrote_into_the_index_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    repository.put_manifest(&tag("a"), media::OCI_MANIFEST, manifest(1)).await.unwrap();
    let path = dir.path().join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    index["x-other"] = "kept".into();
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "docker.io/library/app:a".into();
    index["manifests"][0]["x-mine"] = "kept too".into();
    fs::write(&path, index.to_string()).unwrap();
    assert_eq!(repository.manifest(&tag("a")).await.unwrap().bytes, manifest(1), "a whole reference ends in its tag");
    repository.put_manifest(&tag("b"), media::OCI_MANIFEST, manifest(2)).await.unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"kept\"") && text.contains("\"kept too\""), "{text}");
}

#[tokio::test]
async fn a_reference_without_a_tag_is_the_only_entry() {
    let dir = tempfile::tempdir().unwrap();
    let name = reference(&format!("oci:{}", dir.path().display()));
    let repository = layout(dir.path());
    assert!(repository.selector(&name).await.unwrap_err().is_not_found());
    repository.put_manifest(&tag("a"), media::OCI_MANIFEST, manifest(1)).await.unwrap();
    assert_eq!(repository.selector(&name).await.unwrap(), Selector::Digest(Digest::of(&manifest(1))));
    repository.put_manifest(&tag("b"), media::OCI_MANIFEST, manifest(2)).await.unwrap();
    let error = repository.selector(&name).await.unwrap_err().to_string();
    assert!(error.contains("a, b") && error.contains("oci:DIR:TAG"), "{error}");
}

#[tokio::test]
async fn writers_of_one_index_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let client = client();
    let tasks = (0..20).map(|n| {
        // Each through an object of its own, as the source and target of a conversion are.
        let repository = repository(&client, &format!("oci:{}", dir.path().display()));
        tokio::spawn(async move {
            repository.put_manifest(&tag(&format!("t{n}")), media::OCI_MANIFEST, manifest(n)).await.unwrap();
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(layout(dir.path()).tags().await.unwrap().len(), 20);
}

#[tokio::test]
async fn damaged_blobs_are_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    let data = sample(100_000);
    let digest = Digest::of(&data);
    repository.push_blob(digest, data.clone()).await.unwrap();
    let path = dir.path().join("blobs/sha256").join(digest.hex());
    let blob = repository.blob(digest, 100_000);
    let mut damaged = data.to_vec();
    damaged[500] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let error = blob.read_all(100_000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Digest { .. }), "{error}");
    let chunks: Vec<_> = blob.read_verified().await.unwrap().collect().await;
    assert!(chunks.last().unwrap().is_err());
    fs::write(&path, &data[..99_999]).unwrap();
    let error = read(&blob, 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Length { expected: 100_000, got: 99_999, .. }), "{error}");
    fs::remove_file(&path).unwrap();
    let error = read(&blob, 0..5).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains(&digest.hex()), "{error}");
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    let data = sample(4_000_000);
    let digest = Digest::of(&data);
    repository.push_blob(digest, data).await.unwrap();
    let stream = repository.blob(digest, 4_000_000).read(0..4_000_000).await.unwrap();
    let path = dir.path().join("blobs/sha256").join(digest.hex());
    fs::File::options().write(true).open(path).unwrap().set_len(1_000_000).unwrap();
    let result: Result<Vec<Bytes>, _> = stream.try_collect().await;
    assert!(matches!(result.unwrap_err().kind(), ErrorKind::Length { expected: 4_000_000, .. }));
}

#[tokio::test]
async fn wrong_uploads_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    let data = sample(1000);
    assert!(repository.push_blob(other_digest(), data.clone()).await.is_err());
    // From places that have less, more or something else than they should.
    let other = Fake::start(move |_| Reply::new(200).bytes(sample(1000))).await;
    for (digest, size) in [(other_digest(), 1000), (Digest::of(&data), 999), (Digest::of(&data), 1001)] {
        let from = other.app(&client()).blob(digest, size);
        let error = repository.copy_blob(&from, |_| {}).await.unwrap_err();
        let wanted = if size == 1000 { "digest of the bytes" } else { "can't be read" };
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("blobs")).unwrap().count(), 1);
}

#[tokio::test]
async fn blobs_are_linked_between_layouts_but_not_from_registries() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (layout(&dir.path().join("from")), layout(&dir.path().join("to")));
    let data = sample(1000);
    let digest = Digest::of(&data);
    assert!(!to.mount_blob(&from, digest, 1000).await.unwrap());
    from.push_blob(digest, data.clone()).await.unwrap();
    assert!(to.mount_blob(&from, digest, 1000).await.unwrap());
    assert_eq!(to.blob(digest, 1000).read_all(1000).await.unwrap(), data);
    let registry = repository(&Client::new(options()).unwrap(), "localhost:1/app");
    assert!(!to.mount_blob(&registry, digest, 1000).await.unwrap());
}

#[tokio::test]
async fn broken_layouts_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let repository = layout(dir.path());
    let missing = repository.manifest(&tag("a")).await.unwrap_err();
    assert!(missing.is_not_found() && missing.to_string().contains("index.json"), "{missing}");
    for text in
        ["", "[]", "{\"manifests\": 3}", "{\"manifests\": [{\"digest\": \"sha256:zz\"}]}", "{\"manifests\": [3]}"]
    {
        fs::write(dir.path().join("index.json"), text).unwrap();
        let error = repository.manifest(&tag("a")).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Malformed(_)), "{text}: {error}");
    }
}
