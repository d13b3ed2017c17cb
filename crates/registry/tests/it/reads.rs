//! Range reads from servers that break, stall and lie.
use crate::fake::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::ErrorKind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A server of one blob, whose answers to the first requests may be others.
async fn serve(blob: &Bytes, first: impl Fn(usize, &Seen) -> Option<Reply> + Send + Sync + 'static) -> Fake {
    let (blob, count) = (blob.clone(), AtomicUsize::new(0));
    Fake::start(move |seen| first(count.fetch_add(1, SeqCst), seen).unwrap_or_else(|| blob_reply(seen, &blob))).await
}

fn range_header(first: usize, last: usize, size: usize) -> String {
    format!("bytes {first}-{last}/{size}")
}

#[tokio::test]
async fn a_range_is_asked_for_and_given() {
    let data = sample(100_000);
    let server = serve(&data, |_, _| None).await;
    let client = client();
    let blob = blob(&server, &client, &data);
    assert_eq!(read(&blob, 1000..51_000).await.unwrap(), data.slice(1000..51_000));
    let [seen] = server.seen().try_into().unwrap();
    assert_eq!(seen.line(), format!("GET /v2/app/blobs/{}", blob.digest()));
    assert_eq!(seen.header("range"), "bytes=1000-50999");
    assert_eq!(seen.header("accept-encoding"), "identity");
    assert_eq!(seen.header("user-agent"), concat!("clipper/", env!("CARGO_PKG_VERSION")));
    let stats = client.stats();
    assert_eq!((stats.requests, stats.bytes_received, stats.retries), (1, 50_000, 0));
}

#[tokio::test]
async fn the_whole_blob_is_asked_for_without_a_range_and_nothing_without_a_request() {
    let data = sample(5000);
    let server = serve(&data, |_, _| None).await;
    let blob = blob(&server, &client(), &data);
    assert_eq!(read(&blob, 7..7).await.unwrap(), Bytes::new());
    assert!(server.seen().is_empty());
    assert_eq!(blob.read_all(5000).await.unwrap(), data);
    assert_eq!(server.seen()[0].header("range"), "");
}

#[tokio::test]
async fn a_range_outside_the_blob_is_refused_without_a_request() {
    let data = sample(10);
    let server = serve(&data, |_, _| None).await;
    let blob = blob(&server, &client(), &data);
    #[expect(clippy::reversed_empty_ranges)]
    for range in [0..11, 11..11, 5..4] {
        assert!(matches!(blob.read(range).await.err().unwrap().kind(), ErrorKind::Request(_)));
    }
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_200_in_place_of_a_206_is_skipped_through() {
    let data = sample(300_000);
    let all = data.clone();
    let server = Fake::start(move |_| Reply::new(200).bytes(all.clone())).await;
    let blob = blob(&server, &client(), &data);
    assert_eq!(read(&blob, 100_000..200_001).await.unwrap(), data.slice(100_000..200_001));
    assert_eq!(read(&blob, 299_999..300_000).await.unwrap(), data.slice(299_999..));
}

#[tokio::test]
async fn a_200_of_another_length_is_an_error() {
    let data = sample(1000);
    for wrong in [sample(999), sample(1001)] {
        let told = wrong.clone();
        let server = Fake::start(move |_| Reply::new(200).bytes(told.clone())).await;
        let error = read(&blob(&server, &client(), &data), 10..20).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Length { expected: 1000, .. }), "{error}");
        // Without a told length it shows only at the end of the blob.
        let server = Fake::start(move |_| Reply::new(200).body([Step::Send(wrong.clone())])).await;
        let error = read(&blob(&server, &client(), &data), 10..1000).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Length { .. } | ErrorKind::Broken { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_is_resumed_at_the_broken_byte() {
    let data = sample(200_000);
    let part = data.slice(1000..61_000);
    let cut = move |n, _: &Seen| {
        let head = Reply::new(206).header("content-range", range_header(1000, 199_999, 200_000));
        (n == 0).then(|| head.header("content-length", 199_000).body([Step::Send(part.clone()), Step::Cut]))
    };
    let server = serve(&data, cut).await;
    let client = client();
    let blob = blob(&server, &client, &data);
    assert_eq!(read(&blob, 1000..200_000).await.unwrap(), data.slice(1000..));
    let ranges: Vec<_> = server.seen().iter().map(|s| s.header("range").to_owned()).collect();
    assert_eq!(ranges, ["bytes=1000-199999", "bytes=61000-199999"]);
    assert_eq!(client.stats().retries, 1);
}

#[tokio::test]
async fn a_body_that_ends_quietly_too_early_is_resumed() {
    let data = sample(50_000);
    let part = data.slice(..20_000);
    // Chunked, so only the missing bytes tell.
    let cut = move |n, _: &Seen| (n == 0).then(|| Reply::new(200).body([Step::Send(part.clone())]));
    let server = serve(&data, cut).await;
    assert_eq!(blob(&server, &client(), &data).read_all(50_000).await.unwrap(), data);
    assert_eq!(server.seen()[1].header("range"), "bytes=20000-49999");
}

#[tokio::test]
async fn a_body_that_stalls_is_resumed() {
    let data = sample(50_000);
    let part = data.slice(..30_000);
    let stall = move |n, _: &Seen| {
        let reply = Reply::new(200).header("content-length", 50_000);
        (n == 0).then(|| reply.body([Step::Send(part.clone()), Step::Stall]))
    };
    let server = serve(&data, stall).await;
    assert_eq!(blob(&server, &impatient(), &data).read_all(50_000).await.unwrap(), data);
    assert_eq!(server.seen()[1].header("range"), "bytes=30000-49999");
}

#[tokio::test]
async fn a_server_that_always_stalls_is_given_up() {
    let data = sample(50_000);
    let stall = |_, _: &Seen| Some(Reply::new(200).header("content-length", 50_000).body([Step::Stall]));
    let server = serve(&data, stall).await;
    let error = blob(&server, &impatient(), &data).read_all(50_000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Stalled { .. }), "{error}");
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let blob = repository(&impatient(), &format!("{host}/app")).blob(other_digest(), 10);
    let error = read(&blob, 0..10).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Stalled { .. }), "{error}");
    drop(listener);
    let error = read(&blob, 0..10).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }) && error.to_string().contains(&host), "{error}");
}

#[tokio::test]
async fn wrong_ranges_are_refused_at_once() {
    let data = sample(1000);
    let wrong = [
        Some(range_header(11, 19, 1000)),
        Some(range_header(10, 18, 1000)),
        Some(range_header(10, 19, 999)),
        Some(range_header(0, 9, 1000)),
        Some("bytes */1000".into()),
        Some("nonsense".into()),
        None,
    ];
    for range in wrong {
        let told = range.clone();
        let lie = move |_, _: &Seen| {
            let reply = Reply::new(206).bytes(vec![0; 10]);
            Some(told.iter().fold(reply, |reply, range| reply.header("content-range", range)))
        };
        let server = serve(&data, lie).await;
        let error = read(&blob(&server, &client(), &data), 10..20).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{range:?}: {error}");
        assert_eq!(server.seen().len(), 1, "{range:?}");
    }
}

#[tokio::test]
async fn a_range_with_too_many_bytes_is_refused() {
    let data = sample(1000);
    let told =
        |_, _: &Seen| Some(Reply::new(206).header("content-range", range_header(10, 19, 1000)).bytes(vec![0; 11]));
    let server = serve(&data, told).await;
    let error = read(&blob(&server, &client(), &data), 10..20).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Length { expected: 10, got: 11, .. }), "{error}");
    // Chunked: in one piece, and in a piece of its own after the end.
    for pieces in [vec![11], vec![10, 1]] {
        let steps: Vec<_> = pieces.iter().map(|n| Step::Send(vec![0; *n].into())).collect();
        let quiet = move |_, _: &Seen| {
            Some(Reply::new(206).header("content-range", range_header(10, 19, 1000)).body(steps.clone()))
        };
        let server = serve(&data, quiet).await;
        let error = read(&blob(&server, &client(), &data), 10..20).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Length { .. }), "{pieces:?}: {error}");
    }
}

#[tokio::test]
async fn encoded_and_partial_answers_that_nobody_asked_for_are_refused() {
    let data = sample(1000);
    let gzip = data.clone();
    let server = serve(&data, move |_, s| Some(blob_reply(s, &gzip).header("content-encoding", "gzip"))).await;
    let error = read(&blob(&server, &client(), &data), 10..20).await.unwrap_err();
    assert!(error.to_string().contains("encodes"), "{error}");
    let part = |_, _: &Seen| Some(Reply::new(206).header("content-range", "bytes 0-999/1000").bytes(vec![0; 1000]));
    let server = serve(&data, part).await;
    let error = blob(&server, &client(), &data).read_all(1000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_that_is_too_short_for_the_range_is_told() {
    let server = Fake::start(|_| Reply::error(416, "RANGE_INVALID", "no")).await;
    let error = read(&blob(&server, &client(), &sample(1000)), 10..20).await.unwrap_err();
    assert!(error.to_string().contains("shorter than 20 bytes"), "{error}");
}

#[tokio::test]
async fn busy_servers_are_asked_again() {
    let data = sample(1000);
    for status in [429, 503] {
        let busy = move |n, _: &Seen| {
            (n < 2).then(|| Reply::error(status, "TOOMANYREQUESTS", "slow").header("retry-after", 0))
        };
        let server = serve(&data, busy).await;
        assert_eq!(blob(&server, &client(), &data).read_all(1000).await.unwrap(), data);
        assert_eq!(server.seen().len(), 3);
    }
    let failing = |n, _: &Seen| (n < 2).then(|| Reply::new(502));
    let server = serve(&data, failing).await;
    assert_eq!(blob(&server, &client(), &data).read_all(1000).await.unwrap(), data);
}

#[tokio::test]
async fn a_server_that_wants_too_long_a_wait_is_not_asked_again() {
    let data = sample(1000);
    let busy = |_, _: &Seen| Some(Reply::error(429, "TOOMANYREQUESTS", "pull rate limit").header("retry-after", 3600));
    let server = serve(&data, busy).await;
    let error = blob(&server, &client(), &data).read_all(1000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Limited { status: 429, .. }), "{error}");
    assert!(error.to_string().contains("pull rate limit") && error.to_string().contains("3600 s"), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn errors_are_final_or_bounded_and_name_everything() {
    let data = sample(1000);
    let server = serve(&data, |_, _| Some(Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry"))).await;
    let target = blob(&server, &client(), &data);
    let error = read(&target, 0..5).await.unwrap_err();
    assert!(error.is_not_found());
    let text = error.to_string();
    for part in [&server.host(), "app", &target.digest().to_string(), "BLOB_UNKNOWN: blob unknown to registry"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(server.seen().len(), 1);
    let server = serve(&data, |_, _| Some(Reply::error(500, "UNKNOWN", "disk full"))).await;
    let error = read(&blob(&server, &client(), &data), 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Status { status: 500, .. }) && error.to_string().contains("disk full"));
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn whole_reads_are_verified_and_bounded() {
    let (data, other) = (sample(1000), Bytes::from(vec![0; 1000]));
    let server = Fake::start(move |seen| blob_reply(seen, &other)).await;
    let blob = blob(&server, &client(), &data);
    assert!(matches!(blob.read_all(1000).await.unwrap_err().kind(), ErrorKind::Digest { .. }));
    assert!(matches!(blob.read_all(999).await.unwrap_err().kind(), ErrorKind::TooLarge { limit: 999 }));
}

#[tokio::test]
async fn a_blob_of_unknown_size_takes_one_request_and_is_resumed_and_verified() {
    let data = sample(50_000);
    let (part, other) = (data.slice(..20_000), Bytes::from(vec![0; 50_000]));
    let cut = move |n, _: &Seen| match n {
        1 => Some(Reply::new(200).header("content-length", 50_000).body([Step::Send(part.clone()), Step::Cut])),
        3 => Some(Reply::new(200).bytes(other.clone())),
        _ => None,
    };
    let server = serve(&data, cut).await;
    let repository = server.app(&client());
    let digest = Digest::of(&data);
    assert_eq!(repository.read_blob(digest, 50_000).await.unwrap(), Some(data.clone()));
    assert_eq!(server.lines(), [format!("GET /v2/app/blobs/{digest}")]);
    assert_eq!(repository.read_blob(digest, 50_000).await.unwrap(), Some(data.clone()));
    assert_eq!(server.seen()[2].header("range"), "bytes=20000-49999");
    let wrong = repository.read_blob(digest, 50_000).await.unwrap_err();
    assert!(matches!(wrong.kind(), ErrorKind::Digest { .. }), "{wrong}");
    let large = repository.read_blob(digest, 49_999).await.unwrap_err();
    assert!(matches!(large.kind(), ErrorKind::TooLarge { limit: 49_999 }), "{large}");
}

#[tokio::test]
async fn a_blob_of_unknown_size_may_not_be_there_or_come_in_chunks() {
    let data = sample(5000);
    let (all, size) = (data.clone(), data.len());
    let server = Fake::start(move |seen| match seen.line() {
        line if line.starts_with("HEAD ") => Reply::new(200).header("content-length", size),
        _ => Reply::new(200).body([Step::Send(all.clone())]),
    })
    .await;
    let repository = server.app(&client());
    assert_eq!(repository.read_blob(Digest::of(&data), 5000).await.unwrap(), Some(data));
    let none = Fake::start(|_| Reply::error(404, "BLOB_UNKNOWN", "no")).await;
    assert_eq!(none.app(&client()).read_blob(other_digest(), 5000).await.unwrap(), None);
}

#[tokio::test]
async fn connections_are_used_again() {
    let data = sample(10_000);
    let server = serve(&data, |_, _| None).await;
    let blob = blob(&server, &client(), &data);
    for i in 0..50 {
        read(&blob, i..i + 5000).await.unwrap();
    }
    assert_eq!(server.seen().len(), 50);
    assert!(server.connections() < 25, "{} connections", server.connections());
}

#[tokio::test]
async fn many_ranges_side_by_side_are_each_right() {
    let data = sample(1 << 20);
    let server = serve(&data, |_, _| None).await;
    let client = client();
    let blob = blob(&server, &client, &data);
    let reads = (0..64u64).map(|i| {
        let blob = blob.clone();
        tokio::spawn(async move { (i, read(&blob, i * 16384..(i + 1) * 16384).await) })
    });
    for task in reads {
        let (i, bytes) = task.await.unwrap();
        let at = i as usize * 16384;
        assert_eq!(bytes.unwrap(), data.slice(at..at + 16384));
    }
    assert_eq!(client.stats().requests, 64);
}
