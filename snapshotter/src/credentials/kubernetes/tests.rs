//! The watch of secrets over an API server that speaks the real protocol, and fails.
use super::*;
use clipper_registry::Credential;
use clipper_tests::kubernetes::{ApiServer, Fault};
use std::time::Instant;

const LABEL: (&str, &str) = ("images.clipper.io/accelerated", "true");

/// A node's secrets, on a root of its own.
struct Node {
    root: tempfile::TempDir,
    config: KubernetesConfig,
    running: Option<Kubernetes>,
}

impl Node {
    fn start(api: &ApiServer) -> Self {
        Self::start_with(api, KubernetesConfig::default())
    }

    fn start_with(api: &ApiServer, config: KubernetesConfig) -> Self {
        let config = KubernetesConfig { kubeconfig: Some(api.kubeconfig().unwrap()), ..config };
        let mut node = Self { root: tempfile::tempdir().unwrap(), config, running: None };
        node.restart();
        node
    }

    fn restart(&mut self) {
        self.running = None;
        let key = Key::open(self.root.path(), None).unwrap();
        self.running = Some(Kubernetes::start(self.root.path(), &key, &self.config).unwrap());
    }

    fn kubernetes(&self) -> &Kubernetes {
        self.running.as_ref().unwrap()
    }

    /// The passwords for an image.
    fn passwords(&self, host: &str, repository: &str) -> Vec<String> {
        let password = |credential| match credential {
            Credential::Password { password, .. } => password,
            other => panic!("{other:?}"),
        };
        self.kubernetes().secrets.find(&Subject::new(host, repository)).into_iter().map(password).collect()
    }

    /// Waits until these are the passwords for an image.
    async fn comes_to(&self, host: &str, expected: &[&str]) {
        eventually(&format!("{host} {expected:?}"), || self.passwords(host, "app") == expected).await;
    }

    /// Waits until what is known is on the disk as well.
    async fn kept(&self, host: &str, expected: &[&str]) {
        let scopes = scopes(&self.config);
        let key = Key::open(self.root.path(), None).unwrap();
        let file = Sealed::new(file(self.root.path()), MAGIC, key);
        let kept = || {
            let kept = file.read(|content| Secrets::parse(content, &scopes)).unwrap().unwrap_or_default();
            kept.find(&Subject::new(host, "app")).len() == expected.len()
        };
        eventually("being kept", kept).await;
    }
}

async fn eventually(what: &str, mut true_: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !true_() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it didn't come to {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until everybody watches.
async fn watched(api: &ApiServer, watches: usize) {
    eventually("watches", || api.watches() == watches).await;
}

fn lists(log: &[String]) -> usize {
    log.iter().filter(|line| !line.contains("watch=true")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_with_a_label_are_listed_in_pages_and_followed() {
    let api = ApiServer::start().unwrap();
    for n in 0..120 {
        api.put_login("team", &format!("s{n:03}"), &format!("r{n}.example"), "me", &format!("p{n}"));
    }
    let login = r#"{"auths": {"other.example": {"username": "me", "password": "p"}}}"#;
    api.put("team", "unlabelled", &[], login);
    api.put("team", "labelled-no", &[(LABEL.0, "false")], login);
    api.put_typed("team", "opaque", &[LABEL], "Opaque", login);
    api.put("acr", "acr", &[("images.alibabacloud.com/accelerated", "true")], &login.replace("other", "acr"));
    let node = Node::start(&api);
    watched(&api, 2).await;
    for n in 0..120 {
        assert_eq!(node.passwords(&format!("r{n}.example"), "app"), [format!("p{n}")]);
    }
    assert_eq!(node.passwords("acr.example", "app"), ["p"]);
    assert_eq!(node.passwords("other.example", "app"), [""; 0]);
    let log = api.take_log();
    assert_eq!(lists(&log), 6, "five pages, and one of the other label: {log:?}");
    assert!(log.iter().any(|line| line.contains("limit=25") && line.contains("continue=")), "{log:?}");
    assert!(log.iter().all(|line| line.contains("fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("allowWatchBookmarks=true")), "{log:?}");
    // New, changed, without its label, deleted.
    api.put_login("other", "new", "new.example", "me", "p1");
    node.comes_to("new.example", &["p1"]).await;
    api.put_login("other", "new", "new.example", "me", "p2");
    node.comes_to("new.example", &["p2"]).await;
    api.put("other", "new", &[], login);
    node.comes_to("new.example", &[]).await;
    api.delete("team", "s007");
    node.comes_to("r7.example", &[]).await;
    api.put("team", "unlabelled", &[LABEL], login);
    node.comes_to("other.example", &["p"]).await;
    assert_eq!(api.take_log(), [""; 0], "nothing was asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_namespaces_and_labels_that_were_asked_for_are_watched() {
    let api = ApiServer::start().unwrap();
    let login = r#"{"auths": {"r.example": {"username": "me", "password": "PASSWORD"}}}"#;
    for namespace in ["a", "b", "c"] {
        api.put(namespace, "x", &[("pull", "whatever")], &login.replace("PASSWORD", namespace));
        api.put(namespace, "y", &[LABEL], login);
    }
    let config = KubernetesConfig {
        labels: vec!["pull".into()],
        namespaces: vec!["a".into(), "c".into()],
        ..KubernetesConfig::default()
    };
    let node = Node::start_with(&api, config);
    node.comes_to("r.example", &["a", "c"]).await;
    let log = api.take_log();
    assert!(log.iter().all(|line| line.starts_with("/api/v1/namespaces/")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_was_also_after_a_bookmark() {
    let api = ApiServer::start().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p1");
    let node = Node::start(&api);
    watched(&api, 2).await;
    // Much happens that isn't asked for; only the bookmark tells of it, and then nobody knows the old version any more.
    for n in 0..5 {
        api.put("team", &format!("noise{n}"), &[], "{}");
    }
    api.put_login("team", "marker", "marker.example", "me", "p");
    node.comes_to("marker.example", &["p"]).await;
    api.bookmark();
    // Nothing shows when it has arrived.
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.compact();
    api.take_log();
    for by in ["cut", "end"] {
        api.fail("watch=true", Fault::End, if by == "end" { 2 } else { 0 });
        api.cut();
        api.put_login("team", "pull", "r.example", "me", by);
        node.comes_to("r.example", &[by]).await;
        watched(&api, 2).await;
    }
    let log = api.take_log();
    assert_eq!(lists(&log), 0, "all was listed again: {log:?}");
    // Within a line.
    api.fail("watch=true", Fault::CutLine, 2);
    api.cut();
    eventually("new watches", || api.log().len() >= 2).await;
    api.put_login("team", "pull", "r.example", "me", "p4");
    node.comes_to("r.example", &["p4"]).await;
    assert_eq!(lists(&api.take_log()), 0);
    assert_eq!(node.kubernetes().health.problem(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_for_too_long_lists_again_however_that_is_told() {
    for by_status in [false, true] {
        let api = ApiServer::start().unwrap();
        api.gone_by_status(by_status);
        api.put_login("team", "gone", "gone.example", "me", "p");
        api.put_login("team", "pull", "r.example", "me", "p1");
        let node = Node::start(&api);
        watched(&api, 2).await;
        api.down(true);
        api.delete("team", "gone");
        api.put_login("team", "pull", "r.example", "me", "p2");
        api.compact();
        api.down(false);
        node.comes_to("r.example", &["p2"]).await;
        node.comes_to("gone.example", &[]).await;
        // And once more, as an event in a watch that was going well.
        api.fail("watch=true", Fault::ErrorEvent(410), 2);
        api.cut();
        api.put_login("team", "pull", "r.example", "me", "p3");
        node.comes_to("r.example", &["p3"]).await;
        watched(&api, 2).await;
        eventually("health", || node.kubernetes().health.problem().is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_version_expires_between_pages_is_begun_again() {
    let api = ApiServer::start().unwrap();
    for n in 0..60 {
        api.put_login("team", &format!("s{n:03}"), "r.example", "me", &format!("p{n}"));
    }
    api.fail("continue=", Fault::Status(410), 1);
    let node = Node::start(&api);
    watched(&api, 2).await;
    assert_eq!(node.passwords("r.example", "app").len(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_nonsense_are_told_and_tried_again_while_what_is_known_stays() {
    let api = ApiServer::start().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p1");
    let node = Node::start(&api);
    watched(&api, 2).await;
    let problem = || node.kubernetes().health.problem();
    let nonsense = r#"{"kind": "SecretList", "items": [{"hush-hush": 1}"#;
    for (fault, words) in [
        (Fault::Status(401), "401"),
        (Fault::Status(403), "cannot list resource"),
        (Fault::Status(429), "429"),
        (Fault::Status(500), "500"),
        (Fault::ErrorEvent(500), "500"),
        (Fault::Body(format!("{nonsense}\n")), "makes no sense"),
    ] {
        api.fail("watch=true", fault.clone(), 100);
        api.cut();
        eventually(words, || problem().is_some_and(|problem| problem.contains(words))).await;
        assert!(!problem().unwrap().contains("hush"), "{:?}", problem());
        assert_eq!(node.passwords("r.example", "app"), ["p1"], "{fault:?}");
        api.behave();
        watched(&api, 2).await;
        eventually("health", || problem().is_none()).await;
        // A change that arrives shows that all is well, and the next failure is tried again soon.
        api.put_login("team", "marker", "marker.example", "me", words);
        node.comes_to("marker.example", &[words]).await;
    }
    for fault in [Fault::Status(403), Fault::Body(nonsense.into())] {
        let api = ApiServer::start().unwrap();
        api.put_login("team", "pull", "r.example", "me", "p1");
        api.fail("/secrets", fault, 6);
        let node = Node::start(&api);
        // Whoever asks first waits for the first answer, and not for a second one.
        let found = node.kubernetes().find(&Subject::new("r.example", "app")).await;
        assert_eq!(found.credentials, []);
        assert!(found.problem.unwrap().contains("Kubernetes secrets can't be read"));
        node.comes_to("r.example", &["p1"]).await;
        let found = node.kubernetes().find(&Subject::new("r.example", "app")).await;
        assert_eq!((found.credentials.len(), found.problem), (1, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_outlives_a_restart_without_the_api_server_and_what_is_gone_stays_gone() {
    let api = ApiServer::start().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p1");
    api.put_login("team", "gone", "gone.example", "me", "p");
    let mut node = Node::start(&api);
    node.comes_to("gone.example", &["p"]).await;
    api.delete("team", "gone");
    node.comes_to("gone.example", &[]).await;
    node.kept("gone.example", &[]).await;
    node.kept("r.example", &["p1"]).await;
    api.down(true);
    node.restart();
    let found = node.kubernetes().find(&Subject::new("r.example", "app")).await;
    assert_eq!(found.credentials, [Credential::Password { user: "me".into(), password: "p1".into() }]);
    assert_eq!(node.passwords("gone.example", "app"), [""; 0]);
    // What went meanwhile goes when the server is back.
    api.delete("team", "pull");
    api.down(false);
    node.comes_to("r.example", &[]).await;
    node.kept("r.example", &[]).await;
    // Labels that aren't asked for any more are forgotten at once, and everything with the section in the configuration.
    api.put_login("team", "pull", "r.example", "me", "p2");
    node.comes_to("r.example", &["p2"]).await;
    node.kept("r.example", &["p2"]).await;
    api.down(true);
    node.config.labels = vec!["another".into()];
    node.restart();
    assert_eq!(node.passwords("r.example", "app"), [""; 0]);
    drop(node.running.take());
    Kubernetes::forget(node.root.path()).unwrap();
    assert!(!file(node.root.path()).exists());
    Kubernetes::forget(node.root.path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_tokens_that_change() {
    let api = ApiServer::start_tls().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p1");
    let node = Node::start(&api);
    node.comes_to("r.example", &["p1"]).await;
    watched(&api, 2).await;
    // The token is another one, and so is soon what is in its file.
    api.set_token("another");
    api.cut();
    let problem = || node.kubernetes().health.problem();
    eventually("a refusal", || problem().is_some_and(|problem| problem.contains("401"))).await;
    api.kubeconfig().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p2");
    node.comes_to("r.example", &["p2"]).await;
    // A server that nobody vouches for is told nothing.
    let stranger = ApiServer::start_tls().unwrap();
    let kubeconfig = stranger.kubeconfig().unwrap();
    let text = std::fs::read_to_string(&kubeconfig).unwrap().replace("certificate-authority", "comment");
    std::fs::write(&kubeconfig, text).unwrap();
    let config = KubernetesConfig { kubeconfig: Some(kubeconfig), ..KubernetesConfig::default() };
    let root = tempfile::tempdir().unwrap();
    let kubernetes = Kubernetes::start(root.path(), &Key::open(root.path(), None).unwrap(), &config).unwrap();
    eventually("a refusal", || kubernetes.health.problem().is_some_and(|problem| problem.contains("certificate")))
        .await;
    assert_eq!(stranger.take_log(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_may_come_later() {
    let api = ApiServer::start().unwrap();
    api.put_login("team", "pull", "r.example", "me", "p1");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let config = KubernetesConfig { kubeconfig: Some(path.clone()), ..KubernetesConfig::default() };
    let key = Key::open(dir.path(), None).unwrap();
    let kubernetes = Kubernetes::start(dir.path(), &key, &config).unwrap();
    let found = kubernetes.find(&Subject::new("r.example", "app")).await;
    assert!(found.problem.unwrap().contains(&path.display().to_string()));
    let kubeconfig = api.kubeconfig().unwrap();
    std::fs::copy(kubeconfig.with_file_name("token"), dir.path().join("token")).unwrap();
    std::fs::copy(kubeconfig, path).unwrap();
    eventually("the secret", || !kubernetes.secrets.find(&Subject::new("r.example", "app")).is_empty()).await;
}
