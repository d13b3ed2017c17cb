//! Manifests and tags of a registry.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{ErrorKind, MANIFEST_MAX, Selector, media};
use std::sync::Arc;

fn tag() -> Selector {
    Selector::Tag("v1".into())
}

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{},"layers":[]}"#;

#[tokio::test]
async fn a_manifest_comes_with_its_type_and_digest() {
    let server = Fake::start(|_| {
        Reply::new(200)
            .header("content-type", "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8")
            .header("docker-content-digest", Digest::of(MANIFEST))
            .bytes(MANIFEST)
    })
    .await;
    let manifest = server.app(&client()).manifest(&tag()).await.unwrap();
    assert_eq!(manifest.media_type, media::DOCKER_MANIFEST);
    assert_eq!((manifest.digest, manifest.bytes.as_ref()), (Digest::of(MANIFEST), MANIFEST));
    let [seen] = server.seen().try_into().unwrap();
    assert_eq!(seen.line(), "GET /v2/app/manifests/v1");
    for media_type in [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_INDEX, media::DOCKER_MANIFEST] {
        assert!(seen.header("accept").contains(media_type));
    }
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let server = Fake::start(|_| Reply::new(200).bytes(MANIFEST)).await;
    let error = server.app(&client()).manifest(&Selector::Digest(other_digest())).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Digest { got, .. } if *got == Digest::of(MANIFEST)), "{error}");
    assert!(error.to_string().contains(&other_digest().to_string()), "{error}");
    // Under a tag, it's the registry's own word that it's held to.
    let server = Fake::start(|_| Reply::new(200).header("docker-content-digest", other_digest()).bytes(MANIFEST)).await;
    let error = server.app(&client()).manifest(&tag()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Digest { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_of_boundless_size_is_refused() {
    let piece = Bytes::from(vec![b' '; 1 << 20]);
    let steps = vec![Step::Send(piece); (MANIFEST_MAX >> 20) as usize + 1];
    let server = Fake::start(move |_| Reply::new(200).body(steps.clone())).await;
    let error = server.app(&client()).manifest(&tag()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { limit: MANIFEST_MAX }), "{error}");
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_read_again() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let server = Fake::start(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::new(200)
            .header("content-length", MANIFEST.len())
            .body([Step::Send(Bytes::from_static(&MANIFEST[..9])), Step::Cut]),
        _ => Reply::new(200).bytes(MANIFEST),
    })
    .await;
    assert_eq!(server.app(&client()).manifest(&tag()).await.unwrap().bytes, MANIFEST);
}

#[tokio::test]
async fn a_missing_manifest_is_told_apart() {
    let server = Fake::start(|_| Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown")).await;
    let error = server.app(&client()).manifest(&tag()).await.unwrap_err();
    assert!(error.is_not_found());
    let text = error.to_string();
    assert!(text.contains("manifest v1 of ") && text.contains("MANIFEST_UNKNOWN"), "{text}");
}

#[tokio::test]
async fn manifests_are_put_under_their_type_and_the_stored_digest_is_checked() {
    let stored = Arc::new(std::sync::Mutex::new(Digest::of(MANIFEST)));
    let answer = stored.clone();
    let server = Fake::start(move |_| Reply::new(201).header("docker-content-digest", *answer.lock().unwrap())).await;
    let app = server.app(&client());
    let digest = app.put_manifest(&tag(), media::OCI_MANIFEST, Bytes::from_static(MANIFEST)).await.unwrap();
    assert_eq!(digest, Digest::of(MANIFEST));
    let by_digest = Selector::Digest(digest);
    app.put_manifest(&by_digest, media::OCI_MANIFEST, Bytes::from_static(MANIFEST)).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].line(), "PUT /v2/app/manifests/v1");
    assert_eq!(seen[1].line(), format!("PUT /v2/app/manifests/{digest}"));
    assert_eq!((seen[0].header("content-type"), seen[0].body.as_ref()), (media::OCI_MANIFEST, MANIFEST));
    *stored.lock().unwrap() = other_digest();
    let error = app.put_manifest(&tag(), media::OCI_MANIFEST, Bytes::from_static(MANIFEST)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Digest { .. }), "{error}");
    let wrong = Selector::Digest(other_digest());
    let error = app.put_manifest(&wrong, media::OCI_MANIFEST, Bytes::from_static(MANIFEST)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Request(_)), "{error}");
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let server = Fake::start(|seen| match seen.query.as_str() {
        "" => Reply::new(200)
            .header("link", "</v2/app/tags/list?last=b&n=2>; rel=\"next\"")
            .bytes(r#"{"name":"app","tags":["a","b"]}"#),
        "last=b&n=2" => Reply::new(200).header("link", "<?last=c>; rel=next").bytes(r#"{"tags":["c"]}"#),
        _ => Reply::new(200).bytes(r#"{"name":"app","tags":null}"#),
    })
    .await;
    assert_eq!(server.app(&client()).tags().await.unwrap(), ["a", "b", "c"]);
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn pages_elsewhere_and_in_circles_are_refused() {
    for link in ["<http://r.example/v2/app/tags/list>; rel=next", "</v2/app/tags/list>; rel=next"] {
        let server = Fake::start(move |_| Reply::new(200).header("link", link).bytes(r#"{"tags":["a"]}"#)).await;
        let error = server.app(&client()).tags().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{link}: {error}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn blob_sizes_come_from_a_head() {
    let data = sample(12_345);
    let digest = Digest::of(&data);
    let server = Fake::start(move |seen| match seen.path.ends_with(&digest.hex()) {
        true => blob_reply(seen, &data),
        false => Reply::new(404),
    })
    .await;
    let app = server.app(&client());
    assert_eq!(app.blob_size(&digest).await.unwrap(), Some(12_345));
    assert_eq!(app.blob_size(&other_digest()).await.unwrap(), None);
    assert_eq!(server.seen()[0].method, "HEAD");
}

/// Lists of what refers to an image are the registry's, or other tools': only they know all of it.
#[tokio::test]
async fn a_manifest_about_another_one_is_put_and_nothing_else_is_touched() {
    let server = Fake::start(|_| Reply::new(201)).await;
    let text = format!(r#"{{"schemaVersion":2,"subject":{{"digest":"{}"}}}}"#, other_digest());
    let tag = Selector::Tag("v".into());
    server.app(&client()).put_manifest(&tag, media::OCI_MANIFEST, text.into()).await.unwrap();
    assert_eq!(server.lines(), ["PUT /v2/app/manifests/v"]);
}
