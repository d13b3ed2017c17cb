//! The API server: lists of secrets page by page, and the changes after them line by line.
//!
//! kube-rs makes the client: kubeconfig or service account, TLS, tokens that are renewed. Its `watcher` isn't used, nor is
//! its `Api`: of an answer that they can't parse they log the whole text, which here is passwords; and a watcher that is
//! answered 410 asks for the same version for ever.
use super::{
    failure::Failure,
    pull_secret::PullSecret,
    secrets::{Held, Scope},
};

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Client, Config, Resource,
    api::{ListParams, Request, WatchParams},
    client::ConfigExt,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    pin::Pin,
    time::Duration,
};
use tower::{BoxError, ServiceBuilder};

/// Secrets that carry logins of registries.
const FIELDS: &str = "type=kubernetes.io/dockerconfigjson";
/// Secrets of a page. Each may have 1 MiB, and as text twice as much.
const PAGE: u32 = 25;
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// A line of a watch is one secret.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an answer may take to begin, and a list to arrive.
const ANSWER: Duration = Duration::from_secs(30);
/// How long the server is asked to watch; then it is asked anew.
const WATCH: Duration = Duration::from_secs(290);
/// How much longer it may be silent.
const GRACE: Duration = Duration::from_secs(10);
/// How long a connection may be silent before it is probed; after a few probes without an answer it is gone.
const PROBE: Duration = Duration::from_secs(15);

/// A connection to the API server, about one scope.
pub struct Server {
    client: Client,
    request: Request,
    label: String,
}

/// A page of a list.
pub struct Page {
    pub secrets: Held,
    /// The version of what was listed: changes after it are what to watch.
    pub version: String,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// The changes after a version, as they come.
pub struct Changes {
    lines: Pin<Box<dyn AsyncBufRead + Send>>,
    /// What has come of the next line.
    line: Vec<u8>,
}

/// One of them.
pub enum Change {
    /// A secret is new, or has changed.
    Set(String, PullSecret),
    /// A secret is gone, or isn't asked for any more.
    Gone(String),
    /// Nothing, up to here.
    Bookmark,
}

impl Server {
    /// Gets ready to ask, with what the kubeconfig, or the service account, says at this moment.
    pub async fn connect(kubeconfig: Option<&Path>, scope: &Scope) -> Result<Self, Failure> {
        let kubeconfig = kubeconfig.map(PathBuf::from);
        let namespace = scope.namespace.as_deref();
        let request = Request::new(Secret::url_path(&(), namespace));
        let config = match kubeconfig {
            None => Config::incluster().map_err(Failure::of_service_account)?,
            Some(path) => {
                let read = || Kubeconfig::read_from(&path);
                let kubeconfig = read().map_err(|error| Failure::of_kubeconfig(&path, error))?;
                let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
                config.map_err(|error| Failure::of_kubeconfig(&path, error))?
            }
        };
        // A kubeconfig may name a program that gives out tokens.
        let runtime = tokio::runtime::Handle::current();
        let made = tokio::task::spawn_blocking(move || {
            let _inside = runtime.enter();
            client(&config)
        });
        let client = match tokio::time::timeout(ANSWER, made).await {
            Ok(Ok(made)) => made.map_err(Failure::from)?,
            Ok(Err(_)) => return Err(Failure::Setup("setting up the client was cancelled".into())),
            Err(_) => return Err(Failure::Silent),
        };
        Ok(Self { client, request, label: scope.label.clone() })
    }

    /// A page of the list: the first one, or the one that begins at `next`.
    pub async fn list(&self, next: Option<String>) -> Result<Page, Failure> {
        let params = ListParams { continue_token: next, ..ListParams::default().limit(PAGE) };
        let request = self.request.list(&params.labels(&self.label).fields(FIELDS)).map_err(Failure::asking)?;
        let read = async {
            let body = std::pin::pin!(self.client.request_stream(request).await?);
            let mut bytes = Vec::new();
            let read = body.take(PAGE_BYTES_MAX).read_to_end(&mut bytes).await;
            read.map_err(|error| Failure::Unreachable(error.to_string()))?;
            Ok(bytes)
        };
        let bytes = tokio::time::timeout(ANSWER, read).await.unwrap_or(Err(Failure::Silent))?;
        let list: List = serde_json::from_slice(&bytes).map_err(|_| Failure::Garbled)?;
        if list.metadata.resource_version.is_empty() {
            return Err(Failure::Garbled);
        }
        Ok(Page {
            secrets: list.items.into_iter().map(|object| (object.name(), object.secret())).collect(),
            version: list.metadata.resource_version,
            next: list.metadata.next.filter(|next| !next.is_empty()),
        })
    }

    /// The changes after a version.
    pub async fn watch(&self, version: &str) -> Result<Changes, Failure> {
        let params = WatchParams::default().timeout(WATCH.as_secs() as u32).labels(&self.label).fields(FIELDS);
        let request = self.request.watch(&params, version).map_err(Failure::asking)?;
        let answer = tokio::time::timeout(ANSWER, self.client.request_stream(request)).await;
        let lines = answer.map_err(|_| Failure::Silent)??;
        Ok(Changes { lines: Box::pin(lines), line: Vec::new() })
    }
}

impl Changes {
    /// The next change and its version. `None` if the server has ended the watch or the connection is gone, be it within a
    /// line: then it is to be asked anew. Whoever stops waiting loses nothing.
    pub async fn next(&mut self) -> Result<Option<(Change, String)>, Failure> {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len() as u64);
        let mut lines = (&mut self.lines).take(room);
        let read = tokio::time::timeout(WATCH + GRACE, lines.read_until(b'\n', &mut self.line)).await;
        match read {
            Ok(Ok(_)) if self.line.last() == Some(&b'\n') => {}
            Ok(Ok(_)) if self.line.len() as u64 >= LINE_BYTES_MAX => return Err(Failure::Garbled),
            _ => return Ok(None),
        }
        let event: Event = serde_json::from_slice(&self.line).map_err(|_| Failure::Garbled)?;
        self.line.clear();
        let object = match event {
            Event::Error(status) => return Err(Failure::told(status.code, &status.message)),
            Event::Added(object) | Event::Modified(object) => (Change::Set(object.name(), object.secret()), object),
            Event::Deleted(object) => (Change::Gone(object.name()), object),
            Event::Bookmark(object) => (Change::Bookmark, object),
        };
        let (change, version) = (object.0, object.1.metadata.resource_version);
        if version.is_empty() { Err(Failure::Garbled) } else { Ok(Some((change, version))) }
    }
}

/// As kube's own, but for what that logs: every failure, as an error.
fn client(config: &Config) -> kube::Result<Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(PROBE));
    connector.set_keepalive_interval(Some(PROBE / 3));
    connector.set_keepalive_retries(Some(3));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(Http::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, &config.default_namespace))
}

/// What is read of a list (meta/v1, `ListMeta`).
#[derive(Deserialize)]
struct List {
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Object>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

/// A line of a watch (meta/v1, `WatchEvent`).
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
enum Event {
    Added(Object),
    Modified(Object),
    Deleted(Object),
    Bookmark(Object),
    Error(Status),
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

/// What is read of a secret (core/v1, `Secret`).
#[derive(Deserialize)]
struct Object {
    metadata: ObjectMeta,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct ObjectMeta {
    namespace: String,
    name: String,
    resource_version: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default, rename = ".dockerconfigjson")]
    config: Option<String>,
}

impl Object {
    fn name(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    fn secret(&self) -> PullSecret {
        PullSecret::read(self.data.as_ref().and_then(|data| data.config.as_deref()))
    }
}
