//! A registry in this process whose every answer is scripted, and which remembers what it was asked.
use bytes::Bytes;
use clipper_format::digest::Digest;
use clipper_registry::{Blob, Client, ClientOptions, Reference, RegistryError, Repository};
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::HeaderMap,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// `METHOD /path?query`.
    pub fn line(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        format!("{} {}{query}", self.method, self.path)
    }
}

/// A scripted answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<Step>,
}

/// A piece of an answer's body.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Bytes),
    /// The connection is cut.
    Cut,
    /// Nothing more comes, and the connection stays open.
    Stall,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// A body of a told length.
    pub fn bytes(self, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let mut reply = self.header("content-length", bytes.len());
        reply.body = vec![Step::Send(bytes)];
        reply
    }

    pub fn body(mut self, steps: impl Into<Vec<Step>>) -> Self {
        self.body = steps.into();
        self
    }

    /// An error as registries tell it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status).bytes(format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#))
    }

    fn into_response(self) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let frames = stream::iter(self.body).then(|step| async {
            match step {
                Step::Send(bytes) => Ok(Frame::data(bytes)),
                Step::Cut => {
                    // While this waits, what was sent before is flushed.
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    Err(io::Error::other("cut"))
                }
                Step::Stall => std::future::pending().await,
            }
        });
        response.body(StreamBody::new(frames).boxed_unsync()).unwrap()
    }
}

/// A running server; it ends when dropped.
pub struct Fake {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;
/// After how many bytes of its body a request's connection is cut, and its answer lost.
type Cut = dyn Fn(&Seen) -> Option<usize> + Send + Sync;

impl Fake {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(handler, |socket| async { Ok(socket) }).await
    }

    /// With connections that are cut in the middle of a request's body; the handler sees what came of it before.
    pub async fn start_cutting(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        cut: impl Fn(&Seen) -> Option<usize> + Send + Sync + 'static,
    ) -> Self {
        Self::start_all(handler, cut, |socket| async { Ok(socket) }).await
    }

    /// With something that is done to each connection first, as a TLS handshake.
    pub async fn start_with<S, F>(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        accept: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        Self::start_all(handler, |_| None, accept).await
    }

    async fn start_all<S, F>(
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
        cut: impl Fn(&Seen) -> Option<usize> + Send + Sync + 'static,
        accept: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (handler, cut, seen): (Arc<Handler>, Arc<Cut>, _) = (Arc::new(handler), Arc::new(cut), log.clone());
        let accepted: Arc<AtomicUsize> = Arc::default();
        let connections = accepted.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                accepted.fetch_add(1, SeqCst);
                let (handler, cut, seen, ready) = (handler.clone(), cut.clone(), seen.clone(), accept(socket));
                connections.spawn(async move {
                    let Ok(socket) = ready.await else { return };
                    let service =
                        service_fn(move |request| answer(request, handler.clone(), cut.clone(), seen.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        Self { address, log, connections, task }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// `METHOD /path?query` of all requests so far.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// The repository `app` of this server.
    pub fn app(&self, client: &Client) -> Repository {
        repository(client, &format!("{}/app", self.host()))
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: Arc<Handler>,
    cut: Arc<Cut>,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<UnsyncBoxBody<Bytes, io::Error>>, io::Error> {
    let (head, mut body) = request.into_parts();
    let mut seen = Seen {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body: Bytes::new(),
    };
    let limit = cut(&seen);
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(frame.map_err(io::Error::other)?.data_ref().unwrap_or(&Bytes::new()));
        if limit.is_some_and(|limit| bytes.len() >= limit) {
            break;
        }
    }
    bytes.truncate(limit.unwrap_or(usize::MAX));
    seen.body = bytes.into();
    log.lock().unwrap().push(seen.clone());
    let reply = handler(&seen);
    if limit.is_some() { Err(io::Error::other("cut")) } else { Ok(reply.into_response()) }
}

/// What a good registry answers to a GET or HEAD of a blob, with or without a range.
pub fn blob_reply(seen: &Seen, blob: &Bytes) -> Reply {
    if seen.method == "HEAD" {
        return Reply::new(200).header("content-length", blob.len());
    }
    match asked_range(seen) {
        None => Reply::new(200).bytes(blob.clone()),
        Some((first, last)) => Reply::new(206)
            .header("content-range", format!("bytes {first}-{last}/{}", blob.len()))
            .bytes(blob.slice(first..=last)),
    }
}

/// First and last byte of the `Range` header.
pub fn asked_range(seen: &Seen) -> Option<(usize, usize)> {
    let (first, last) = seen.header("range").strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().unwrap(), last.parse().unwrap()))
}

/// Bytes that differ at every place where a mistake may be made.
pub fn sample(length: usize) -> Bytes {
    (0..length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect::<Vec<_>>().into()
}

/// Options without anything of this machine's configuration, quick to give up.
pub fn options() -> ClientOptions {
    ClientOptions {
        hosts_dir: None,
        docker_config: Some("/nonexistent/config.json".into()),
        stall_timeout: Duration::from_secs(20),
        attempts: 3,
        backoff: Duration::from_millis(1),
        ..ClientOptions::default()
    }
}

pub fn client() -> Client {
    Client::new(options()).unwrap()
}

/// A client that soon loses its patience.
pub fn impatient() -> Client {
    Client::new(ClientOptions { stall_timeout: Duration::from_millis(300), ..options() }).unwrap()
}

/// A client with credentials for a host.
pub fn client_with_login(host: &str, entry: &str) -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, format!(r#"{{"auths": {{"{host}": {entry}}}}}"#)).unwrap();
    (Client::new(ClientOptions { docker_config: Some(config), ..options() }).unwrap(), dir)
}

/// A client with a hosts.toml for a host.
pub fn client_with_hosts(host: &str, toml: &str) -> (Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    write_hosts(dir.path(), host, toml);
    (Client::new(ClientOptions { hosts_dir: Some(dir.path().into()), ..options() }).unwrap(), dir)
}

pub fn write_hosts(dir: &Path, host: &str, toml: &str) {
    std::fs::create_dir_all(dir.join(host)).unwrap();
    std::fs::write(dir.join(host).join("hosts.toml"), toml).unwrap();
}

pub fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub fn repository(client: &Client, text: &str) -> Repository {
    client.repository(&reference(text)).unwrap()
}

/// The blob with these bytes in `app` of a server.
pub fn blob(server: &Fake, client: &Client, bytes: &Bytes) -> Blob {
    server.app(client).blob(Digest::of(bytes), bytes.len() as u64)
}

/// Everything of a range, or the error at the start or in the stream.
pub async fn read(blob: &Blob, range: std::ops::Range<u64>) -> Result<Bytes, RegistryError> {
    let chunks: Vec<Bytes> = blob.read(range).await?.try_collect().await?;
    Ok(chunks.concat().into())
}

/// Any 64 digits.
pub fn other_digest() -> Digest {
    Digest::of(b"something else")
}
