//! Uploads and mounts.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A registry that has no blobs and takes uploads at `location`.
async fn taking(location: &'static str) -> Fake {
    Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", location),
        _ => Reply::new(201),
    })
    .await
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_uploaded() {
    let data = sample(1000);
    let stored = data.clone();
    let server = Fake::start(move |seen| blob_reply(seen, &stored)).await;
    let app = server.app(&client());
    assert!(!app.push_blob(Digest::of(&data), data.clone()).await.unwrap());
    let source = Fake::start(|_| Reply::new(500)).await;
    assert!(!app.copy_blob(&blob(&source, &client(), &data), |_| {}).await.unwrap());
    assert!(source.seen().is_empty(), "it isn't read");
    assert!(server.seen().iter().all(|s| s.method == "HEAD"));
}

#[tokio::test]
async fn a_blob_is_posted_and_put_where_the_registry_says() {
    let data = sample(700_000);
    let digest = Digest::of(&data);
    let escaped = digest.to_string().replace(':', "%3A");
    for (location, put) in [
        ("/v2/app/blobs/uploads/id?state=x%2By", format!("PUT /v2/app/blobs/uploads/id?state=x%2By&digest={escaped}")),
        ("elsewhere", format!("PUT /v2/app/blobs/uploads/elsewhere?digest={escaped}")),
    ] {
        let server = taking(location).await;
        let client = client();
        assert!(server.app(&client).push_blob(digest, data.clone()).await.unwrap());
        let seen = server.seen();
        assert_eq!(seen[0].line(), format!("HEAD /v2/app/blobs/{digest}"));
        assert_eq!((seen[1].line().as_str(), seen[1].header("content-length")), ("POST /v2/app/blobs/uploads/", "0"));
        assert_eq!(seen[2].line(), put);
        assert_eq!((seen[2].header("content-length"), seen[2].header("transfer-encoding")), ("700000", ""));
        assert_eq!(seen[2].header("content-type"), "application/octet-stream");
        assert_eq!(seen[2].body, data);
        assert_eq!(client.stats().bytes_sent, 700_000);
    }
}

#[tokio::test]
async fn an_empty_blob_is_uploaded_too() {
    let server = taking("/up").await;
    assert!(server.app(&client()).push_blob(Digest::of(b""), Bytes::new()).await.unwrap());
    assert_eq!(server.seen()[2].header("content-length"), "0");
    let empty = server.app(&client()).upload().await.unwrap();
    assert_eq!(empty.finish().await.unwrap(), (Digest::of(b""), 0));
}

#[tokio::test]
async fn an_upload_that_fails_for_now_is_begun_anew() {
    let data = sample(1000);
    let puts = AtomicUsize::new(0);
    let server = Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", "/up"),
        _ if puts.fetch_add(1, SeqCst) == 0 => Reply::new(500),
        _ => Reply::new(201),
    })
    .await;
    assert!(server.app(&client()).push_blob(Digest::of(&data), data.clone()).await.unwrap());
    let methods: Vec<_> = server.seen().into_iter().map(|s| s.method).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT", "POST", "PUT"]);
    assert_eq!(server.seen()[4].body, data);
}

#[tokio::test]
async fn an_upload_that_is_refused_says_why() {
    let server = Fake::start(|seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", "/up"),
        _ => Reply::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"),
    })
    .await;
    let error = server.app(&client()).push_blob(other_digest(), sample(10)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Status { status: 400, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("DIGEST_INVALID") && text.contains(&other_digest().to_string()), "{text}");
}

#[tokio::test]
async fn an_upload_elsewhere_sees_no_credentials() {
    let data = sample(1000);
    let store = Fake::start(|_| Reply::new(201)).await;
    let location = format!("http://{}/put?sig=1", store.host());
    let server = Fake::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        ("", _) => Reply::new(401).header("www-authenticate", "Basic"),
        (_, "HEAD") => Reply::new(404),
        _ => Reply::new(202).header("location", &location),
    })
    .await;
    let (client, _dir) = client_with_login(&server.host(), r#"{"username": "me", "password": "secret"}"#);
    assert!(server.app(&client).push_blob(Digest::of(&data), data.clone()).await.unwrap());
    let [put] = store.seen().try_into().unwrap();
    assert_eq!((put.header("authorization"), &put.body), ("", &data));
}

#[tokio::test]
async fn an_upload_that_makes_no_progress_is_given_up() {
    // Takes the connection and never reads.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let location = format!("http://{}/up", listener.local_addr().unwrap());
    let server = Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::new(404),
        _ => Reply::new(202).header("location", &location),
    })
    .await;
    let data = Bytes::from(vec![0; 64 << 20]);
    let error = server.app(&impatient()).push_blob(other_digest(), data).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn mounts_are_asked_for_and_their_refusal_is_no_error() {
    let digest = other_digest();
    let server = Fake::start(|seen| match seen.path.as_str() {
        "/v2/app/blobs/uploads/" => Reply::new(201),
        "/v2/slow/blobs/uploads/" => Reply::new(202).header("location", "/v2/slow/blobs/uploads/id"),
        "/v2/old/blobs/uploads/" => Reply::new(405),
        _ => Reply::new(204),
    })
    .await;
    let client = client();
    let at = |name: &str| repository(&client, &format!("{}/{name}", server.host()));
    assert!(at("app").mount_blob(&at("base/x"), digest, 10).await.unwrap());
    let escaped = digest.to_string().replace(':', "%3A");
    assert_eq!(server.lines(), [format!("POST /v2/app/blobs/uploads/?mount={escaped}&from=base%2Fx")]);
    assert!(!at("slow").mount_blob(&at("base"), digest, 10).await.unwrap());
    assert_eq!(server.lines()[2], "DELETE /v2/slow/blobs/uploads/id", "the upload that was opened is cancelled");
    assert!(!at("old").mount_blob(&at("base"), digest, 10).await.unwrap());
    let elsewhere = repository(&client, "localhost:1/base");
    let before = server.seen().len();
    assert!(!at("app").mount_blob(&elsewhere, digest, 10).await.unwrap());
    assert_eq!(server.seen().len(), before);
}

/// Every operation can be spawned: the compiler is the judge.
#[tokio::test]
async fn operations_can_be_moved_between_threads() {
    fn movable<T: Send>(future: T) -> T {
        future
    }
    let client = client();
    let (app, name) = (repository(&client, "localhost:1/app"), reference("localhost:1/app"));
    let (digest, tag) = (other_digest(), clipper_registry::Selector::Tag("v".into()));
    let blob = app.blob(digest, 1);
    drop(movable(app.manifest(&tag)));
    drop(movable(app.put_manifest(&tag, "a/b", Bytes::new())));
    drop(movable(app.blob_size(&digest)));
    drop(movable(app.push_blob(digest, Bytes::new())));
    drop(movable(app.copy_blob(&blob, |_| {})));
    drop(movable(async { app.upload().await.unwrap().write(Bytes::new()).await }));
    drop(movable(async { app.upload().await.unwrap().finish().await }));
    drop(movable(app.mount_blob(&app, digest, 1)));
    drop(movable(app.tags()));
    drop(movable(blob.read(0..1)));
    drop(movable(blob.read_all(1)));
    drop(movable(clipper_registry::image::ImageSet::resolve(&app, &name)));
    assert_eq!(client.stats().requests, 0, "nothing is asked before it's awaited");
}
