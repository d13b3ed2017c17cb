//! One server of a registry host: sends requests with the right credentials and follows its redirects.
use crate::{
    auth::{Auth, Scope},
    doubts::Doubts,
    error::{ErrorKind, server_message},
    health::{Health, Kind},
    hosts::{Capability, Server, authority},
    net::{Body, Net, retry_after},
};
use clipper_format::digest::Digest;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, TRANSFER_ENCODING},
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Redirects followed for one request.
const HOPS_MAX: usize = 5;
/// How long a blob's redirect is used again. Signed addresses live for 5 minutes and more; one that has expired is
/// asked for anew.
const REDIRECT_LIFE: Duration = Duration::from_secs(240);
/// Redirects kept per server.
const REDIRECTS_MAX: usize = 4096;
/// Tokens and credentials that are tried for one request.
const LOGINS_MAX: u32 = 8;
/// Bytes of an error's body that are read.
const ERROR_BODY_MAX: u64 = 64 << 10;

/// One server: where its API is, and what is known of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// `host` or `host:port`, for messages.
    pub label: String,
    server: Server,
    auth: Auth,
    redirects: Mutex<HashMap<(String, Digest), (Url, Instant)>>,
    pub health: Health,
    pub doubts: Doubts,
}

/// A request to an endpoint.
#[derive(Clone)]
pub(crate) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Body,
    pub scope: Scope,
    /// The blob that is read, if its redirect may be kept and used again.
    pub blob: Option<Digest>,
}

/// An answer and the server that it came from in the end.
pub(crate) struct Answer {
    pub response: Response,
    pub host: String,
    kind: Kind,
}

impl Request {
    fn kind(&self) -> Kind {
        if self.blob.is_some() { Kind::Blob } else { Kind::Other }
    }
}

impl Endpoint {
    pub fn new(server: Server, net: &Net) -> Self {
        let label = authority(&server.base);
        let auth =
            Auth::new(label.clone(), server.base.scheme() == "https", server.tls.clone(), net.credentials.clone());
        let (redirects, health, doubts) = (Mutex::default(), Health::default(), Doubts::default());
        Self { label, server, auth, redirects, health, doubts }
    }

    pub fn can(&self, capability: Capability) -> bool {
        self.server.capabilities.contains(&capability)
    }

    /// The URL of a path below the API's base.
    pub fn url(&self, path: &str) -> Result<Url, ErrorKind> {
        // Paths are made of checked repository names, tags and digests, so they need no escapes.
        let mut url = self
            .server
            .base
            .join(path)
            .map_err(|e| ErrorKind::Request(format!("{path:?} can't be asked of {}: {e}", self.label)))?;
        if let Some(namespace) = &self.server.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Resolves a `Location` or `Link` of the API, which may be relative.
    pub fn resolve(&self, from: &Url, location: &str) -> Result<Url, ErrorKind> {
        let wrong = |_| self.wrong(format!("{:?} is no URL", crate::error::printable(location)));
        let mut url = from.join(location).map_err(wrong)?;
        // Registries behind a proxy that ends TLS often name themselves by http.
        if from.scheme() == "https" && url.scheme() == "http" && authority(from) == authority(&url) {
            let _ = url.set_scheme("https");
        }
        if matches!(url.scheme(), "http" | "https") {
            Ok(url)
        } else {
            Err(self.wrong(format!("it names a {} URL", url.scheme())))
        }
    }

    /// Whether `url` is this server itself, so that it may see the credentials.
    pub fn is_own(&self, url: &Url) -> bool {
        let base = &self.server.base;
        url.scheme() == base.scheme()
            && url.host_str() == base.host_str()
            && url.port_or_known_default() == base.port_or_known_default()
    }

    /// An error about what this server answered.
    pub fn wrong(&self, problem: impl Into<String>) -> ErrorKind {
        ErrorKind::Protocol { host: self.label.clone(), problem: problem.into() }
    }

    /// Sends a request; any status comes back as an answer.
    pub async fn send(&self, net: &Net, request: &Request) -> Result<Answer, ErrorKind> {
        if let Some(url) = self.kept_redirect(request) {
            let answer = self.bare(net, request, url).await;
            let status = answer.as_ref().map_or(0, |a| a.response.status().as_u16());
            if !matches!(status, 200 | 206 | 416) {
                // The signature may have expired, or the storage may have moved or be ill.
                self.drop_redirect(request);
            }
            // Refused, for which the registry may have a cure; whatever else it is counts as an attempt.
            if !matches!(status, 400..=415 | 417..=428) {
                return answer;
            }
        }
        if let Some(wait) = self.health.paused(request.kind(), Instant::now()) {
            let (host, message) = (self.label.clone(), "it asked to be left alone".into());
            return Err(ErrorKind::Limited { host, status: 429, message, retry_after: Some(wait) });
        }
        let since = Instant::now();
        let mut sent_with = self.auth.header(net, &request.scope).await?;
        for attempt in 1.. {
            let answer = self.signed(net, request, request.url.clone(), sent_with.as_ref()).await?;
            let status = answer.response.status();
            let again = attempt < LOGINS_MAX && !is_spent(&request.body);
            if status == StatusCode::UNAUTHORIZED && again {
                let headers = answer.response.headers().clone();
                // Read to its end, so that the connection can be used again.
                let body = net.read_body(&self.label, answer.response, ERROR_BODY_MAX).await.unwrap_or_default();
                let renewed = self.auth.renew(net, &request.scope, &headers, sent_with.as_ref(), since).await?;
                if let Some(header) = renewed {
                    sent_with = Some(header);
                    continue;
                }
                let (host, hint) = (self.label.clone(), self.auth.hint());
                return Err(ErrorKind::Denied { host, status: 401, message: server_message(&body), hint });
            }
            if status == StatusCode::FORBIDDEN
                && again
                && let Some(used) = &sent_with
                && let Some(header) = self.auth.another(net, &request.scope, used).await?
            {
                let _ = net.read_body(&self.label, answer.response, ERROR_BODY_MAX).await;
                sent_with = Some(header);
                continue;
            }
            if is_redirect(status) && (request.method == Method::GET || request.method == Method::HEAD) {
                return self.follow(net, request, answer, sent_with.as_ref()).await;
            }
            return Ok(answer);
        }
        Err(self.wrong("it refuses all credentials"))
    }

    /// Sends a request to another server that this one named, without credentials.
    pub async fn send_bare(&self, net: &Net, request: &Request) -> Result<Answer, ErrorKind> {
        self.bare(net, request, request.url.clone()).await
    }

    async fn follow(
        &self,
        net: &Net,
        request: &Request,
        mut answer: Answer,
        header: Option<&HeaderValue>,
    ) -> Result<Answer, ErrorKind> {
        let mut at = request.url.clone();
        for _ in 0..HOPS_MAX {
            let location = answer.response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| self.wrong("it redirects without saying where"))?;
            at = self.resolve(&at, location)?;
            let own = self.is_own(&at);
            let _ = net.read_body(&answer.host, answer.response, ERROR_BODY_MAX).await;
            answer = if own {
                self.signed(net, request, at.clone(), header).await?
            } else {
                self.bare(net, request, at.clone()).await?
            };
            if !is_redirect(answer.response.status()) {
                if !own && answer.response.status().is_success() {
                    self.keep_redirect(request, at);
                }
                return Ok(answer);
            }
        }
        Err(self.wrong(format!("it redirects more than {HOPS_MAX} times")))
    }

    /// One exchange with this server itself.
    async fn signed(
        &self,
        net: &Net,
        request: &Request,
        url: Url,
        header: Option<&HeaderValue>,
    ) -> Result<Answer, ErrorKind> {
        let mut headers = self.server.headers.clone();
        headers.extend(request.headers.clone());
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, header.clone());
        }
        self.exchange(net, request, url, headers).await
    }

    /// One exchange with another server that this one named: it sees no credentials.
    async fn bare(&self, net: &Net, request: &Request, url: Url) -> Result<Answer, ErrorKind> {
        self.exchange(net, request, url, request.headers.clone()).await
    }

    async fn exchange(&self, net: &Net, request: &Request, url: Url, headers: HeaderMap) -> Result<Answer, ErrorKind> {
        let host = authority(&url);
        let body = request.body.clone();
        let response = net.exchange(&self.server.tls, request.method.clone(), url, headers, body).await?;
        Ok(Answer { response, host, kind: request.kind() })
    }

    fn kept_redirect(&self, request: &Request) -> Option<Url> {
        let key = (request.scope.repository.clone(), request.blob?);
        let redirects = lock(&self.redirects);
        redirects.get(&key).filter(|(_, until)| Instant::now() < *until).map(|(url, _)| url.clone())
    }

    fn keep_redirect(&self, request: &Request, url: Url) {
        let Some(blob) = request.blob else { return };
        let mut redirects = lock(&self.redirects);
        let now = Instant::now();
        if redirects.len() >= REDIRECTS_MAX {
            redirects.retain(|_, (_, until)| now < *until);
        }
        if redirects.len() < REDIRECTS_MAX {
            redirects.insert((request.scope.repository.clone(), blob), (url, now + REDIRECT_LIFE));
        }
    }

    fn drop_redirect(&self, request: &Request) {
        if let Some(blob) = request.blob {
            lock(&self.redirects).remove(&(request.scope.repository.clone(), blob));
        }
    }

    /// It, or the storage server that it redirected to, sent wrong bytes of a blob.
    pub fn sent_wrong_bytes(&self, blob: Digest) {
        self.doubts.wrong(blob, Instant::now());
        lock(&self.redirects).retain(|(_, of), _| *of != blob);
    }

    /// Turns an answer that isn't the one hoped for into an error, with the server's own words.
    pub async fn refusal(&self, net: &Net, answer: Answer) -> ErrorKind {
        let Answer { response, host, kind } = answer;
        let status = response.status().as_u16();
        let wait = retry_after(response.headers());
        if let Some(wait) = wait.filter(|_| matches!(status, 429 | 503) && host == self.label) {
            self.health.pause(kind, Instant::now(), wait);
        }
        let no_body =
            response.headers().get(CONTENT_LENGTH).is_none() && response.headers().get(TRANSFER_ENCODING).is_none();
        let body = if no_body {
            Default::default()
        } else {
            net.read_body(&host, response, ERROR_BODY_MAX).await.unwrap_or_default()
        };
        let message = server_message(&body);
        // What Go's and nginx's servers say to plain HTTP on a TLS port.
        if status == 400 && (message.contains("HTTP request to an HTTPS server") || find(&body, b"sent to HTTPS port"))
        {
            return ErrorKind::TlsServer { host };
        }
        match status {
            404 | 410 => ErrorKind::NotFound { message },
            401 | 403 => {
                let hint =
                    if host == self.label { self.auth.hint() } else { format!("{} redirected there", self.label) };
                ErrorKind::Denied { host, status, message, hint }
            }
            429 => ErrorKind::Limited { host, status, message, retry_after: wait },
            503 if wait.is_some() => ErrorKind::Limited { host, status, message, retry_after: wait },
            _ => ErrorKind::Status { host, status, message },
        }
    }
}

fn is_spent(body: &Body) -> bool {
    matches!(body, Body::Stream(upload) if upload.is_spent())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn find(body: &[u8], needle: &[u8]) -> bool {
    body.windows(needle.len()).any(|w| w == needle)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
