//! How it answers.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::channel::mpsc::unbounded;
use hyper::body::{Frame, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::Fault;
use super::query::Query;
use super::reply::{Body, Lines, error_event, response, send, status, whole};

/// What it has and how it is to behave.
#[derive(Debug)]
pub(crate) struct State {
    pub store: Mutex<Store>,
    pub token: Mutex<String>,
    /// To requests whose path and query contain something, so many times.
    pub faults: Mutex<Vec<(String, Fault, u32)>>,
    pub log: Mutex<Vec<String>>,
    pub down: AtomicBool,
    pub watches: AtomicUsize,
    /// Whether a version that is too old is answered with an HTTP status rather than within the watch.
    pub gone_by_status: AtomicBool,
    /// Moves when there is something to send.
    pub tick: watch::Sender<u64>,
    /// Moves when connections are to break.
    pub cut: watch::Sender<u64>,
}

/// The secrets and their history.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub version: u64,
    pub secrets: BTreeMap<(String, String), Value>,
    pub history: Vec<Event>,
    /// What was before this version isn't known any more.
    pub oldest: u64,
    /// How many bookmarks everybody who watches was sent.
    pub bookmarks: u64,
}

/// A change of a secret.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub version: u64,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// A panic elsewhere is told there.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Serves whoever comes.
pub(crate) async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        if state.down.load(Ordering::SeqCst) {
            continue;
        }
        let (tls, state) = (tls.clone(), state.clone());
        tokio::spawn(async move {
            match tls {
                None => converse(client, state).await,
                Some(tls) => {
                    if let Ok(client) = tls.accept(client).await {
                        converse(client, state).await;
                    }
                }
            }
        });
    }
}

async fn converse(client: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    let mut cut = state.cut.subscribe();
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(state.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service);
    tokio::select! {
        _ = connection => {}
        _ = cut.changed() => {}
    }
}

impl State {
    /// One with nothing in it, which lets this token in.
    pub fn new(token: &str) -> Self {
        Self {
            store: Mutex::default(),
            token: Mutex::new(token.into()),
            faults: Mutex::default(),
            log: Mutex::default(),
            down: AtomicBool::new(false),
            watches: AtomicUsize::new(0),
            gone_by_status: AtomicBool::new(false),
            tick: watch::Sender::new(0),
            cut: watch::Sender::new(0),
        }
    }

    /// Puts a secret in place, or deletes it.
    pub fn change(&self, namespace: &str, name: &str, mut after: Option<Value>) {
        let mut store = lock(&self.store);
        store.version += 1;
        let (version, key) = (store.version, (namespace.into(), name.into()));
        let before = store.secrets.remove(&key);
        if let Some(secret) = &mut after {
            secret["metadata"]["resourceVersion"] = version.to_string().into();
            store.secrets.insert(key, secret.clone());
        }
        store.history.push(Event { version, before, after });
        drop(store);
        self.tick.send_modify(|tick| *tick += 1);
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let line = request.uri().path_and_query().map(|path| path.to_string()).unwrap_or_default();
        lock(&self.log).push(line.clone());
        let login = format!("Bearer {}", lock(&self.token));
        if request.headers().get(AUTHORIZATION).is_none_or(|sent| *sent != *login) {
            return status(401, "Unauthorized", "Unauthorized");
        }
        let fault = self.fault_for(&line);
        match &fault {
            Some(Fault::Status(403)) => {
                let message = "secrets is forbidden: User \"system:serviceaccount:kube-system:clipper\" cannot list \
                               resource \"secrets\" in API group \"\" at the cluster scope";
                return status(403, "Forbidden", message);
            }
            Some(Fault::Status(code)) => return status(*code, "Failed", "told to fail"),
            Some(Fault::Body(body)) => return whole(200, body.clone()),
            Some(Fault::Silence) => std::future::pending().await,
            _ => {}
        }
        let Some(query) = Query::parse(&line) else { return status(404, "NotFound", "no such resource") };
        if query.pairs.get("watch").is_some_and(|watch| watch == "true") {
            self.watch(query, fault)
        } else {
            self.list(&query)
        }
    }

    /// A page; `continue` tells of which version the list is and behind which secret the page begins.
    fn list(&self, query: &Query) -> Response<Body> {
        let store = lock(&self.store);
        let (mut version, mut after) = (store.version, None);
        if let Some(token) = query.pairs.get("continue") {
            let token = STANDARD.decode(token).ok().and_then(|json| serde_json::from_slice::<Value>(&json).ok());
            let Some(token) = token else { return status(400, "BadRequest", "continue key is not valid") };
            version = token["v"].as_u64().unwrap_or_default();
            after = Some(token["after"].clone());
            if version < store.oldest {
                return status(410, "Expired", "The provided continue parameter is too old");
            }
        }
        let limit = query.pairs.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
        let key = |(namespace, name): &(String, String)| json!([namespace, name]);
        let behind = |of: &(String, String)| match &after {
            Some(after) => {
                [of.0.as_str(), &of.1] > [after[0].as_str().unwrap_or_default(), after[1].as_str().unwrap_or_default()]
            }
            None => true,
        };
        let mut rest = store.secrets.iter().filter(|(of, secret)| behind(of) && query.matches(secret));
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let (Some((last, _)), remaining @ 1..) = (page.last(), rest.count()) {
            let token = json!({"v": version, "after": key(last)});
            metadata["continue"] = STANDARD.encode(token.to_string()).into();
            metadata["remainingItemCount"] = remaining.into();
        }
        let items: Vec<&Value> = page.iter().map(|(_, secret)| *secret).collect();
        whole(200, json!({"kind": "SecretList", "apiVersion": "v1", "metadata": metadata, "items": items}).to_string())
    }

    fn watch(self: Arc<Self>, query: Query, fault: Option<Fault>) -> Response<Body> {
        let since =
            query.pairs.get("resourceVersion").and_then(|version| version.parse::<u64>().ok()).unwrap_or_default();
        let oldest = lock(&self.store).oldest;
        let message = format!("too old resource version: {since} ({oldest})");
        if since < oldest && self.gone_by_status.load(Ordering::SeqCst) {
            return status(410, "Expired", &message);
        }
        let (lines, body) = unbounded();
        match fault {
            Some(Fault::ErrorEvent(code)) => send(&lines, &error_event(code, "told to fail")),
            Some(Fault::End) => {}
            _ if since < oldest => send(&lines, &error_event(410, &message)),
            _ => drop(tokio::spawn(self.follow(query, since, lines, fault == Some(Fault::CutLine)))),
        }
        response(200, body)
    }

    /// Sends what changes until the time is up or nobody listens.
    async fn follow(self: Arc<Self>, query: Query, mut since: u64, lines: Lines, cut: bool) {
        let seconds = query.pairs.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(1800);
        let end = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::pin!(end);
        let mut tick = self.tick.subscribe();
        let mut bookmarks = lock(&self.store).bookmarks;
        self.watches.fetch_add(1, Ordering::SeqCst);
        'watch: loop {
            let (events, version, marked) = {
                let store = lock(&self.store);
                let events: Vec<Event> = store.history.iter().filter(|event| event.version > since).cloned().collect();
                (events, store.version, store.bookmarks)
            };
            for event in events {
                let Some(event) = query.event(&event) else { continue };
                if cut {
                    let half = event.to_string().into_bytes();
                    let half = Bytes::copy_from_slice(&half[..half.len() / 2]);
                    let _ = lines.unbounded_send(Ok(Frame::data(half)));
                    // What was sent has to be on its way when the connection breaks.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let _ = lines.unbounded_send(Err(io::Error::other("cut")));
                    break 'watch;
                }
                send(&lines, &event);
            }
            since = version;
            if marked > bookmarks && query.pairs.get("allowWatchBookmarks").is_some_and(|wanted| wanted == "true") {
                let metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
                let object = json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata});
                send(&lines, &json!({"type": "BOOKMARK", "object": object}));
            }
            bookmarks = marked;
            let gone = async {
                while !lines.is_closed() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                _ = tick.changed() => {}
                () = &mut end => break,
                () = gone => break,
            }
        }
        self.watches.fetch_sub(1, Ordering::SeqCst);
    }

    fn fault_for(&self, line: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let (_, fault, times) =
            faults.iter_mut().find(|(part, _, times)| *times > 0 && line.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }
}
