//! One HTTP exchange: timeouts on silence, upload progress, counters.
use crate::{
    credentials::CredentialSource,
    error::ErrorKind,
    hosts::authority,
    transport::{TlsSettings, Transports},
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream::BoxStream};
use reqwest::{
    Method, Response, Url,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, RETRY_AFTER},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

/// Upload bodies are handed over in pieces of this size, so that progress can be seen.
const PIECE: usize = 256 << 10;
/// A registry may take a while to hash and store a large blob after its last byte: this many stall timeouts.
const COMMIT_STALLS: u32 = 10;

/// What all exchanges of a client share.
#[derive(Debug)]
pub(crate) struct Net {
    pub transports: Transports,
    pub credentials: Arc<dyn CredentialSource>,
    /// Silence after which a server counts as stalled.
    pub stall: Duration,
    /// Rounds of attempts, the first included.
    pub attempts: u32,
    /// Wait before the second round; doubled for each further one.
    pub backoff: Duration,
}

/// A request's body.
#[derive(Clone, Default)]
pub(crate) enum Body {
    #[default]
    Empty,
    /// Can be sent again.
    Bytes(Bytes),
    /// Can be sent once.
    Stream(Arc<UploadStream>),
}

/// A caller's stream to upload.
pub(crate) struct UploadStream {
    pub size: u64,
    stream: Mutex<Option<BoxStream<'static, Result<Bytes, String>>>>,
    /// Why the caller's stream failed.
    failure: Arc<Mutex<Option<String>>>,
}

impl UploadStream {
    pub fn new<S, E>(size: u64, stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let stream = stream.map(|item| item.map_err(|e| e.to_string()));
        // Only the end is marked by a piece without bytes.
        let stream = stream.filter(|item| std::future::ready(!matches!(item, Ok(bytes) if bytes.is_empty()))).boxed();
        Self { size, stream: Mutex::new(Some(stream)), failure: Arc::default() }
    }

    /// Whether the stream has been handed out already.
    pub fn is_spent(&self) -> bool {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Takes the caller's stream, held to its size; what fails in it is kept for [`failure`](Self::failure).
    pub fn take(&self) -> Option<BoxStream<'static, Result<Bytes, String>>> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let (failure, size, mut seen) = (self.failure.clone(), self.size, 0u64);
        // An empty piece at the end, to see whether enough came.
        let ended = stream.chain(futures::stream::once(async { Ok(Bytes::new()) }));
        let held = ended.map(move |item| {
            let item = item.and_then(|bytes| {
                seen = seen.saturating_add(bytes.len() as u64);
                let right = if bytes.is_empty() { seen == size } else { seen <= size };
                if right { Ok(bytes) } else { Err(format!("it gave {seen} bytes, not the {size} announced")) }
            });
            if let Err(problem) = &item {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| problem.clone());
            }
            item
        });
        Some(held.boxed())
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        if text.is_empty() { Self::Empty } else { Self::Bytes(text.into()) }
    }
}

impl Net {
    /// Sends one request and waits for the head of the answer. Redirects aren't followed.
    pub async fn exchange(
        &self,
        tls: &TlsSettings,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Body,
    ) -> Result<Response, ErrorKind> {
        let host = authority(&url);
        let client = self.transports.client(&url, tls)?;
        let counters = &self.transports.counters;
        counters.request(&host);
        // Ranges and digests are of the bytes as they are stored.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let sent = Arc::new(AtomicU64::new(0));
        let (size, mut request) = match &body {
            Body::Empty => {
                if method == Method::POST || method == Method::PUT {
                    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                (0, client.request(method, url))
            }
            Body::Bytes(bytes) => {
                let pieces = pieces(bytes.clone()).map(Ok::<_, std::io::Error>);
                let pieces = futures::stream::iter(pieces).inspect(count(&sent));
                (bytes.len() as u64, client.request(method, url).body(reqwest::Body::wrap_stream(pieces)))
            }
            Body::Stream(upload) => {
                let spent = || ErrorKind::Source("the stream was cut off and can't be read again".into());
                let stream = upload.take().ok_or_else(spent)?;
                let stream = stream.map(|item| item.map_err(std::io::Error::other)).inspect(count(&sent));
                (upload.size, client.request(method, url).body(reqwest::Body::wrap_stream(stream)))
            }
        };
        if size > 0 {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
        }
        request = request.headers(headers);
        let result = self.watch(&host, size, &sent, request.send()).await;
        counters.bytes_sent.fetch_add(sent.load(Relaxed), Relaxed);
        if let Err(kind) = &result {
            self.suspect(&host, kind);
        }
        match (result, &body) {
            (Err(kind), Body::Stream(upload)) => Err(upload.failure().map_or(kind, ErrorKind::Source)),
            (result, _) => result,
        }
    }

    /// Waits for the answer as long as the upload makes progress.
    async fn watch(
        &self,
        host: &str,
        size: u64,
        sent: &AtomicU64,
        answer: impl Future<Output = reqwest::Result<Response>>,
    ) -> Result<Response, ErrorKind> {
        let mut answer = std::pin::pin!(answer);
        let mut seen = 0;
        loop {
            let done = size > 0 && seen == size;
            let patience = if done { self.stall.saturating_mul(COMMIT_STALLS) } else { self.stall };
            match tokio::time::timeout(patience, answer.as_mut()).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => return Err(ErrorKind::of(host, error)),
                Err(_) if sent.load(Relaxed) != seen => seen = sent.load(Relaxed),
                Err(_) => return Err(ErrorKind::Stalled { host: host.into(), after: patience }),
            }
        }
    }

    /// Reads a whole small body.
    pub async fn read_body(&self, host: &str, response: Response, max: u64) -> Result<Bytes, ErrorKind> {
        if response.content_length().is_some_and(|length| length > max) {
            return Err(ErrorKind::TooLarge { limit: max });
        }
        let mut stream = response.bytes_stream();
        let mut body = BytesMut::new();
        while let Some(chunk) = self.next_chunk(host, &mut stream).await? {
            if (body.len() + chunk.len()) as u64 > max {
                return Err(ErrorKind::TooLarge { limit: max });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The next bytes of a body, or an error if none come for too long.
    pub async fn next_chunk<S>(&self, host: &str, body: &mut S) -> Result<Option<Bytes>, ErrorKind>
    where
        S: Stream<Item = reqwest::Result<Bytes>> + Unpin + Send,
    {
        loop {
            match tokio::time::timeout(self.stall, body.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => {}
                Ok(Some(Ok(chunk))) => {
                    self.transports.counters.received(host, chunk.len() as u64);
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => {
                    return Err(match ErrorKind::of(host, error) {
                        ErrorKind::Connect { host, problem } => ErrorKind::Broken { host, problem },
                        other => other,
                    });
                }
                Ok(None) => return Ok(None),
                Err(_) => {
                    let kind = ErrorKind::Stalled { host: host.into(), after: self.stall };
                    self.suspect(host, &kind);
                    return Err(kind);
                }
            }
        }
    }

    /// What failed so may fail with the other connections to this host, too.
    fn suspect(&self, host: &str, kind: &ErrorKind) {
        if matches!(kind, ErrorKind::Stalled { .. } | ErrorKind::Tls { .. }) {
            self.transports.renew(host);
        }
    }

    pub fn count_retry(&self) {
        self.transports.counters.retries.fetch_add(1, Relaxed);
    }
}

fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| bytes.split_to(bytes.len().min(PIECE))))
}

fn count<E>(sent: &Arc<AtomicU64>) -> impl FnMut(&Result<Bytes, E>) + use<E> {
    let sent = sent.clone();
    move |item| {
        if let Ok(chunk) = item {
            sent.fetch_add(chunk.len() as u64, Relaxed);
        }
    }
}

/// `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let parse =
            |text: &str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(parse("Wed, 21 Oct 2099 07:28:00 GMT").unwrap() > Duration::from_secs(1 << 24));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-1"), None);
    }

    #[test]
    fn pieces_add_up() {
        let whole = Bytes::from((0..PIECE * 2 + 5).map(|i| i as u8).collect::<Vec<_>>());
        let cut: Vec<_> = pieces(whole.clone()).collect();
        assert_eq!(cut.len(), 3);
        assert_eq!(cut.concat(), whole);
        assert_eq!(pieces(Bytes::new()).count(), 0);
    }
}
