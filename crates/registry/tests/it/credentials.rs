//! Several credentials for one registry, and credentials that change.
use crate::fake::*;
use clipper_registry::{Client, Credential, CredentialSource, ErrorKind, Found, Subject};
use futures::{FutureExt, future::BoxFuture};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

/// Credentials for one server, which may be changed; notes who asked.
#[derive(Clone, Debug, Default)]
struct Ring {
    host: String,
    credentials: Arc<Mutex<Vec<Credential>>>,
    asked: Arc<Mutex<Vec<Subject>>>,
}

impl Ring {
    fn new(host: &str, users: &[&str]) -> Self {
        let ring = Self { host: host.into(), ..Self::default() };
        ring.set(users);
        ring
    }

    fn set(&self, users: &[&str]) {
        let password = |user: &&str| Credential::Password { user: (*user).into(), password: "p".into() };
        *self.credentials.lock().unwrap() = users.iter().map(password).collect();
    }

    fn client(&self, options: clipper_registry::ClientOptions) -> Client {
        Client::with_credentials(options, Arc::new(self.clone())).unwrap()
    }
}

impl CredentialSource for Ring {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        self.asked.lock().unwrap().push(subject.clone());
        let credentials = self.credentials.lock().unwrap().clone();
        let credentials = if subject.host == self.host { credentials } else { Vec::new() };
        async move { Found { credentials, problem: None } }.boxed()
    }
}

/// The user of a Basic login, all of whose passwords are `p`.
fn user(seen: &Seen) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let login = seen.header("authorization").strip_prefix("Basic ").unwrap_or_default();
    let text = String::from_utf8(STANDARD.decode(login).unwrap()).unwrap();
    text.strip_suffix(":p").unwrap_or_default().to_owned()
}

/// A server of one blob that answers these users so, and all others 401.
async fn basic(allowed: &'static [(&'static str, u16)]) -> Fake {
    let data = sample(1000);
    Fake::start(move |seen| {
        let user = user(seen);
        match allowed.iter().find(|(name, _)| *name == user) {
            Some((_, 200)) => blob_reply(seen, &data),
            Some((_, status)) => Reply::new(*status),
            None => Reply::new(401).header("www-authenticate", "Basic realm=\"r\""),
        }
    })
    .await
}

fn users(server: &Fake) -> Vec<String> {
    server.seen().iter().map(user).collect()
}

#[tokio::test]
async fn one_credential_after_the_other_is_tried_and_the_one_that_does_is_kept_to() {
    let server = basic(&[("forbidden", 403), ("good", 200)]).await;
    let ring = Ring::new(&server.host(), &["wrong", "forbidden", "good", "spare"]);
    let target = blob(&server, &ring.client(options()), &sample(1000));
    for _ in 0..3 {
        assert_eq!(read(&target, 5..10).await.unwrap(), sample(1000).slice(5..10));
    }
    assert_eq!(users(&server), ["", "wrong", "forbidden", "good", "good", "good"]);
    assert_eq!(ring.asked.lock().unwrap()[0], Subject::new(&server.host(), "app"));
}

#[tokio::test]
async fn when_none_does_the_refusal_is_told() {
    let server = basic(&[("forbidden", 403)]).await;
    for (ring, status) in [(&["a", "b"][..], 401), (&["a", "forbidden"], 403), (&["forbidden"], 403), (&[], 401)] {
        let ring = Ring::new(&server.host(), ring);
        let error = read(&blob(&server, &ring.client(options()), &sample(1000)), 5..10).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Denied { status: s, .. } if *s == status), "{error}");
    }
}

#[tokio::test]
async fn a_password_that_was_changed_is_looked_up_anew() {
    let server = basic(&[("old", 200), ("new", 200)]).await;
    let ring = Ring::new(&server.host(), &["old"]);
    let client = ring.client(options());
    read(&blob(&server, &client, &sample(1000)), 5..10).await.unwrap();
    let strict = basic(&[("new", 200)]).await;
    let ring = Ring::new(&strict.host(), &["old"]);
    let target = blob(&strict, &ring.client(options()), &sample(1000));
    read(&target, 5..10).await.unwrap_err();
    ring.set(&["new"]);
    read(&target, 5..10).await.unwrap();
}

#[tokio::test]
async fn a_token_server_that_refuses_one_credential_is_given_the_next() {
    let data = sample(1000);
    let count = AtomicUsize::new(0);
    let issuer = Fake::start(move |seen| match user(seen).as_str() {
        "known" | "good" => {
            let token = format!("{}-{}", user(seen), count.fetch_add(1, SeqCst));
            Reply::new(200).bytes(format!(r#"{{"token": "{token}"}}"#))
        }
        _ => Reply::error(401, "UNAUTHORIZED", "who?"),
    })
    .await;
    let realm = format!("http://{}/token", issuer.host());
    let server = Fake::start(move |seen| match seen.header("authorization") {
        good if good.starts_with("Bearer good") => blob_reply(seen, &data),
        "" => Reply::new(401).header("www-authenticate", format!("Bearer realm=\"{realm}\"")),
        // Who is known may not read this.
        _ => Reply::error(403, "DENIED", "no"),
    })
    .await;
    let ring = Ring::new(&server.host(), &["unknown", "known", "good"]);
    let target = blob(&server, &ring.client(options()), &sample(1000));
    for _ in 0..2 {
        assert_eq!(read(&target, 5..10).await.unwrap(), sample(1000).slice(5..10));
    }
    assert_eq!(users(&issuer), ["unknown", "known", "good"]);
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let data = sample(1000);
    let server = Fake::start(move |seen| match seen.header("authorization") {
        "Bearer rt" => blob_reply(seen, &data),
        _ => Reply::new(401).header("www-authenticate", "Bearer realm=\"http://127.0.0.1:1/token\""),
    })
    .await;
    let ring = Ring { host: server.host(), ..Ring::default() };
    *ring.credentials.lock().unwrap() = vec![Credential::Token("rt".into())];
    read(&blob(&server, &ring.client(options()), &sample(1000)), 5..10).await.unwrap();
}

#[tokio::test]
async fn no_other_server_sees_a_credential_be_it_a_mirror_or_where_a_redirect_leads() {
    let data = sample(1000);
    let storage = Fake::start(move |seen| blob_reply(seen, &data)).await;
    let target = format!("http://{}/x", storage.host());
    let server = Fake::start(move |seen| match user(seen).as_str() {
        "me" => Reply::new(307).header("location", &target),
        _ => Reply::new(401).header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    // A mirror that would like to have them.
    let mirror = Fake::start(|_| Reply::new(401).header("www-authenticate", "Basic realm=\"r\"")).await;
    let ring = Ring::new(&server.host(), &["me"]);
    let dir = tempfile::tempdir().unwrap();
    write_hosts(dir.path(), &server.host(), &format!("[host.\"http://{}\"]", mirror.host()));
    let client = ring.client(clipper_registry::ClientOptions { hosts_dir: Some(dir.path().into()), ..options() });
    assert_eq!(read(&blob(&server, &client, &sample(1000)), 5..10).await.unwrap(), sample(1000).slice(5..10));
    assert!(!mirror.seen().is_empty() && !storage.seen().is_empty());
    for seen in mirror.seen().iter().chain(&storage.seen()) {
        assert_eq!(seen.header("authorization"), "");
    }
    let asked = ring.asked.lock().unwrap().clone();
    assert!(
        asked.contains(&Subject::new(&mirror.host(), "app")),
        "mirrors are asked about by their own names: {asked:?}"
    );
}

#[tokio::test]
async fn many_readers_share_the_failure_of_a_silent_token_server() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let server =
        Fake::start(move |_| Reply::new(401).header("www-authenticate", format!("Bearer realm=\"{realm}\""))).await;
    let options = clipper_registry::ClientOptions {
        stall_timeout: std::time::Duration::from_millis(300),
        attempts: 1,
        ..options()
    };
    let client = Client::new(options).unwrap();
    let target = blob(&server, &client, &sample(1000));
    let reads: Vec<_> = (0..50)
        .map(|_| {
            let target = target.clone();
            tokio::spawn(async move { read(&target, 5..10).await })
        })
        .collect();
    for one in reads {
        assert!(matches!(one.await.unwrap().unwrap_err().kind(), ErrorKind::Stalled { .. }));
    }
    // One after the other they would have asked it fifty times.
    let asked = client.stats().requests - server.seen().len() as u64;
    assert!(asked < 5, "{asked}");
}
