//! An upload that a registry has opened: filled in chunks, and taken up again where the registry stands.
use crate::{
    endpoint::{Answer, Endpoint},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    net::Body,
    remote::Remote,
    source::Source,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};
use std::{ops::Range, sync::Arc};

/// Bytes read of an answer that says nothing, so that its connection can be used again.
const ANSWER_MAX: u64 = 64 << 10;

/// An upload in progress (distribution-spec, "Pushing a blob in chunks"). Dropped before [`commit`](Self::commit) has
/// succeeded, it's cancelled as well as may be.
pub(crate) struct Session {
    remote: Arc<Remote>,
    endpoint: Arc<Endpoint>,
    /// Where the registry wants the next request about it.
    url: Url,
    /// Bytes that the registry has.
    at: u64,
    /// What every chunk but the last must at least have, in bytes.
    pub chunk_min: u64,
    action: String,
    /// Whether a chunk broke on the way, of which the registry may have counted some bytes wrongly.
    resumed: bool,
    open: bool,
}

/// What a session is filled with.
pub(crate) enum Content<'a> {
    /// The bytes from this offset on; those before are gone.
    Bytes(u64, &'a Bytes),
    /// Bytes that can be read again from anywhere.
    Source(&'a Source),
}

impl Content<'_> {
    /// The bytes of a range; `None` if they are gone.
    pub fn body(&self, range: Range<u64>) -> Option<Body> {
        match self {
            Self::Bytes(start, bytes) => {
                let from = usize::try_from(range.start.checked_sub(*start)?).ok()?;
                let to = usize::try_from(range.end.checked_sub(*start)?).ok()?;
                (from <= to && to <= bytes.len()).then(|| match bytes.slice(from..to) {
                    none if none.is_empty() => Body::Empty,
                    bytes => Body::Bytes(bytes),
                })
            }
            Self::Source(source) => Some(source.body(range)),
        }
    }
}

impl Session {
    /// Has the registry open an upload.
    pub async fn open(remote: Arc<Remote>, action: String) -> Result<Self, RegistryError> {
        let mut tries = remote.tries(Capability::Push);
        loop {
            let endpoint = remote.next(&tries, &action)?;
            match remote.open_upload(&endpoint).await {
                Ok((url, headers)) => {
                    let chunk_min = headers.get("oci-chunk-min-length").and_then(|v| v.to_str().ok()?.parse().ok());
                    let chunk_min = chunk_min.unwrap_or(0);
                    return Ok(Self { remote, endpoint, url, at: 0, chunk_min, action, resumed: false, open: true });
                }
                Err(kind) => tries.failed(&remote.net, kind, &action).await?,
            }
        }
    }

    /// Sends the bytes from where the registry stands up to `end`, in one chunk if nothing happens. After a break, a
    /// refused token or a server in trouble the registry is asked how far it came, and the rest is sent.
    pub async fn send(&mut self, content: &Content<'_>, end: u64) -> Result<(), RegistryError> {
        let remote = self.remote.clone();
        let mut tries = remote.tries(Capability::Push);
        // The furthest that the registry has been: only beyond it is progress.
        let (mut reached, mut denied) = (self.at, false);
        while self.at < end {
            let result = match content.body(self.at..end) {
                Some(body) => self.patch(body, end).await,
                None => Err(self.lost("it has less than it said before")),
            };
            let kind = match result {
                Ok(()) if self.at > reached => {
                    (reached, denied) = (self.at, false);
                    tries.progressed();
                    continue;
                }
                // It said that all is well, or where it stands, so there's nothing to ask; only a limit to its patience.
                Ok(()) => {
                    let problem = format!("it took none of the bytes from {} on", self.at);
                    let kind = ErrorKind::Broken { host: self.endpoint.label.clone(), problem };
                    tries.failed(&remote.net, kind, &self.action).await?;
                    continue;
                }
                Err(kind @ (ErrorKind::UploadLost { .. } | ErrorKind::NoChunks { .. })) => {
                    return Err(kind.during(&self.action));
                }
                Err(kind) => kind,
            };
            // A chunk that is streamed can't be repeated with another token at once; the question below renews it.
            if !matches!(kind, ErrorKind::Denied { status: 401, .. }) || std::mem::replace(&mut denied, true) {
                tries.failed(&remote.net, kind, &self.action).await?;
            }
            loop {
                match self.ask(end).await {
                    Ok(()) => break,
                    Err(kind @ ErrorKind::UploadLost { .. }) => return Err(kind.during(&self.action)),
                    Err(kind) => tries.failed(&remote.net, kind, &self.action).await?,
                }
            }
            self.resumed = true;
            tracing::debug!(host = self.endpoint.label, at = self.at, end, "an upload is taken up again");
        }
        Ok(())
    }

    /// Makes a blob of the bytes that were sent.
    pub async fn commit(mut self, digest: &Digest) -> Result<(), RegistryError> {
        let (remote, size) = (self.remote.clone(), self.at);
        self.action = format!("pushing blob {digest} to {}", remote.name());
        let mut tries = remote.tries(Capability::Push);
        loop {
            let kind = match self.put(digest).await {
                Ok(()) => break,
                Err(kind) => kind,
            };
            // It may be the answer that got lost, and not the blob.
            let unsure = kind.is_transient() || matches!(kind, ErrorKind::NotFound { .. });
            if unsure && remote.head_blob_of(&self.endpoint, digest, true).await.is_ok() {
                break;
            }
            match &kind {
                ErrorKind::NotFound { message } => return Err(self.lost(message).during(&self.action)),
                // Bytes of the broken chunk that arrived late are in between.
                ErrorKind::Status { status: 400, message, .. } if self.resumed => {
                    return Err(self.lost(message).during(&self.action));
                }
                _ => {}
            }
            tries.failed(&remote.net, kind, &self.action).await?;
            match self.ask(size).await {
                Ok(()) if self.at < size => return Err(self.lost("it has less than it said").during(&self.action)),
                Err(kind @ ErrorKind::UploadLost { .. }) => return Err(kind.during(&self.action)),
                // If it can't be asked now, putting will tell.
                _ => {}
            }
        }
        self.open = false;
        Ok(())
    }

    async fn patch(&mut self, body: Body, end: u64) -> Result<(), ErrorKind> {
        let from = self.at;
        let mut request = self.remote.at(Method::PATCH, self.url.clone());
        let range = HeaderValue::from_str(&format!("{from}-{}", end - 1));
        request.headers.insert(CONTENT_RANGE, range.map_err(|e| ErrorKind::Request(e.to_string()))?);
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        request.body = body;
        let answer = self.remote.send_to(&self.endpoint, &request).await?;
        let status = answer.response.status().as_u16();
        match status {
            200 | 201 | 202 | 204 => {
                let told = self.follow(answer).await?;
                // Those that don't say how far they are took it all: the digest will tell.
                self.at = self.position(told.unwrap_or(end - 1), end)?;
                Ok(())
            }
            // The request's range isn't where the registry stands.
            416 => {
                match self.follow(answer).await? {
                    Some(told) => self.at = self.position(told, end)?,
                    None => self.ask(end).await?,
                }
                if self.at == from { Err(self.no_chunks(status, String::new())) } else { Ok(()) }
            }
            404 | 405 | 410 | 501 => {
                let message = match self.endpoint.refusal(&self.remote.net, answer).await {
                    ErrorKind::NotFound { message } | ErrorKind::Status { message, .. } => message,
                    other => return Err(other),
                };
                match self.ask(end).await {
                    Ok(()) if self.at != from => Ok(()),
                    // It knows the upload and doesn't take the chunk, or it knows neither.
                    Ok(()) => Err(self.no_chunks(status, message)),
                    Err(ErrorKind::UploadLost { .. }) if from == 0 && !message.contains("BLOB_UPLOAD") => {
                        Err(self.no_chunks(status, message))
                    }
                    Err(kind) => Err(kind),
                }
            }
            _ => Err(self.endpoint.refusal(&self.remote.net, answer).await),
        }
    }

    /// Asks the registry how far it is, when `end` bytes at most have been sent.
    async fn ask(&mut self, end: u64) -> Result<(), ErrorKind> {
        let request = self.remote.at(Method::GET, self.url.clone());
        let answer = self.remote.send_to(&self.endpoint, &request).await?;
        match answer.response.status().as_u16() {
            200 | 202 | 204 => match self.follow(answer).await? {
                Some(told) => {
                    self.at = self.position(told, end)?;
                    Ok(())
                }
                None => Err(self.lost("it doesn't say how much it has")),
            },
            // 404: forgotten. The reference registry says so, too, when a part of a chunk came that it hasn't told of.
            400 | 404 | 405 | 410 | 416 | 501 => match self.endpoint.refusal(&self.remote.net, answer).await {
                ErrorKind::NotFound { message } | ErrorKind::Status { message, .. } => Err(self.lost(&message)),
                other => Err(other),
            },
            _ => Err(self.endpoint.refusal(&self.remote.net, answer).await),
        }
    }

    async fn put(&mut self, digest: &Digest) -> Result<(), ErrorKind> {
        let request = self.remote.put_request(self.url.clone(), digest, Body::Empty);
        let answer = self.remote.send_to(&self.endpoint, &request).await?;
        match answer.response.status().as_u16() {
            200 | 201 | 204 => Ok(()),
            _ => Err(self.endpoint.refusal(&self.remote.net, answer).await),
        }
    }

    /// Notes where the next request goes; gives the last byte of the answer's `Range`.
    async fn follow(&mut self, answer: Answer) -> Result<Option<u64>, ErrorKind> {
        if let Some(url) = self.remote.location(&self.endpoint, &self.url, &answer)? {
            self.url = url;
        }
        let last = last_byte(answer.response.headers());
        let _ = self.remote.net.read_body(&answer.host, answer.response, ANSWER_MAX).await;
        Ok(last)
    }

    /// How many bytes the registry has that names `last` as the last one, when `end` at most have been sent.
    fn position(&self, last: u64, end: u64) -> Result<u64, ErrorKind> {
        // The reference registry says `0-0` of an upload without a byte, as of one with one.
        let position = if last == 0 && self.at == 0 && end > 1 { 0 } else { last.saturating_add(1) };
        if position <= end {
            return Ok(position);
        }
        Err(self.endpoint.wrong(format!("it says that it has {position} bytes of an upload, and {end} were sent")))
    }

    fn lost(&self, message: &str) -> ErrorKind {
        ErrorKind::UploadLost { host: self.endpoint.label.clone(), at: self.at, message: message.into() }
    }

    fn no_chunks(&self, status: u16, message: String) -> ErrorKind {
        ErrorKind::NoChunks { host: self.endpoint.label.clone(), status, message }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Registries forget unfinished uploads by themselves, later.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.open {
            let (remote, endpoint, url) = (self.remote.clone(), self.endpoint.clone(), self.url.clone());
            runtime.spawn(async move {
                let _ = remote.send_to(&endpoint, &remote.at(Method::DELETE, url)).await;
            });
        }
    }
}

/// The last byte that `Range: 0-LAST` names. Some registries write `bytes=0-LAST`.
fn last_byte(headers: &HeaderMap) -> Option<u64> {
    let (_, last) = headers.get(RANGE)?.to_str().ok()?.trim().rsplit_once('-')?;
    last.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_uploads_are_understood() {
        let last = |text: &str| last_byte(&HeaderMap::from_iter([(RANGE, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(last("0-8388607"), Some(8_388_607));
        assert_eq!(last("bytes=0-9"), Some(9));
        assert_eq!(last(" 0-0 "), Some(0));
        for bad in ["", "0", "0-", "0-x", "-"] {
            assert_eq!(last(bad), None, "{bad}");
        }
        assert_eq!(last_byte(&HeaderMap::new()), None);
    }

    #[test]
    fn a_chunk_gives_what_it_has_and_no_more() {
        let bytes = Bytes::from_static(b"0123456789");
        let chunk = Content::Bytes(100, &bytes);
        let part = |range| match chunk.body(range) {
            Some(Body::Bytes(bytes)) => Some(bytes),
            _ => None,
        };
        assert_eq!(part(100..110).unwrap(), bytes);
        assert_eq!(part(107..109).unwrap(), "78");
        assert_eq!(part(99..110), None);
        assert_eq!(part(100..111), None);
    }
}
