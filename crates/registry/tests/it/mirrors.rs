//! Mirrors of hosts.toml: their order, when they are passed over, and what they are never asked.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, ErrorKind, Selector};

async fn good(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |seen| if seen.method == "PUT" { Reply::new(201) } else { blob_reply(seen, &data) }).await
}

/// A client for `server` with these mirrors in front of it.
fn mirrored(server: &Fake, mirrors: &[&Fake]) -> (Client, tempfile::TempDir) {
    let toml: String = mirrors
        .iter()
        .map(|m| format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", m.host()))
        .collect();
    client_with_hosts(&server.host(), &toml)
}

#[tokio::test]
async fn mirrors_are_asked_first_and_told_whose_content_it_is() {
    let data = sample(1000);
    let (first, second, server) = (good(&data).await, good(&data).await, good(&data).await);
    let (client, _dir) = mirrored(&server, &[&first, &second]);
    let target = blob(&server, &client, &data);
    assert_eq!(read(&target, 5..10).await.unwrap(), data.slice(5..10));
    let namespace = server.host().replace(':', "%3A");
    assert_eq!(first.lines(), [format!("GET /v2/app/blobs/{}?ns={namespace}", target.digest())]);
    assert_eq!((second.seen().len(), server.seen().len()), (0, 0));
}

#[tokio::test]
async fn a_mirror_without_the_blob_is_passed_over() {
    let data = sample(1000);
    let (empty, server) = (Fake::start(|_| Reply::new(404)).await, good(&data).await);
    let (client, _dir) = mirrored(&server, &[&empty]);
    let target = blob(&server, &client, &data);
    for _ in 0..2 {
        assert_eq!(read(&target, 5..10).await.unwrap(), data.slice(5..10));
    }
    // Nor is it asked for the same blob again for a while.
    assert_eq!((empty.seen().len(), server.seen().len()), (1, 2));
    assert!(!server.lines()[0].contains("ns="));
}

#[tokio::test]
async fn a_mirror_that_fails_or_is_gone_is_not_asked_again_for_a_while() {
    let data = sample(1000);
    let (failing, server) = (Fake::start(|_| Reply::new(503)).await, good(&data).await);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let toml = format!("[host.\"http://{gone}\"]\n[host.\"http://{}\"]", failing.host());
    let (client, _dir) = client_with_hosts(&server.host(), &toml);
    let target = blob(&server, &client, &data);
    for _ in 0..3 {
        assert_eq!(read(&target, 5..10).await.unwrap(), data.slice(5..10));
    }
    assert_eq!((failing.seen().len(), server.seen().len()), (1, 3));
}

#[tokio::test]
async fn a_body_that_a_mirror_breaks_is_finished_by_the_server() {
    let data = sample(100_000);
    let part = data.slice(..40_000);
    let breaking = Fake::start(move |_| {
        Reply::new(200).header("content-length", 100_000).body([Step::Send(part.clone()), Step::Cut])
    })
    .await;
    let server = good(&data).await;
    let (client, _dir) = mirrored(&server, &[&breaking]);
    assert_eq!(blob(&server, &client, &data).read_all(100_000).await.unwrap(), data);
    assert_eq!(server.seen()[0].header("range"), "bytes=40000-99999");
}

#[tokio::test]
async fn a_mirror_with_wrong_bytes_is_found_out() {
    let data = sample(1000);
    let (liar, server) = (good(&Bytes::from(vec![7; 1000])).await, good(&data).await);
    let (client, _dir) = mirrored(&server, &[&liar]);
    let target = blob(&server, &client, &data);
    assert_eq!(target.read_all(1000).await.unwrap(), data);
    // And it isn't believed right after.
    assert_eq!(read(&target, 0..5).await.unwrap(), data.slice(0..5));
    assert_eq!(liar.seen().len(), 1);
}

#[tokio::test]
async fn a_mirror_with_another_manifest_is_passed_over() {
    let manifest = Bytes::from_static(br#"{"config":{},"layers":[]}"#);
    let (liar, server) = (good(&Bytes::from_static(b"{}")).await, good(&manifest).await);
    let (client, _dir) = mirrored(&server, &[&liar]);
    let selector = Selector::Digest(Digest::of(&manifest));
    assert_eq!(server.app(&client).manifest(&selector).await.unwrap().bytes, manifest);
}

#[tokio::test]
async fn uploads_and_tags_go_where_they_may() {
    let data = sample(10);
    let (pull_only, server) = (good(&data).await, good(&Bytes::from_static(br#"{"tags":["a"]}"#)).await);
    let toml = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]", pull_only.host());
    let (client, _dir) = client_with_hosts(&server.host(), &toml);
    let app = server.app(&client);
    assert_eq!(app.tags().await.unwrap(), ["a"]);
    app.put_manifest(&Selector::Tag("v".into()), "a/b", Bytes::from_static(b"{}")).await.unwrap();
    assert!(!app.push_blob(Digest::of(&data), data.clone()).await.unwrap());
    assert!(pull_only.seen().is_empty());
}

#[tokio::test]
async fn everyone_s_failure_is_told() {
    let (mirror, server) =
        (Fake::start(|_| Reply::error(403, "DENIED", "mirror says no")).await, good(&sample(1)).await);
    let (client, _dir) = mirrored(&server, &[&mirror]);
    let host = server.host();
    drop(server);
    let blob = repository(&client, &format!("{host}/app")).blob(other_digest(), 10);
    let error = read(&blob, 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("mirror says no") && text.contains(&mirror.host()) && text.contains(&host), "{text}");
}

#[tokio::test]
async fn a_changed_hosts_toml_is_read_anew() {
    let data = sample(1000);
    let (mirror, server) = (good(&data).await, good(&data).await);
    let (client, dir) = client_with_hosts(&server.host(), "");
    read(&blob(&server, &client, &data), 0..5).await.unwrap();
    assert_eq!(server.seen().len(), 1);
    // The file system's clock may be coarse.
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    write_hosts(dir.path(), &server.host(), &format!("[host.\"http://{}\"]", mirror.host()));
    read(&blob(&server, &client, &data), 0..5).await.unwrap();
    assert_eq!((mirror.seen().len(), server.seen().len()), (1, 1));
    write_hosts(dir.path(), &server.host(), "server = [");
    let error = client.repository(&reference(&format!("{}/app", server.host()))).unwrap_err().to_string();
    assert!(error.contains("hosts.toml") && error.contains(&server.host()), "{error}");
}
