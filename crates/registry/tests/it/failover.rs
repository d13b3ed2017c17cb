//! Servers that are silent, dead, wrong or busy beside others that aren't: what a reader pays for it, and what is remembered.
use crate::fake::*;
use bytes::Bytes;
use clipper_registry::{Client, ClientOptions, ErrorKind, HostStats};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

/// Longer than any test may take: whoever waits for it fails the test.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// A client for `server` with these mirrors in front of it, that would wait for ever for a silent one.
fn patient(server: &Fake, mirrors: &[&str]) -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let toml: String = mirrors.iter().map(|mirror| format!("[host.\"http://{mirror}\"]\n")).collect();
    write_hosts(dir.path(), &server.host(), &toml);
    let options = ClientOptions {
        hosts_dir: Some(dir.path().into()),
        stall_timeout: FOR_EVER,
        connect_timeout: FOR_EVER,
        ..options()
    };
    (Client::new(options).unwrap(), dir)
}

async fn good(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |seen| blob_reply(seen, &data)).await
}

fn stats(client: &Client, server: &str) -> HostStats {
    client.host_stats().into_iter().find(|host| host.host == server).unwrap()
}

/// A server that takes connections and never says a word.
fn silent() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    (listener, host)
}

#[tokio::test]
async fn a_silent_mirror_costs_one_reader_a_moment_and_the_next_nothing() {
    let data = sample(100_000);
    let (server, (_listener, mirror)) = (good(&data).await, silent());
    let (client, _dir) = patient(&server, &[&mirror]);
    let target = blob(&server, &client, &data);
    for _ in 0..10 {
        assert_eq!(read(&target, 5..10).await.unwrap(), data.slice(5..10));
    }
    let mirror = stats(&client, &mirror);
    assert_eq!((mirror.requests, mirror.failovers, mirror.sick), (1, 1, true));
    assert_eq!(stats(&client, &server.host()).requests, 10);
}

#[tokio::test]
async fn manifests_sizes_and_tags_do_not_wait_for_a_silent_mirror_either() {
    let manifest = Bytes::from_static(br#"{"config":{},"layers":[],"tags":["a"]}"#);
    let (server, (_listener, mirror)) = (good(&manifest).await, silent());
    for what in 0..3 {
        let (client, _dir) = patient(&server, &[&mirror]);
        let app = server.app(&client);
        match what {
            0 => drop(app.manifest(&clipper_registry::Selector::Tag("v".into())).await.unwrap()),
            1 => assert_eq!(app.blob_size(&other_digest()).await.unwrap(), Some(manifest.len() as u64)),
            _ => assert_eq!(app.tags().await.unwrap(), ["a"]),
        }
    }
}

#[tokio::test]
async fn a_body_that_falls_silent_goes_on_from_another_server() {
    let data = sample(100_000);
    let part = data.slice(..40_000);
    let stalling = Fake::start(move |_| {
        Reply::new(200).header("content-length", 100_000).body([Step::Send(part.clone()), Step::Stall])
    })
    .await;
    let server = good(&data).await;
    let (client, _dir) = patient(&server, &[&stalling.host()]);
    let target = blob(&server, &client, &data);
    assert_eq!(target.read_all(100_000).await.unwrap(), data);
    assert_eq!(server.seen()[0].header("range"), "bytes=40000-99999");
    let mirror = stats(&client, &stalling.host());
    assert_eq!((mirror.failovers, mirror.bytes_received, mirror.sick), (1, 40_000, true));
    assert_eq!(target.read_all(100_000).await.unwrap(), data);
    assert_eq!(stalling.seen().len(), 1);
}

#[tokio::test]
async fn a_body_that_falls_silent_is_waited_for_if_no_other_server_can_help() {
    let data = sample(100_000);
    let (first, second) = (data.slice(..40_000), data.slice(40_000..));
    let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    // A server by hand: the fake one can't wait for a signal in the middle of a body.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mirror = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.read(&mut [0; 4096]).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await.unwrap();
        socket.write_all(&first).await.unwrap();
        let wait = wait.lock().unwrap().take().unwrap();
        wait.await.unwrap();
        socket.write_all(&second).await.unwrap();
        socket
    });
    let failing = Fake::start(move |_| Reply::new(500)).await;
    let (client, _dir) = patient(&failing, &[&mirror]);
    let target = blob(&failing, &client, &data);
    let reading = tokio::spawn(async move { target.read_all(100_000).await });
    // The registry itself has been asked in vain, and the mirror is still waited for.
    while failing.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    go_on.send(()).unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), data);
    drop(task.await.unwrap());
}

#[tokio::test]
async fn a_mirror_that_is_well_again_returns_to_its_place() {
    let data = sample(1000);
    let (healthy, stored) = (Arc::new(AtomicBool::new(false)), data.clone());
    let flag = healthy.clone();
    let mirror = Fake::start(move |seen| match flag.load(SeqCst) {
        true => blob_reply(seen, &stored),
        false => Reply::new(503),
    })
    .await;
    let server = good(&data).await;
    let (client, _dir) = patient(&server, &[&mirror.host()]);
    let target = blob(&server, &client, &data);
    for _ in 0..3 {
        read(&target, 5..10).await.unwrap();
    }
    assert_eq!((mirror.seen().len(), server.seen().len()), (1, 3));
    healthy.store(true, SeqCst);
    while stats(&client, &mirror.host()).sick {
        read(&target, 5..10).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = (mirror.seen().len(), server.seen().len());
    for _ in 0..3 {
        read(&target, 5..10).await.unwrap();
    }
    assert_eq!((mirror.seen().len(), server.seen().len()), (before.0 + 3, before.1));
}

#[tokio::test]
async fn wrong_bytes_are_laid_to_the_mirror_that_sent_them() {
    let data = sample(10_000);
    let wrong = Bytes::from(vec![7; 10_000]);
    let (liar, honest, server) = (good(&wrong).await, good(&data).await, good(&wrong).await);
    let (client, _dir) = patient(&server, &[&liar.host(), &honest.host()]);
    let target = blob(&server, &client, &data);
    // As a device does: it reads a range, and tells if that came out wrong.
    assert_eq!(read(&target, 100..200).await.unwrap(), wrong.slice(100..200));
    assert!(target.distrust(100..200));
    assert_eq!(read(&target, 100..200).await.unwrap(), data.slice(100..200));
    assert_eq!(target.read_all(10_000).await.unwrap(), data);
    assert_eq!((liar.seen().len(), honest.seen().len(), server.seen().len()), (1, 2, 0));
    // Other blobs may be right there.
    let other = sample(500);
    let _ = read(&blob(&server, &client, &other), 0..5).await;
    assert_eq!(liar.seen().len(), 2);
    let counted = |host: &Fake| stats(&client, &host.host()).verification_failures;
    assert_eq!((counted(&liar), counted(&honest)), (1, 0));
}

#[tokio::test]
async fn all_servers_are_asked_before_wrong_bytes_are_an_error() {
    let data = sample(1000);
    let wrong = Bytes::from(vec![7; 1000]);
    let (first, second, server) = (good(&wrong).await, good(&wrong).await, good(&data).await);
    let (client, _dir) = patient(&server, &[&first.host(), &second.host()]);
    assert_eq!(blob(&server, &client, &data).read_all(1000).await.unwrap(), data);
    assert_eq!((first.seen().len(), second.seen().len(), server.seen().len()), (1, 1, 1));
    let liars = good(&wrong).await;
    let (client, _dir) = patient(&liars, &[&first.host(), &second.host()]);
    let error = blob(&liars, &client, &data).read_all(1000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Digest { .. }), "{error}");
    assert_eq!((first.seen().len(), second.seen().len(), liars.seen().len()), (2, 2, 1));
}

#[tokio::test]
async fn a_server_that_wants_to_be_left_alone_is() {
    let data = sample(1000);
    let (asked, stored) = (Arc::new(AtomicUsize::new(0)), data.clone());
    let count = asked.clone();
    let server = Fake::start(move |seen| match count.fetch_add(1, SeqCst) {
        0 => Reply::error(429, "TOOMANYREQUESTS", "slow down").header("retry-after", 2),
        _ => blob_reply(seen, &stored),
    })
    .await;
    let client = client();
    let target = blob(&server, &client, &data);
    let first = tokio::spawn({
        let target = target.clone();
        async move { read(&target, 0..5).await }
    });
    while server.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Blobs are limited, not manifests; and what comes meanwhile waits with the first.
    assert_eq!(server.app(&client).blob_size(&other_digest()).await.unwrap(), Some(1000));
    let others: Vec<_> = (0..8)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move { read(&target, 5..9).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(asked.load(SeqCst), 2);
    assert_eq!(first.await.unwrap().unwrap(), data.slice(0..5));
    for other in others {
        assert_eq!(other.await.unwrap().unwrap(), data.slice(5..9));
    }
    assert_eq!(asked.load(SeqCst), 11);
}

#[tokio::test]
async fn readers_follow_a_changed_hosts_toml_and_survive_a_broken_one() {
    let data = sample(1000);
    let (mirror, server) = (good(&data).await, good(&data).await);
    let (client, dir) = patient(&server, &[]);
    let target = blob(&server, &client, &data);
    read(&target, 0..5).await.unwrap();
    write_hosts(dir.path(), &server.host(), "server = [");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    read(&target, 0..5).await.unwrap();
    assert_eq!(server.seen().len(), 2);
    write_hosts(dir.path(), &server.host(), &format!("[host.\"http://{}\"]", mirror.host()));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    read(&target, 0..5).await.unwrap();
    assert_eq!((mirror.seen().len(), server.seen().len()), (1, 2));
}

#[tokio::test]
async fn a_server_that_moved_is_found_although_its_old_connections_are_dead() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let data = sample(1000);
    // Every connection serves its first request, and is dead from then on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await.unwrap();
            let head = "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/1000\r\ncontent-length: 5\r\n\r\n";
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&sample(1000)[..5]).await.unwrap();
            held.push(socket);
        }
    });
    let client = impatient();
    let target = repository(&client, &format!("{host}/app")).blob(clipper_format::digest::Digest::of(&data), 1000);
    // So many side by side that there are many idle ones afterwards: each would cost a retry its patience.
    let reads: Vec<_> = (0..20)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move { read(&target, 0..5).await })
        })
        .collect();
    for one in reads {
        one.await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(read(&target, 0..5).await.unwrap(), data.slice(0..5));
    assert_eq!(client.stats().retries, 1);
    task.abort();
}
