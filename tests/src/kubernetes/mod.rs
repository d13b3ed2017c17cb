//! A Kubernetes API server that has nothing but secrets: lists in pages, watches with bookmarks, forgets its history, asks
//! who is there, and fails as it is told.
mod query;
mod reply;
mod server;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::daemon::workspace;
use crate::scratch::Scratch;
use server::{State, accept, lock};

/// A running API server, with threads of its own.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    tls: bool,
    state: Arc<State>,
    scratch: Scratch,
    /// Always there, but taken when it's dropped.
    runtime: Option<Runtime>,
}

/// Ways to fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refuses with this HTTP status, and a `Status` as body.
    Status(u16),
    /// Begins the watch, and then sends an event of the type ERROR with this code.
    ErrorEvent(u16),
    /// Breaks the connection within the next line of the watch.
    CutLine,
    /// Ends the watch as soon as it has begun.
    End,
    /// Never answers.
    Silence,
    /// Answers with this body and status 200.
    Body(String),
}

impl ApiServer {
    /// Starts one that is spoken to in plain HTTP.
    pub fn start() -> Result<Self> {
        Self::launch(false)
    }

    /// Starts one that is spoken to in TLS.
    pub fn start_tls() -> Result<Self> {
        Self::launch(true)
    }

    fn launch(tls: bool) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = StdListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let state = Arc::new(State::new("the-token"));
        runtime.spawn(accept(listener, if tls { Some(acceptor()?) } else { None }, state.clone()));
        Ok(Self { address, tls, state, scratch: Scratch::new("kubernetes")?, runtime: Some(runtime) })
    }

    /// A kubeconfig for it; its token is in a file beside it.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let (path, token) = (self.scratch.join("kubeconfig"), self.scratch.join("token"));
        std::fs::write(&token, lock(&self.state.token).as_str())?;
        let (scheme, ca) = if self.tls { ("https", Some(certificate("ca.pem"))) } else { ("http", None) };
        let mut cluster = json!({"server": format!("{scheme}://{}", self.address)});
        if let Some(ca) = ca {
            cluster["certificate-authority"] = ca.display().to_string().into();
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// What a pod finds of its service account: the directory of token and authority, and two variables. Only with TLS.
    pub fn service_account(&self) -> Result<(PathBuf, [(&'static str, String); 2])> {
        let dir = self.scratch.subdir("serviceaccount")?;
        std::fs::write(dir.join("token"), lock(&self.state.token).as_str())?;
        std::fs::copy(certificate("ca.pem"), dir.join("ca.crt"))?;
        std::fs::write(dir.join("namespace"), "kube-system")?;
        let (host, port) = (self.address.ip().to_string(), self.address.port().to_string());
        Ok((dir, [("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port)]))
    }

    /// Lets only this token in from now on; a kubeconfig made before doesn't know it.
    pub fn set_token(&self, token: &str) {
        *lock(&self.state.token) = token.into();
    }

    /// Puts a secret of the type `kubernetes.io/dockerconfigjson` in place, with `data[".dockerconfigjson"]`.
    pub fn put(&self, namespace: &str, name: &str, labels: &[(&str, &str)], content: &str) {
        self.put_typed(namespace, name, labels, "kubernetes.io/dockerconfigjson", content);
    }

    /// As [`put`](Self::put), with another type.
    pub fn put_typed(&self, namespace: &str, name: &str, labels: &[(&str, &str)], kind: &str, content: &str) {
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let secret = json!({
            "kind": "Secret", "apiVersion": "v1", "type": kind,
            "metadata": {
                "name": name, "namespace": namespace, "labels": labels, "uid": "d3b0", "annotations": {"note": "x"},
                "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubectl"}],
            },
            "data": {".dockerconfigjson": STANDARD.encode(content)},
        });
        self.state.change(namespace, name, Some(secret));
    }

    /// Puts a secret in place that carries Clipper's label and has a login of one registry.
    pub fn put_login(&self, namespace: &str, name: &str, registry: &str, user: &str, password: &str) {
        let login =
            json!({"username": user, "password": password, "auth": STANDARD.encode(format!("{user}:{password}"))});
        let config = json!({"auths": {registry: login}});
        self.put(namespace, name, &[("images.clipper.io/accelerated", "true")], &config.to_string());
    }

    /// Deletes a secret.
    pub fn delete(&self, namespace: &str, name: &str) {
        self.state.change(namespace, name, None);
    }

    /// Forgets all history: who knows an older version has to list again.
    pub fn compact(&self) {
        let mut store = lock(&self.state.store);
        store.oldest = store.version;
        store.history.clear();
    }

    /// Tells everybody who watches and wants to know how far they have seen.
    pub fn bookmark(&self) {
        lock(&self.state.store).bookmarks += 1;
        self.state.tick.send_modify(|tick| *tick += 1);
    }

    /// How a version is refused that is too old: with the HTTP status 410, or with an event within the watch.
    pub fn gone_by_status(&self, by_status: bool) {
        self.state.gone_by_status.store(by_status, Ordering::SeqCst);
    }

    /// Fails the next `times` requests whose path and query contain `part`; `watch=true` for those that watch.
    pub fn fail(&self, part: &str, fault: Fault, times: u32) {
        lock(&self.state.faults).push((part.into(), fault, times));
    }

    /// Forgets what it was to fail.
    pub fn behave(&self) {
        lock(&self.state.faults).clear();
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.state.cut.send_modify(|count| *count += 1);
    }

    /// Breaks every connection and takes no new one until told otherwise.
    pub fn down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
        if down {
            self.cut();
        }
    }

    /// Path and query of every request since the last `take_log`.
    pub fn log(&self) -> Vec<String> {
        lock(&self.state.log).clone()
    }

    /// Path and query of every request since the last call of this.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.state.log))
    }

    /// How many watches are under way.
    pub fn watches(&self) -> usize {
        self.state.watches.load(Ordering::SeqCst)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// For 127.0.0.1; the registry room tests its own TLS with the same.
fn certificate(name: &str) -> PathBuf {
    workspace().join("crates/registry/tests/it/certs").join(name)
}

fn acceptor() -> Result<TlsAcceptor> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let chain = vec![CertificateDer::from_pem_file(certificate("server.pem"))?];
    let key = PrivateKeyDer::from_pem_file(certificate("server.key"))?;
    Ok(TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key)?)))
}
