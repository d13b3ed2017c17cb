//! Uploads whose digest is known only at their end, to registries that break, refuse, forget and lie.
use crate::fake::*;
use crate::store::*;
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, ErrorKind, RegistryError, Repository};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

const MIB: usize = 1 << 20;

/// Two chunks and a bit.
fn data() -> Bytes {
    sample(17 * MIB + 5)
}

async fn upload(app: &Repository, data: &Bytes) -> Result<(Digest, u64), RegistryError> {
    let mut upload = app.upload().await?;
    for piece in 0..=data.len() / 3_000_000 {
        let end = data.len().min((piece + 1) * 3_000_000);
        upload.write(data.slice(piece * 3_000_000..end)).await?;
    }
    upload.finish().await
}

/// The second chunk of [`data`].
fn second(seen: &Seen) -> bool {
    seen.method == "PATCH" && seen.header("content-range").starts_with("8388608-")
}

fn lines(between: &[&str]) -> Vec<String> {
    let first = ["POST", "PATCH 0-8388607", "PATCH 8388608-16777215"];
    let last = ["PATCH 16777216-17825796", "PUT"];
    [&first[..], between, &last].concat().into_iter().map(String::from).collect()
}

#[tokio::test]
async fn a_long_blob_goes_in_chunks_and_a_short_one_in_one_piece() {
    let (store, data) = (Store::start().await, data());
    let client = client();
    let app = store.server.app(&client);
    assert_eq!(upload(&app, &data).await.unwrap(), (Digest::of(&data), data.len() as u64));
    assert!(store.has(&data));
    assert_eq!(store.exchanges(), lines(&[]));
    assert_eq!(client.stats().bytes_sent, data.len() as u64);
    let short = data.slice(..100);
    let before = store.server.seen().len();
    assert_eq!(upload(&app, &short).await.unwrap(), (Digest::of(&short), 100));
    let methods: Vec<_> = store.server.seen().drain(before..).map(|s| s.method).collect();
    assert_eq!(methods, ["HEAD", "POST", "PUT"]);
    // Once more, and it's there: what was opened is cancelled.
    let before = store.server.seen().len();
    upload(&app, &data).await.unwrap();
    settled(&store, "DELETE", 1).await;
    assert!(store.server.seen().drain(before..).all(|s| s.method != "PUT"));
}

/// Waits until the store has seen so many requests of a kind, which come from a task of their own.
async fn settled(store: &Store, method: &str, count: usize) {
    for _ in 0..2000 {
        if store.server.seen().iter().filter(|s| s.method == method).count() >= count {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("no {method} came");
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_cancelled() {
    let store = Store::start().await;
    let mut upload = store.server.app(&client()).upload().await.unwrap();
    upload.write(data()).await.unwrap();
    drop(upload);
    settled(&store, "DELETE", 1).await;
    assert!(store.kept.lock().unwrap().uploads.is_empty());
}

#[tokio::test]
async fn the_registry_s_least_length_of_chunks_is_kept_or_refused() {
    for (min, wanted) in [(10 * MIB, "PATCH 0-10485759"), (1, "PATCH 0-8388607")] {
        let script = move |s: &Seen, kept: &mut Kept| {
            (s.method == "POST").then(|| {
                kept.uploads.insert(7, Vec::new());
                kept.state(202, 7).header("oci-chunk-min-length", min)
            })
        };
        let store = Store::scripted(script, |_| None).await;
        upload(&store.server.app(&client()), &data()).await.unwrap();
        assert!(store.has(&data()));
        assert_eq!(store.exchanges()[1], wanted);
    }
    let huge = |s: &Seen, kept: &mut Kept| {
        kept.uploads.insert(7, Vec::new());
        (s.method == "POST").then(|| kept.state(202, 7).header("oci-chunk-min-length", u64::MAX))
    };
    let store = Store::scripted(huge, |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err().to_string();
    assert!(error.contains("OCI-Chunk-Min-Length") && error.contains("oci:DIR"), "{error}");
}

#[tokio::test]
async fn a_connection_that_breaks_within_a_chunk_is_taken_up_where_the_registry_stands() {
    // In the middle, before the first byte, and after the last one, when only the answer is lost.
    let cases: [(usize, &[&str]); 3] =
        [(3 * MIB, &["GET", "PATCH 11534336-16777215"]), (0, &["GET", "PATCH 8388608-16777215"]), (8 * MIB, &["GET"])];
    for (at, between) in cases {
        let first = once();
        let store = Store::scripted(|_, _| None, move |s| (second(s) && first()).then_some(at)).await;
        upload(&store.server.app(&client()), &data()).await.unwrap();
        assert!(store.has(&data()), "{at}");
        assert_eq!(store.exchanges(), lines(between), "{at}");
    }
}

#[tokio::test]
async fn servers_in_trouble_and_rate_limits_are_waited_for() {
    for status in [500, 502, 503, 429] {
        let count = AtomicUsize::new(0);
        let script = move |s: &Seen, _: &mut Kept| {
            let fails = second(s) && count.fetch_add(1, SeqCst) < 2;
            fails.then(|| Reply::error(status, "TOOMANYREQUESTS", "slow").header("retry-after", 0))
        };
        let store = Store::scripted(script, |_| None).await;
        upload(&store.server.app(&client()), &data()).await.unwrap();
        assert!(store.has(&data()), "{status}");
        let again = ["GET", "PATCH 8388608-16777215"].repeat(2);
        assert_eq!(store.exchanges(), lines(&again), "{status}");
    }
    let never = |s: &Seen, _: &mut Kept| {
        second(s).then(|| Reply::error(429, "TOOMANYREQUESTS", "come back later").header("retry-after", 3600))
    };
    let store = Store::scripted(never, |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err().to_string();
    assert!(error.contains(&store.server.host()) && error.contains("try again in 3600 s"), "{error}");
}

#[tokio::test]
async fn a_token_that_expires_between_chunks_is_renewed_once_for_all() {
    let issued = AtomicUsize::new(0);
    let issuer = Fake::start(move |_| {
        Reply::new(200).bytes(format!(r#"{{"token": "t{}", "expires_in": 300}}"#, issued.fetch_add(1, SeqCst)))
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", issuer.host());
    let (valid, patches) = (Arc::new(Mutex::new("Bearer t0".to_owned())), AtomicUsize::new(0));
    let script = move |s: &Seen, _: &mut Kept| {
        let mut valid = valid.lock().unwrap();
        // Both uploads have sent their first chunk when the token becomes invalid.
        if s.method == "PATCH" && s.header("authorization") == "Bearer t0" && patches.fetch_add(1, SeqCst) == 2 {
            *valid = "Bearer t1".into();
        }
        (s.header("authorization") != *valid).then(|| Reply::new(401).header("www-authenticate", &challenge))
    };
    let store = Store::scripted(script, |_| None).await;
    let app = store.server.app(&client());
    let other = data().slice(1..);
    let (one, two) = (data(), other.clone());
    let (one, two) = tokio::join!(upload(&app, &one), upload(&app, &two));
    one.unwrap();
    two.unwrap();
    assert!(store.has(&data()) && store.has(&other));
    assert_eq!(issuer.seen().len(), 2, "one token at first, one afterwards");
}

#[tokio::test]
async fn an_upload_that_the_registry_lost_is_told() {
    let script = |s: &Seen, kept: &mut Kept| {
        if second(s) {
            kept.uploads.clear();
        }
        None
    };
    let store = Store::scripted(script, |_| None).await;
    let mut upload = store.server.app(&client()).upload().await.unwrap();
    let error = upload.write(data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UploadLost { at: 8_388_608, .. }), "{error}");
    assert!(error.is_transient());
    let text = error.to_string();
    for part in
        [&store.server.host(), "/app", "lost the upload after 8388608 bytes", "BLOB_UPLOAD_UNKNOWN", "try again"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(upload.write(data()).await.unwrap_err().to_string().contains("begin another one"));
    assert!(upload.finish().await.unwrap_err().to_string().contains("begin another one"));
    assert!(store.kept.lock().unwrap().blobs.is_empty());
}

#[tokio::test]
async fn an_upload_that_is_lost_at_its_end_is_told_with_the_digest() {
    let script = |s: &Seen, kept: &mut Kept| {
        if s.method == "PUT" {
            kept.uploads.clear();
        }
        None
    };
    let store = Store::scripted(script, |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UploadLost { .. }), "{error}");
    assert!(error.to_string().contains(&Digest::of(&data()).to_string()), "{error}");
}

#[tokio::test]
async fn lies_about_the_range_are_found_out() {
    let told = |range: &'static str| {
        move |s: &Seen, kept: &mut Kept| {
            second(s).then(|| {
                let mut reply = kept.state(202, 0);
                reply.headers.retain(|(name, _)| *name != "range");
                reply.header("range", range)
            })
        }
    };
    // More than was sent.
    let store = Store::scripted(told("0-16777216"), |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("has 16777217 bytes of an upload, and 16777216 were sent"), "{error}");
    // Less than it had confirmed before: that's gone from here.
    let store = Store::scripted(told("0-4194303"), |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UploadLost { .. }), "{error}");
    // All of it, although it kept nothing: the digest tells.
    let store = Store::scripted(told("0-16777215"), |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UploadLost { .. } | ErrorKind::Status { .. }), "{error}");
    // Nothing new, and that again and again.
    let store = Store::scripted(told("0-8388607"), |_| None).await;
    let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
    assert!(error.to_string().contains("took none of the bytes from 8388608 on"), "{error}");
    let asked = store.exchanges().iter().filter(|e| *e == "PATCH 8388608-16777215").count();
    assert_eq!(asked, 3, "as many as attempts");
}

#[tokio::test]
async fn a_long_blob_in_memory_is_taken_up_or_begun_anew_as_well() {
    let (data, first, lost) = (data(), once(), once());
    let script = move |s: &Seen, kept: &mut Kept| {
        if s.method == "PUT" && lost() {
            kept.uploads.clear();
        }
        None
    };
    let store = Store::scripted(script, move |s| (s.method == "PATCH" && first()).then_some(5 * MIB)).await;
    assert!(store.server.app(&client()).push_blob(Digest::of(&data), data.clone()).await.unwrap());
    assert!(store.has(&data));
    let broken = ["POST", "PATCH 0-17825796", "GET", "PATCH 5242880-17825796", "PUT"];
    let mut exchanges = store.exchanges();
    exchanges.retain(|e| e != "DELETE");
    assert_eq!(exchanges, [&broken[..], &["POST", "PATCH 0-17825796", "PUT"]].concat());
}

#[tokio::test]
async fn a_chunk_that_is_taken_in_part_is_completed() {
    let first = once();
    let script = move |s: &Seen, kept: &mut Kept| {
        (second(s) && first()).then(|| {
            kept.uploads.get_mut(&0).unwrap().extend_from_slice(&s.body[..MIB]);
            kept.state(202, 0)
        })
    };
    let store = Store::scripted(script, |_| None).await;
    upload(&store.server.app(&client()), &data()).await.unwrap();
    assert!(store.has(&data()));
    assert_eq!(store.exchanges(), lines(&["PATCH 9437184-16777215"]));
}

#[tokio::test]
async fn registries_that_take_no_chunks_are_named_with_what_to_do() {
    for (status, nth) in [(405, 0), (404, 0), (405, 1), (404, 1), (416, 1)] {
        let count = AtomicUsize::new(0);
        let script = move |s: &Seen, _: &mut Kept| {
            (s.method == "PATCH" && count.fetch_add(1, SeqCst) >= nth).then(|| Reply::new(status))
        };
        let store = Store::scripted(script, |_| None).await;
        let error = upload(&store.server.app(&client()), &data()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoChunks { .. }), "{status} {nth}: {error}");
        let text = error.to_string();
        assert!(text.contains(&store.server.host()) && text.contains("clipper copy"), "{text}");
    }
}

#[tokio::test]
async fn an_end_whose_answer_is_lost_is_looked_for() {
    let first = once();
    let store = Store::scripted(|_, _| None, move |s| (s.method == "PUT" && first()).then_some(0)).await;
    upload(&store.server.app(&client()), &data()).await.unwrap();
    assert!(store.has(&data()));
    assert_eq!(store.exchanges(), lines(&[]), "it was there, so it was not put again");
    let first = once();
    let store = Store::scripted(move |s, _| (s.method == "PUT" && first()).then(|| Reply::new(502)), |_| None).await;
    upload(&store.server.app(&client()), &data()).await.unwrap();
    assert!(store.has(&data()));
}

#[tokio::test]
async fn chunks_that_go_elsewhere_show_no_credentials() {
    let store = Store::start().await;
    store.kept.lock().unwrap().uploads.insert(0, Vec::new());
    let location = format!("http://{}/v2/app/blobs/uploads/0?state=0", store.server.host());
    let registry = Fake::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        ("", _) => Reply::new(401).header("www-authenticate", "Basic"),
        (_, "HEAD") => Reply::new(404),
        _ => Reply::new(202).header("location", &location),
    })
    .await;
    let (client, _dir) = client_with_login(&registry.host(), r#"{"username": "me", "password": "secret"}"#);
    upload(&registry.app(&client), &data()).await.unwrap();
    assert!(store.has(&data()));
    assert!(store.server.seen().iter().all(|s| s.header("authorization").is_empty()));
}

#[tokio::test]
async fn a_registry_that_is_gone_is_named() {
    let app = repository(&Client::new(options()).unwrap(), "127.0.0.1:1/app");
    let error = upload(&app, &data()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Connect { .. }), "{error}");
    assert!(error.to_string().contains("pushing a blob to 127.0.0.1:1/app"), "{error}");
}
