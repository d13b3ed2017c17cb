//! Against the reference registry with passwords, tokens and credential helpers.
use crate::fake::*;
use crate::real::at;
use crate::tokens::{LOGIN, TokenServer};
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Client, ClientOptions, ErrorKind, Selector, media};
use clipper_tests::{proxy::Proxy, registry::Registry};
use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

/// `me` with the password `secret`; the registry takes bcrypt only.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A registry that wants a password, and its password file.
fn with_passwords() -> (Registry, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("htpasswd");
    std::fs::write(&file, HTPASSWD).unwrap();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
    (Registry::start_configured(&auth).unwrap(), dir)
}

/// Pushes an image of a long layer, which is uploaded in chunks, and reads of it.
async fn push_and_pull(registry: &Registry, client: &Client) {
    let app = at(registry, client, "team/app");
    let data = sample(9 << 20);
    let mut upload = app.upload().await.unwrap();
    upload.write(data.clone()).await.unwrap();
    let (digest, size) = upload.finish().await.unwrap();
    assert_eq!((digest, size), (Digest::of(&data), data.len() as u64));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": media::OCI_CONFIG, "digest": digest.to_string(), "size": size}, "layers": [],
    });
    let manifest = Bytes::from(manifest.to_string());
    let tag = Selector::Tag("v".into());
    app.put_manifest(&tag, media::OCI_MANIFEST, manifest.clone()).await.unwrap();
    assert_eq!(app.manifest(&tag).await.unwrap().bytes, manifest);
    assert_eq!(read(&app.blob(digest, size), 5..1_000_000).await.unwrap(), data.slice(5..1_000_000));
    let other = at(registry, client, "other");
    assert!(other.mount_blob(&app, digest, size).await.unwrap(), "with a token for both");
    assert!(!other.copy_blob(&app.blob(digest, size), |_| {}).await.unwrap());
}

#[tokio::test]
async fn passwords_are_taken_and_wrong_ones_are_told() {
    let (registry, _dir) = with_passwords();
    let (right, _config) = client_with_login(&registry.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    push_and_pull(&registry, &right).await;
    let (wrong, _config) = client_with_login(&registry.host(), r#"{"username": "me", "password": "guess"}"#);
    for client in [wrong, client()] {
        let mut upload = at(&registry, &client, "team/app").upload().await.unwrap();
        let error = upload.write(sample(9 << 20)).await.unwrap_err();
        let ErrorKind::Denied { status: 401, hint, .. } = error.kind() else { panic!("{error}") };
        assert!(hint.contains(&format!("docker login {}", registry.host())), "{hint}");
    }
}

#[tokio::test]
async fn tokens_are_fetched_for_reads_pushes_and_mounts() {
    let issuer = TokenServer::start(300).await;
    let registry = Registry::start_configured(&issuer.configuration()).unwrap();
    let (client, _config) = client_with_login(&registry.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    push_and_pull(&registry, &client).await;
    let (stranger, _config) = client_with_login(&registry.host(), r#"{"username": "me", "password": "guess"}"#);
    let error = at(&registry, &stranger, "team/app").tags().await.unwrap_err().to_string();
    assert!(error.contains("who are you?") && error.contains(&issuer.server.host()), "{error}");
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_of_a_long_push_is_renewed() {
    let life = 3;
    let issuer = TokenServer::start(life).await;
    let registry = Registry::start_configured(&issuer.configuration()).unwrap();
    let proxy = Proxy::start(registry.address(), Duration::ZERO).unwrap();
    let (client, _config) = client_with_login(&proxy.host(), &format!(r#"{{"auth": "{LOGIN}"}}"#));
    let app = repository(&client, &format!("{}/app", proxy.host()));
    let data = sample(20 << 20);
    let mut upload = app.upload().await.unwrap();
    upload.write(data.slice(..9 << 20)).await.unwrap();
    // Until the registry surely takes the token no longer; the client believes in it for minutes.
    tokio::time::sleep(Duration::from_secs(life + 1)).await;
    upload.write(data.slice(9 << 20..)).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), (Digest::of(&data), data.len() as u64));
    let patches: Vec<_> = proxy.log().into_iter().filter(|a| a.method == "PATCH").map(|a| a.status).collect();
    assert!(patches.contains(&401) && patches.iter().filter(|s| **s == 202).count() == 3, "{patches:?}");
    assert!(issuer.pushes() >= 2);
}

/// Where the helper's test runs itself again, with a `PATH` that leads to a helper.
const HELPED_HOST: &str = "CLIPPER_TEST_HELPED_HOST";

#[tokio::test]
async fn credential_helpers_are_asked() {
    if let Ok(host) = std::env::var(HELPED_HOST) {
        // The user's own configuration, which the environment names.
        let client = Client::new(ClientOptions { docker_config: None, ..options() }).unwrap();
        let problem = repository(&client, &format!("{host}/app")).tags().await.unwrap_err();
        println!("the registry said: {problem}");
        return;
    }
    let (registry, _dir) = with_passwords();
    let host = registry.host();
    let answer = |user: &str, secret: &str| {
        format!(r#"test "$1 $host" = "get {host}" && echo '{{"Username":"{user}","Secret":"{secret}"}}'"#)
    };
    let by_host = format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#);
    let cases = [
        (&by_host, answer("me", "secret"), "NAME_UNKNOWN"),
        (&r#"{"credsStore": "test"}"#.to_owned(), answer("me", "secret"), "NAME_UNKNOWN"),
        (&by_host, answer("me", "wrong"), "docker login"),
        (&by_host, "echo 'credentials not found in native keychain'; exit 1".into(), "docker login"),
        (&by_host, "echo 'the keychain is locked' >&2; exit 1".into(), "the keychain is locked"),
        (&by_host, "echo gibberish".into(), "config.json"),
    ];
    for (config, script, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        write_helper(dir.path(), &script);
        let Output { stdout, .. } = helped(&host, dir.path());
        let said = String::from_utf8_lossy(&stdout);
        assert!(said.contains(wanted), "{config} {script}: {said}");
    }
}

/// Writes a helper that is told the host. Another process does it: one that this process is just forking off for another
/// test would keep the file open for writing, and then it can't be executed.
fn write_helper(dir: &Path, script: &str) {
    let line =
        r#"printf '#!/bin/sh\nread -r host\n%s\n' "$0" > docker-credential-test && chmod 755 docker-credential-test"#;
    assert!(Command::new("sh").args(["-c", line, script]).current_dir(dir).status().unwrap().success());
}

/// Runs the test above once more.
fn helped(host: &str, dir: &Path) -> Output {
    let path = std::env::var("PATH").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "real_auth::credential_helpers_are_asked", "--nocapture"])
        .env(HELPED_HOST, host)
        .env("DOCKER_CONFIG", dir)
        .env("PATH", format!("{}:{path}", dir.display()))
        .output()
        .unwrap()
}
