//! An HTTP proxy in front of a registry: adds latency, counts requests and bytes, and misbehaves by rule.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_RANGE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::passing::{Shaped, Upload};

/// A running proxy, with threads of its own.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    /// Always there, but taken when it's dropped.
    runtime: Option<Runtime>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Waiting for its end, as a mere drop does, is forbidden in asynchronous tests.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One request that went through, or was answered by a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The answer's status.
    pub status: u16,
    /// Body bytes that were passed to the client so far.
    pub bytes: u64,
    /// When it came.
    pub begun: Instant,
    /// When the last of these bytes, or the answer's header, went to the client; until then when it came.
    pub last: Instant,
}

/// What to do to requests whose `METHOD PATH` contains something.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Part of it: a blob's digest, `/manifests/`, `PATCH `, …
    pub path: String,
    /// What happens to them.
    pub fault: Fault,
    /// How many requests it happens to; `None` for all.
    pub times: Option<u32>,
}

/// Ways to misbehave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with a status, and `Retry-After: 0` if it says to come again (429, 503).
    Status(u16),
    /// Breaks the connection after so many body bytes.
    Cut(u64),
    /// Falls silent after so many body bytes, and keeps the connection.
    Stall(u64),
    /// Breaks the connection after so many bytes of the request's body have gone on to the registry.
    CutRequest(u64),
    /// Breaks the connection when the registry has answered: it has done what it was asked.
    LoseAnswer,
    /// Inverts one byte of the blob, whichever request brings it.
    Flip(u64),
    /// Answers a range request with the whole blob and status 200.
    IgnoreRange,
}

#[derive(Debug)]
pub(crate) struct State {
    upstream: SocketAddr,
    delay: Duration,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Access>>,
    down: AtomicBool,
    /// The `Authorization` that every request has to have.
    login: Mutex<Option<String>>,
    /// Ends every connection when its value changes.
    cut: watch::Sender<u32>,
}

impl Proxy {
    /// Starts one on a loopback port. `delay` is added to every request and again to every answer, and twice to the
    /// first request of a connection, whose handshake would have crossed the same distance.
    pub fn start(upstream: SocketAddr, delay: Duration) -> Result<Self> {
        Self::start_on("127.0.0.1:0".parse()?, upstream, delay)
    }

    /// Starts one on this address.
    pub fn start_on(listen: SocketAddr, upstream: SocketAddr, delay: Duration) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = StdListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (rules, log, down) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let (login, cut) = (Mutex::default(), watch::Sender::new(0));
        let state = Arc::new(State { upstream, delay, rules, log, down, login, cut });
        runtime.spawn(accept(listener, state.clone()));
        Ok(Self { address, state, runtime: Some(runtime) })
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The same image by way of the proxy: the reference with another host.
    pub fn by_way(&self, reference: &str) -> String {
        let path = reference.split_once('/').map_or(reference, |(_, path)| path);
        format!("{}/{path}", self.host())
    }

    /// Adds a rule.
    pub fn rule(&self, path: &str, fault: Fault, times: Option<u32>) {
        lock(&self.state.rules).push(Rule { path: path.into(), fault, times });
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        lock(&self.state.rules).clear();
    }

    /// How many rules still wait for one of their requests.
    pub fn pending(&self) -> usize {
        lock(&self.state.rules).iter().filter(|rule| rule.times != Some(0)).count()
    }

    /// Breaks every connection and takes no new one until told otherwise.
    pub fn down(&self, down: bool) {
        self.state.down.store(down, Ordering::SeqCst);
        if down {
            self.state.cut.send_modify(|count| *count += 1);
        }
    }

    /// Refuses requests without this name and password from now on.
    pub fn require_login(&self, user: &str, password: &str) {
        *lock(&self.state.login) = Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
    }

    /// All requests since the last `take_log`.
    pub fn log(&self) -> Vec<Access> {
        lock(&self.state.log).clone()
    }

    /// All requests since the last call of this.
    pub fn take_log(&self) -> Vec<Access> {
        std::mem::take(&mut *lock(&self.state.log))
    }

    /// Body bytes that clients received of paths that contain something.
    pub fn bytes_of(&self, path: &str) -> u64 {
        self.log().iter().filter(|access| access.path.contains(path)).map(|access| access.bytes).sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        if state.down.load(Ordering::SeqCst) {
            continue;
        }
        let _ = client.set_nodelay(true);
        tokio::spawn(converse(client, state.clone()));
    }
}

type Upstream = AsyncMutex<Option<SendRequest<Upload>>>;

async fn converse(client: TcpStream, state: Arc<State>) {
    let mut cut = state.cut.subscribe();
    // One connection there for one connection here, so that what a client does with its connections stays visible.
    let upstream = Arc::new(Upstream::default());
    let service = service_fn(move |request| {
        let (state, upstream) = (state.clone(), upstream.clone());
        async move { answer(request, state, &upstream).await }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service);
    tokio::select! {
        _ = connection => {}
        _ = cut.changed() => {}
    }
}

/// The answer to pass on; an error breaks the connection.
async fn answer(
    mut request: Request<Incoming>,
    state: Arc<State>,
    upstream: &Upstream,
) -> io::Result<Response<Shaped>> {
    let path = request.uri().path_and_query().map(|path| path.to_string()).unwrap_or_default();
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok()).map(String::from);
    let fault = state.fault_for(&format!("{} {path}", request.method()));
    let entry = {
        let (mut log, now) = (lock(&state.log), Instant::now());
        let method = request.method().to_string();
        log.push(Access { method, path, range, status: 0, bytes: 0, begun: now, last: now });
        log.len() - 1
    };
    if fault == Some(Fault::IgnoreRange) {
        request.headers_mut().remove(RANGE);
    }
    let mut connection = upstream.lock().await;
    tokio::time::sleep(if connection.is_none() { state.delay * 3 } else { state.delay }).await;
    let login = lock(&state.login).clone();
    let refused = login.is_some_and(|login| request.headers().get(AUTHORIZATION).is_none_or(|sent| *sent != *login));
    let answer = match fault {
        _ if refused => Err(StatusCode::UNAUTHORIZED),
        Some(Fault::Status(status)) => Err(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)),
        _ => {
            let limit = if let Some(Fault::CutRequest(limit)) = fault { Some(limit) } else { None };
            let request = request.map(|body| Upload { body, limit });
            forward(request, &state, &mut connection).await.map_err(|_| StatusCode::BAD_GATEWAY)
        }
    };
    drop(connection);
    tokio::time::sleep(state.delay).await;
    if matches!(fault, Some(Fault::CutRequest(_) | Fault::LoseAnswer)) {
        return Err(io::Error::other("cut by rule"));
    }
    let response = match answer {
        Ok(response) => {
            let at = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(first_byte);
            let state = state.clone();
            response.map(|body| Shaped { body: Some(body), fault, at: at.unwrap_or(0), passed: 0, entry, state })
        }
        Err(status) => {
            let body = Shaped { body: None, fault: None, at: 0, passed: 0, entry, state: state.clone() };
            let mut response = Response::new(body);
            *response.status_mut() = status;
            response.headers_mut().insert(RETRY_AFTER, 0.into());
            if refused {
                let challenge = HeaderValue::from_static("Basic realm=\"proxy\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            }
            response
        }
    };
    state.note(entry, |access| access.status = response.status().as_u16());
    Ok(response)
}

async fn forward(
    request: Request<Upload>,
    state: &State,
    connection: &mut Option<SendRequest<Upload>>,
) -> Result<Response<Incoming>> {
    if connection.as_ref().is_none_or(|sender| sender.is_closed()) {
        let stream = TcpStream::connect(state.upstream).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        *connection = Some(sender);
    }
    let sender = connection.as_mut().ok_or_else(|| anyhow::anyhow!("no connection"))?;
    sender.ready().await?;
    Ok(sender.send_request(request).await?)
}

/// `bytes 5-9/20` starts at 5.
fn first_byte(content_range: &str) -> Option<u64> {
    content_range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

impl State {
    /// Adds what has become known of a request to the log.
    pub fn note(&self, entry: usize, what: impl FnOnce(&mut Access)) {
        if let Some(access) = lock(&self.log).get_mut(entry) {
            what(access);
            access.last = Instant::now();
        }
    }

    fn fault_for(&self, line: &str) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let rule = rules.iter_mut().find(|rule| line.contains(&rule.path) && rule.times != Some(0))?;
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        Some(rule.fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::run;
    use crate::registry::Registry;
    use std::process::Command;

    fn curl(args: &[&str]) -> Result<String> {
        run(Command::new("curl").args(["-sS", "-f", "-m", "2"]).args(args))
    }

    #[test]
    fn counts_and_misbehaves() {
        let registry = Registry::start().unwrap();
        registry.push_cached("busybox").unwrap();
        let (manifest, _) = registry.manifest(&format!("{}/busybox:latest", registry.host())).unwrap();
        let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
        let proxy = Proxy::start(registry.address(), Duration::from_millis(1)).unwrap();
        let url = format!("http://{}/v2/busybox/blobs/{layer}", proxy.host());
        let digest = |args: &[&str]| {
            let mut line = vec!["-o", "/dev/stdout"];
            line.extend(args);
            run(Command::new("sh").arg("-c").arg(r#"curl -sS -f -m 2 "$@" | sha256sum"#).arg("sh").args(args))
        };
        let right = format!("{}  -\n", &layer[7..]);

        assert_eq!(digest(&[&url]).unwrap(), right);
        let log = proxy.take_log();
        assert_eq!((log.len(), log[0].status, log[0].bytes), (1, 200, manifest["layers"][0]["size"].as_u64().unwrap()));

        proxy.rule(&layer, Fault::Flip(5000), Some(2));
        assert_ne!(digest(&[&url]).unwrap(), right);
        let part =
            |range: &str| run(Command::new("sh").arg("-c").arg(format!("curl -sS -r {range} {url} | od -An -tx1")));
        let flipped = part("4999-5001").unwrap();
        let plain = part("4999-5001").unwrap();
        let bytes = |text: &str| -> Vec<u8> {
            text.split_whitespace().map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect()
        };
        let (flipped, plain) = (bytes(&flipped), bytes(&plain));
        assert_eq!(flipped, [plain[0], plain[1] ^ 0xff, plain[2]]);

        proxy.rule(&layer, Fault::Status(503), Some(1));
        assert!(curl(&[&url, "-o", "/dev/null"]).unwrap_err().to_string().contains("503"));
        proxy.rule(&layer, Fault::Cut(1000), Some(1));
        assert!(curl(&[&url, "-o", "/dev/null"]).is_err());
        proxy.rule(&layer, Fault::Stall(1000), Some(1));
        let stalled = curl(&[&url, "-o", "/dev/null"]).unwrap_err().to_string();
        assert!(stalled.contains("timed out"), "{stalled}");
        proxy.rule(&layer, Fault::IgnoreRange, Some(1));
        assert_eq!(digest(&["-r", "5-9", &url]).unwrap(), right);
        let upload = format!("http://{}/v2/busybox/blobs/uploads/", proxy.host());
        proxy.rule("POST /v2/busybox", Fault::CutRequest(0), Some(1));
        proxy.rule("POST /v2/busybox", Fault::LoseAnswer, Some(1));
        assert!(curl(&["-d", "0123456789", &upload]).is_err());
        assert!(curl(&["-d", "0123456789", &upload]).is_err());
        curl(&["-d", "", &upload]).unwrap();
        proxy.down(true);
        assert!(curl(&[&url, "-o", "/dev/null"]).is_err());
        proxy.down(false);
        assert_eq!(digest(&[&url]).unwrap(), right);
    }
}
