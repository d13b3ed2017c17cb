//! Redirects to storage servers: followed, kept for a while, and never shown a credential.
use crate::fake::*;
use clipper_registry::{Client, ClientOptions, ErrorKind};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

/// Base64 of `me:secret`.
const LOGIN: &str = "bWU6c2VjcmV0";

#[tokio::test]
async fn storage_servers_see_no_credentials_and_are_asked_directly_the_next_time() {
    let data = sample(1000);
    let (stored, expired) = (data.clone(), Arc::new(AtomicBool::new(false)));
    let flag = expired.clone();
    let storage = Fake::start(move |seen| match flag.swap(false, SeqCst) {
        true => Reply::new(403),
        false => blob_reply(seen, &stored),
    })
    .await;
    let target = format!("http://{}/bucket/blob?signature=x", storage.host());
    let registry = Fake::start(move |seen| match seen.header("authorization") {
        "" => Reply::new(401).header("www-authenticate", "Basic realm=\"r\""),
        _ => Reply::new(307).header("location", &target),
    })
    .await;
    // Neither docker's credentials nor the headers of hosts.toml may be seen elsewhere.
    let (_, logins) = client_with_login(&registry.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    write_hosts(logins.path(), &registry.host(), "header = {x-token = \"t\"}");
    let client = Client::new(ClientOptions {
        docker_config: Some(logins.path().join("config.json")),
        hosts_dir: Some(logins.path().into()),
        ..options()
    })
    .unwrap();
    let blob = blob(&registry, &client, &data);

    assert_eq!(read(&blob, 10..20).await.unwrap(), data.slice(10..20));
    assert_eq!(registry.seen()[1].header("authorization"), format!("Basic {LOGIN}"));
    assert_eq!(registry.seen()[1].header("x-token"), "t");
    assert_eq!(registry.seen().len(), 2);
    assert_eq!(read(&blob, 30..40).await.unwrap(), data.slice(30..40));
    assert_eq!(registry.seen().len(), 2, "the redirect was kept");
    expired.store(true, SeqCst);
    assert_eq!(read(&blob, 50..60).await.unwrap(), data.slice(50..60));
    assert_eq!(registry.seen().len(), 3, "a redirect that has expired is asked for anew");

    let seen = storage.seen();
    assert_eq!(seen.len(), 4);
    for request in &seen {
        assert_eq!(request.line(), "GET /bucket/blob?signature=x");
        assert_eq!((request.header("authorization"), request.header("x-token")), ("", ""));
    }
    assert_eq!(seen[3].header("range"), "bytes=50-59");
}

#[tokio::test]
async fn a_redirect_to_a_storage_server_that_is_gone_is_forgotten() {
    let data = sample(1000);
    let (first, second) = (data.clone(), data.clone());
    let old = Fake::start(move |seen| blob_reply(seen, &first)).await;
    let new = Fake::start(move |seen| blob_reply(seen, &second)).await;
    let targets = [format!("http://{}/old", old.host()), format!("http://{}/new", new.host())];
    let count = AtomicUsize::new(0);
    let registry = Fake::start(move |_| {
        let n = count.fetch_add(1, SeqCst).min(1);
        Reply::new(307).header("location", &targets[n])
    })
    .await;
    let target = blob(&registry, &client(), &data);
    read(&target, 0..5).await.unwrap();
    drop(old);
    assert_eq!(read(&target, 5..9).await.unwrap(), data.slice(5..9));
    assert_eq!(new.seen().len(), 1);
}

#[tokio::test]
async fn a_storage_server_s_refusal_is_told_as_its_own() {
    let data = sample(1000);
    let storage = Fake::start(|_| Reply::new(403).bytes("AccessDenied")).await;
    let target = format!("http://{}/x", storage.host());
    let registry = Fake::start(move |_| Reply::new(302).header("location", &target)).await;
    let error = read(&blob(&registry, &client(), &data), 0..5).await.unwrap_err();
    let ErrorKind::Denied { host, status: 403, hint, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(*host, storage.host());
    assert!(hint.contains(&registry.host()), "{hint}");
}

#[tokio::test]
async fn redirects_within_the_registry_keep_the_credentials() {
    let data = sample(1000);
    let stored = data.clone();
    let registry = Fake::start(move |seen| match (seen.header("authorization"), seen.path.as_str()) {
        ("", _) => Reply::new(401).header("www-authenticate", "Basic"),
        (_, "/store/x") => blob_reply(seen, &stored),
        _ => Reply::new(307).header("location", "/store/x"),
    })
    .await;
    let (client, _dir) = client_with_login(&registry.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    assert_eq!(read(&blob(&registry, &client, &data), 0..9).await.unwrap(), data.slice(0..9));
}

#[tokio::test]
async fn endless_and_strange_redirects_are_refused() {
    let data = sample(10);
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let server = Fake::start(move |_| {
        asked.fetch_add(1, SeqCst);
        Reply::new(307).header("location", "/again")
    })
    .await;
    let error = read(&blob(&server, &client(), &data), 0..5).await.unwrap_err();
    assert!(error.to_string().contains("redirects more than"), "{error}");
    assert_eq!(count.load(SeqCst), 6);
    for location in ["ftp://r.example/x", "file:///etc/passwd", "http://[bad"] {
        let server = Fake::start(move |_| Reply::new(307).header("location", location)).await;
        let error = read(&blob(&server, &client(), &data), 0..5).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{location}: {error}");
    }
    let server = Fake::start(|_| Reply::new(307)).await;
    let error = read(&blob(&server, &client(), &data), 0..5).await.unwrap_err();
    assert!(error.to_string().contains("without saying where"), "{error}");
}
