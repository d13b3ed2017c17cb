//! Passwords, tokens and their renewal.
use crate::fake::*;
use bytes::Bytes;
use clipper_registry::{Client, ErrorKind, Selector};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use std::time::Duration;

/// Base64 of `me:secret`.
const LOGIN: &str = "bWU6c2VjcmV0";

/// A token server that numbers its tokens; each lives as long as told.
async fn token_server(expires_in: u64) -> Fake {
    let count = AtomicUsize::new(0);
    Fake::start(move |_| {
        let token = format!("t{}", count.fetch_add(1, SeqCst));
        Reply::new(200).bytes(format!(r#"{{"token": "{token}", "expires_in": {expires_in}}}"#))
    })
    .await
}

/// A registry with one blob that takes whatever token is the current one.
async fn registry(tokens: &Fake, blob: &Bytes, valid: Arc<Mutex<Vec<String>>>) -> Fake {
    let (realm, blob) = (format!("http://{}/token", tokens.host()), blob.clone());
    Fake::start(move |seen| {
        let token = seen.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        if valid.lock().unwrap().iter().any(|v| v == token) {
            return if seen.method == "PUT" { Reply::new(201) } else { blob_reply(seen, &blob) };
        }
        let actions = if seen.method == "PUT" { "pull,push" } else { "pull" };
        let challenge = format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"repository:app:{actions}\"");
        Reply::error(401, "UNAUTHORIZED", "authentication required").header("www-authenticate", challenge)
    })
    .await
}

fn tokens(list: &[&str]) -> Arc<Mutex<Vec<String>>> {
    Arc::new(Mutex::new(list.iter().map(|t| (*t).to_owned()).collect()))
}

#[tokio::test]
async fn one_token_serves_many_readers() {
    let data = sample(64_000);
    let issuer = token_server(300).await;
    let server = registry(&issuer, &data, tokens(&["t0"])).await;
    let client = client();
    let target = blob(&server, &client, &data);
    let reads = (0..32u64).map(|i| {
        let target = target.clone();
        tokio::spawn(async move { read(&target, i * 1000..(i + 1) * 1000).await.unwrap() })
    });
    for task in reads {
        task.await.unwrap();
    }
    assert_eq!(issuer.lines(), ["GET /token?service=reg&scope=repository%3Aapp%3Apull"]);
    assert_eq!(issuer.seen()[0].header("authorization"), "");
    // What is known of the server is used at once by the next repository object.
    let before = server.seen().len();
    read(&blob(&server, &client, &data), 0..5).await.unwrap();
    assert_eq!(server.seen().len(), before + 1);
}

#[tokio::test]
async fn a_token_that_the_registry_no_longer_takes_is_renewed_once() {
    let data = sample(1000);
    let issuer = token_server(300).await;
    let valid = tokens(&["t0"]);
    let server = registry(&issuer, &data, valid.clone()).await;
    let target = blob(&server, &client(), &data);
    read(&target, 0..5).await.unwrap();
    *valid.lock().unwrap() = vec!["t1".into()];
    read(&target, 0..5).await.unwrap();
    assert_eq!(issuer.seen().len(), 2);
    valid.lock().unwrap().clear();
    let before = server.seen().len();
    let error = read(&target, 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Denied { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("authentication required"), "{error}");
    assert_eq!((issuer.seen().len(), server.seen().len() - before), (3, 2));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let data = sample(1000);
    let issuer = token_server(1).await;
    let server = registry(&issuer, &data, tokens(&["t0", "t1"])).await;
    let target = blob(&server, &client(), &data);
    read(&target, 0..5).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    read(&target, 0..5).await.unwrap();
    let used: Vec<_> = server.seen().iter().map(|s| s.header("authorization").to_owned()).collect();
    assert_eq!(used, ["", "Bearer t0", "Bearer t1"]);
}

#[tokio::test]
async fn credentials_go_to_the_token_server_and_pushes_ask_for_their_own_scope() {
    let data = sample(1000);
    let issuer = token_server(300).await;
    let server = registry(&issuer, &data, tokens(&["t0", "t1"])).await;
    let (client, _dir) = client_with_login(&server.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    read(&blob(&server, &client, &data), 0..5).await.unwrap();
    let manifest = Bytes::from_static(b"{}");
    server.app(&client).put_manifest(&Selector::Tag("v".into()), "a/b", manifest).await.unwrap();
    let lines = issuer.lines();
    assert_eq!(lines[0], "GET /token?service=reg&scope=repository%3Aapp%3Apull");
    assert_eq!(lines[1], "GET /token?service=reg&scope=repository%3Aapp%3Apull%2Cpush");
    assert!(issuer.seen().iter().all(|s| s.header("authorization") == format!("Basic {LOGIN}")));
    assert!(server.seen().iter().all(|s| !s.header("authorization").starts_with("Basic")));
}

#[tokio::test]
async fn a_refresh_token_is_posted() {
    let data = sample(1000);
    let issuer = Fake::start(|_| Reply::new(200).bytes(r#"{"access_token": "fresh"}"#)).await;
    let server = registry(&issuer, &data, tokens(&["fresh"])).await;
    let (client, _dir) = client_with_login(&server.host(), r#"{"auth": "", "identitytoken": "id/1+2"}"#);
    read(&blob(&server, &client, &data), 0..5).await.unwrap();
    let [seen] = issuer.seen().try_into().unwrap();
    assert_eq!(seen.line(), "POST /token");
    assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
    let form = String::from_utf8(seen.body.to_vec()).unwrap();
    assert_eq!(
        form,
        "grant_type=refresh_token&client_id=clipper&service=reg&scope=repository%3Aapp%3Apull&refresh_token=id%2F1%2B2"
    );
}

#[tokio::test]
async fn token_servers_that_refuse_or_babble_are_named() {
    let data = sample(10);
    let cases = [
        (Reply::error(401, "UNAUTHORIZED", "incorrect password"), "incorrect password"),
        (Reply::new(200).bytes("no json"), "isn't JSON"),
        (Reply::new(200).bytes(r#"{"token": ""}"#), "no usable token"),
        (Reply::new(200).bytes("{\"token\": \"a\\nb\"}"), "no usable token"),
    ];
    for (reply, words) in cases {
        let issuer = Fake::start(move |_| reply.clone()).await;
        let server = registry(&issuer, &data, tokens(&[])).await;
        let error = read(&blob(&server, &client(), &data), 0..5).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&issuer.host()), "{error}");
    }
}

async fn basic_registry(data: &Bytes) -> Fake {
    let data = data.clone();
    Fake::start(move |seen| {
        if seen.header("authorization") == format!("Basic {LOGIN}") {
            return blob_reply(seen, &data);
        }
        Reply::error(401, "UNAUTHORIZED", "no").header("www-authenticate", "Basic realm=\"r\"")
    })
    .await
}

#[tokio::test]
async fn passwords_are_sent_where_they_are_asked_for() {
    let data = sample(1000);
    let server = basic_registry(&data).await;
    let (client, _dir) = client_with_login(&server.host(), r#"{"username": "me", "password": "secret"}"#);
    let target = blob(&server, &client, &data);
    read(&target, 0..5).await.unwrap();
    read(&target, 5..9).await.unwrap();
    let used: Vec<_> = server.seen().iter().map(|s| s.header("authorization").is_empty()).collect();
    assert_eq!(used, [true, false, false], "asked for once, then sent at once");
}

#[tokio::test]
async fn wrong_or_missing_passwords_give_a_hint_and_no_storm() {
    let data = sample(1000);
    let server = basic_registry(&data).await;
    let (wrong, _dir) = client_with_login(&server.host(), r#"{"username": "me", "password": "wrong"}"#);
    let (broken, _dir2) = client_with_login("other", r#"{}}, "credHelpers": {"x": {}"#);
    for (client, requests) in [(wrong, 2), (client(), 1), (broken, 1)] {
        let before = server.seen().len();
        let error = read(&blob(&server, &client, &data), 0..5).await.unwrap_err();
        let ErrorKind::Denied { status: 401, hint, .. } = error.kind() else { panic!("{error}") };
        assert!(hint.contains(&format!("docker login {}", server.host())), "{hint}");
        assert_eq!(server.seen().len() - before, requests);
    }
}

#[tokio::test]
async fn a_login_takes_effect_without_a_restart() {
    let data = sample(1000);
    let server = basic_registry(&data).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    let options = clipper_registry::ClientOptions { docker_config: Some(config.clone()), ..options() };
    let client = Client::new(options).unwrap();
    let target = blob(&server, &client, &data);
    assert!(read(&target, 0..5).await.is_err());
    std::fs::write(config, format!(r#"{{"auths": {{"{}": {{"auth": "{LOGIN}"}}}}}}"#, server.host())).unwrap();
    assert_eq!(read(&target, 0..5).await.unwrap(), data.slice(0..5));
}

#[tokio::test]
async fn a_403_is_final() {
    let server = Fake::start(|_| Reply::error(403, "DENIED", "requested access to the resource is denied")).await;
    let error = read(&blob(&server, &client(), &sample(10)), 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Denied { status: 403, .. }), "{error}");
    assert!(error.to_string().contains("requested access to the resource is denied"), "{error}");
    assert_eq!(server.seen().len(), 1);
}
