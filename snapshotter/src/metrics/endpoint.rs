//! The HTTP endpoint: `/metrics`, `/healthz` and `/readyz`.
use super::{Address, Readiness, families};
use crate::side_socket::SideSocket;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::AbortOnDropHandle;

/// Most connections at a time: a scraper or two, and probes.
const CONNECTIONS: usize = 32;
/// Longest wait for a request on a connection, and for its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before an address that can't be listened at is tried again: the daemon before may have it still.
const AGAIN: Duration = Duration::from_secs(1);
/// Pause after a connection could not be taken, as when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);

/// The endpoint, until dropped.
pub struct Endpoint {
    _task: AbortOnDropHandle<()>,
}

/// What is listened at.
enum Listener {
    Tcp(TcpListener),
    Unix(SideSocket),
}

impl Endpoint {
    /// Serves at `address`. If it can't be listened at, that is logged and tried again: containers don't wait for it.
    pub async fn start(address: &Address, readiness: Readiness) -> Self {
        let (address, mut bound) = (address.clone(), Listener::bind(address).await);
        let serving = async move {
            let mut told = false;
            let listener = loop {
                match bound {
                    Ok(listener) => break listener,
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        let error = format!("{error:#}");
                        tracing::error!(%address, error, "metrics can't be served: trying again until they can");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(AGAIN).await;
                bound = Listener::bind(&address).await;
            };
            let serving = match listener {
                Listener::Tcp(listener) => {
                    let at = listener.local_addr().map_or_else(|_| address.to_string(), |at| at.to_string());
                    tracing::info!(address = at, "metrics are served");
                    serve(readiness, async move || Ok(listener.accept().await?.0)).boxed()
                }
                Listener::Unix(socket) => {
                    tracing::info!(%address, "metrics are served");
                    serve(readiness, async move || socket.accept().await).boxed()
                }
            };
            serving.await;
        };
        Self { _task: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }
}

impl Listener {
    async fn bind(address: &Address) -> Result<Self> {
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                listener.map(Self::Tcp).with_context(|| format!("listen at {address}"))
            }
            Address::Unix(path) => SideSocket::bind(path).map(Self::Unix),
        }
    }
}

/// Takes one connection after the other.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    readiness: Readiness,
    accept: impl AsyncFn() -> std::io::Result<S>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return };
        match accept().await {
            Ok(stream) => drop(tokio::spawn(converse(stream, readiness.clone(), place))),
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics could not be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse<S>(stream: S, readiness: Readiness, _place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let readiness = readiness.clone();
        async move { Ok::<_, Infallible>(answer(&request, &readiness).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    // Who hangs up or talks nonsense has lost.
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

async fn answer(request: &Request<Incoming>, readiness: &Readiness) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        // That this is answered at all says that the runtime does its work.
        "/healthz" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match readiness.node() {
            Ok(_) => text(StatusCode::OK, "ready\n"),
            Err(what) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")),
        },
        "/metrics" => match readiness.node() {
            Err(what) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")),
            Ok(node) => match families::encode(node.figures().await) {
                Ok(families) => {
                    let mut response = text(StatusCode::OK, families);
                    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(families::CONTENT_TYPE));
                    response
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("metrics can't be written: {error}\n")),
            },
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz, /readyz\n"),
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    #[tokio::test]
    async fn who_is_not_ready_lives_and_says_what_it_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sock");
        let readiness = Readiness::default();
        let _endpoint = Endpoint::start(&Address::Unix(path.clone()), readiness.clone()).await;
        readiness.wait_for("opening the store");
        let ask = async |what: &str| {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let request = format!("GET {what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        for what in ["/readyz", "/metrics"] {
            let answer = ask(what).await;
            assert!(
                answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready: opening the store\n"),
                "{answer}"
            );
        }
    }
}
