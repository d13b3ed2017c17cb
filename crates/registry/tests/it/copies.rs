//! Blobs brought from one registry to another: after each break they are read again from where the target stands.
use crate::fake::*;
use crate::store::*;
use bytes::Bytes;
use clipper_registry::{ErrorKind, RegistryError};
use std::sync::{Arc, Mutex};

const MIB: usize = 1 << 20;

/// More than one chunk of those that are streamed.
fn long() -> Bytes {
    sample(66 * MIB)
}

/// A registry that has a blob.
async fn origin(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |seen| blob_reply(seen, &data)).await
}

/// Copies; gives also how far the progress was told to be, each time that it went back, and at the end.
async fn copy(from: &Fake, to: &Store, data: &Bytes) -> (Result<bool, RegistryError>, Vec<u64>) {
    let client = client();
    let told: Arc<Mutex<Vec<u64>>> = Arc::new(Mutex::new(vec![0]));
    let noted = told.clone();
    let on_progress = move |at| {
        let mut told = noted.lock().unwrap();
        match told.last_mut() {
            Some(last) if *last <= at => *last = at,
            _ => told.push(at),
        }
    };
    let result = to.server.app(&client).copy_blob(&blob(from, &client, data), on_progress).await;
    let told = told.lock().unwrap().clone();
    (result, told)
}

fn ranges(from: &Fake) -> Vec<String> {
    from.seen().iter().map(|s| s.header("range").to_owned()).collect()
}

fn first_chunk(seen: &Seen) -> bool {
    seen.method == "PATCH" && seen.header("content-range").starts_with("0-")
}

#[tokio::test]
async fn a_short_blob_goes_in_one_piece_and_a_long_one_in_chunks_of_one_read() {
    let data = long();
    let (from, to) = (origin(&data).await, Store::start().await);
    let (result, progress) = copy(&from, &to, &data).await;
    assert!(result.unwrap() && to.has(&data));
    assert_eq!(to.exchanges(), ["POST", "PATCH 0-67108863", "PATCH 67108864-69206015", "PUT"]);
    assert_eq!((ranges(&from), progress), (vec![String::new()], vec![data.len() as u64]));

    let short = data.slice(..1000);
    let (from, to) = (origin(&short).await, Store::start().await);
    let (result, progress) = copy(&from, &to, &short).await;
    assert!(result.unwrap() && to.has(&short));
    assert_eq!((to.exchanges(), progress), (vec!["POST".to_owned(), "PUT".to_owned()], vec![1000]));
    assert!(!copy(&from, &to, &short).await.0.unwrap(), "it's there");
}

#[tokio::test]
async fn after_a_break_the_source_is_read_where_the_target_stands() {
    let (data, first) = (long(), once());
    let from = origin(&data).await;
    let to = Store::scripted(|_, _| None, move |s| (first_chunk(s) && first()).then_some(20 * MIB)).await;
    let (result, progress) = copy(&from, &to, &data).await;
    assert!(result.unwrap() && to.has(&data));
    let rest = format!("PATCH {}-67108863", 20 * MIB);
    assert_eq!(to.exchanges()[1..4], ["PATCH 0-67108863".to_owned(), "GET".to_owned(), rest]);
    assert_eq!(ranges(&from), [String::new(), format!("bytes={}-{}", 20 * MIB, data.len() - 1)]);
    assert_eq!(*progress.last().unwrap(), data.len() as u64);
}

#[tokio::test]
async fn a_registry_that_has_less_than_it_said_is_given_it_again() {
    let (data, first) = (long(), once());
    let from = origin(&data).await;
    // It has lost what it took, down to 5 MiB, and says so when the next chunk comes.
    let script = move |s: &Seen, kept: &mut Kept| {
        if s.method == "PATCH" && s.header("content-range").starts_with("67108864-") && first() {
            kept.uploads.get_mut(&0).unwrap().truncate(5 * MIB);
        }
        None
    };
    let to = Store::scripted(script, |_| None).await;
    assert!(copy(&from, &to, &data).await.0.unwrap() && to.has(&data));
    assert_eq!(ranges(&from)[1], format!("bytes={}-{}", 5 * MIB, data.len() - 1));
}

#[tokio::test]
async fn a_lost_upload_is_begun_anew_but_not_for_ever() {
    let (data, first) = (long(), once());
    let from = origin(&data).await;
    let forget = move |s: &Seen, kept: &mut Kept| {
        if s.method == "PUT" && first() {
            kept.uploads.clear();
        }
        None
    };
    let to = Store::scripted(forget, |_| None).await;
    assert!(copy(&from, &to, &data).await.0.unwrap() && to.has(&data));
    assert_eq!(to.exchanges().iter().filter(|e| *e == "POST").count(), 2);
    let always = |s: &Seen, kept: &mut Kept| {
        if s.method == "PATCH" {
            kept.uploads.clear();
        }
        None
    };
    let to = Store::scripted(always, |_| None).await;
    let error = copy(&from, &to, &data).await.0.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UploadLost { .. }), "{error}");
    assert_eq!(to.exchanges().iter().filter(|e| *e == "POST").count(), 3, "as many as attempts");
}

#[tokio::test]
async fn a_registry_without_chunks_gets_it_in_one_piece() {
    let data = long();
    let from = origin(&data).await;
    let to = Store::scripted(|s, _| (s.method == "PATCH").then(|| Reply::new(405)), |_| None).await;
    assert!(copy(&from, &to, &data).await.0.unwrap() && to.has(&data));
    assert_eq!(to.server.seen().last().unwrap().header("content-length"), data.len().to_string());
}

#[tokio::test]
async fn a_token_that_expires_before_a_streamed_chunk_is_renewed() {
    let data = long();
    let from = origin(&data).await;
    let issued = std::sync::atomic::AtomicUsize::new(0);
    let issuer = Fake::start(move |_| {
        let n = issued.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Reply::new(200).bytes(format!(r#"{{"token": "t{n}", "expires_in": 300}}"#))
    })
    .await;
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"reg\"", issuer.host());
    let script = move |s: &Seen, kept: &mut Kept| {
        let expired = kept.uploads.get(&0).is_some_and(|u| u.len() >= 64 * MIB);
        let valid = if expired { "Bearer t1" } else { "Bearer t0" };
        (s.header("authorization") != valid).then(|| Reply::new(401).header("www-authenticate", &challenge))
    };
    let to = Store::scripted(script, |_| None).await;
    assert!(copy(&from, &to, &data).await.0.unwrap() && to.has(&data));
    assert_eq!(issuer.seen().len(), 2);
}

#[tokio::test]
async fn a_source_that_fails_is_told_as_such() {
    let data = long();
    let part = data.slice(..MIB);
    let from = Fake::start(move |s| match s.header("range") {
        "" => Reply::new(200).header("content-length", 66 * MIB).body([Step::Send(part.clone()), Step::Cut]),
        _ => Reply::error(404, "BLOB_UNKNOWN", "gone"),
    })
    .await;
    let to = Store::start().await;
    let error = copy(&from, &to, &data).await.0.unwrap_err();
    let ErrorKind::Source(problem) = error.kind() else { panic!("{error}") };
    assert!(problem.contains(&from.host()) && problem.contains("BLOB_UNKNOWN"), "{problem}");
    assert!(to.kept.lock().unwrap().blobs.is_empty());
}
