//! A range of a blob as a stream that survives broken connections.
use crate::{
    endpoint::{Answer, Endpoint},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    remote::Remote,
    tries::Tries,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use futures::{
    Stream, StreamExt,
    stream::{BoxStream, try_unfold},
};
use reqwest::{
    Method, Response,
    header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderValue, RANGE},
};
use std::{ops::Range, sync::Arc};

/// A body that gives this much between two breaks is making progress, and its attempts start anew.
const PROGRESS: u64 = 64 << 10;

/// A read in progress.
pub(crate) struct RangedRead {
    remote: Arc<Remote>,
    digest: Digest,
    size: u64,
    /// Whether the size is what the first server that is asked says.
    unsized_whole: bool,
    /// Next byte to give out.
    at: u64,
    end: u64,
    tries: Tries,
    since_break: u64,
    body: Option<Body>,
    action: String,
}

/// An answer's body, cut to the range.
struct Body {
    endpoint: Arc<Endpoint>,
    host: String,
    stream: BoxStream<'static, reqwest::Result<Bytes>>,
    /// Bytes before the range, of a server that ignores ranges.
    skip: u64,
    /// Whether the body must end where the range does.
    exact: bool,
    /// Whether the HTTP library holds the body to an announced length.
    delimited: bool,
}

impl RangedRead {
    /// Starts reading `range` of a blob of `size` bytes. The caller has checked that the range lies in the blob.
    pub async fn start(
        remote: Arc<Remote>,
        digest: Digest,
        size: u64,
        range: Range<u64>,
    ) -> Result<Self, RegistryError> {
        let action = format!("reading bytes {}..{} of blob {digest} of {}", range.start, range.end, remote.name());
        let tries = remote.tries(Capability::Pull);
        let (at, end) = (range.start, range.end);
        let mut read =
            Self { remote, digest, size, unsized_whole: false, at, end, tries, since_break: 0, body: None, action };
        if read.at < read.end {
            read.open().await?;
        }
        Ok(read)
    }

    /// Starts reading all of a blob whose size nobody has told.
    pub async fn start_whole(remote: Arc<Remote>, digest: Digest) -> Result<Self, RegistryError> {
        let action = format!("reading blob {digest} of {}", remote.name());
        let tries = remote.tries(Capability::Pull);
        let (size, unsized_whole, at, end) = (0, true, 0, 0);
        let mut read = Self { remote, digest, size, unsized_whole, at, end, tries, since_break: 0, body: None, action };
        read.open().await?;
        Ok(read)
    }

    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes still to come.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        try_unfold(self, |mut read| async move { Ok(read.next().await?.map(|bytes| (bytes, read))) })
    }

    /// Asks one server after the other for the rest.
    async fn open(&mut self) -> Result<(), RegistryError> {
        loop {
            let endpoint = self.remote.next(&self.tries, &self.action)?;
            match self.ask(endpoint).await {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(kind) => self.tries.failed(&self.remote.net, kind, &self.action).await?,
            }
        }
    }

    // By exclusive reference: a body can be sent to another thread, but not shared between two.
    async fn ask(&mut self, endpoint: Arc<Endpoint>) -> Result<Body, ErrorKind> {
        let net = &self.remote.net;
        let mut request = self.remote.request(&endpoint, Method::GET, &format!("blobs/{}", self.digest), false)?;
        request.blob = Some(self.digest);
        let whole = self.at == 0 && self.end == self.size;
        if !whole {
            let range = HeaderValue::from_str(&format!("bytes={}-{}", self.at, self.end - 1));
            request.headers.insert(RANGE, range.map_err(|e| ErrorKind::Request(e.to_string()))?);
        }
        let answer = endpoint.send(net, &request).await?;
        let wrong = |problem: String| ErrorKind::Protocol { host: answer.host.clone(), problem };
        let encoding = answer.response.headers().get(CONTENT_ENCODING).map(|e| e.as_bytes());
        if encoding.is_some_and(|e| !e.eq_ignore_ascii_case(b"identity")) {
            return Err(wrong("it encodes the blob's bytes although it was asked not to".into()));
        }
        let length = answer.response.content_length();
        if self.at == 0 && self.unsized_whole && answer.response.status() == 200 {
            self.size = length.ok_or_else(|| wrong("it doesn't say how long the blob is".into()))?;
            self.end = self.size;
        }
        let (skip, exact, expected) = match answer.response.status().as_u16() {
            200 => (self.at, self.end == self.size, self.size),
            206 if !whole => {
                self.check_content_range(&answer.response).map_err(wrong)?;
                (0, true, self.end - self.at)
            }
            206 => return Err(wrong("it sent a part of the blob where the whole was asked for".into())),
            416 => return Err(wrong(format!("its blob is shorter than {} bytes", self.end))),
            _ => return Err(endpoint.refusal(net, answer).await),
        };
        let Answer { response, host } = answer;
        if let Some(got) = length.filter(|l| *l != expected) {
            return Err(ErrorKind::Length { host, expected, got });
        }
        let stream = response.bytes_stream().boxed();
        Ok(Body { endpoint, host, stream, skip, exact, delimited: length.is_some() })
    }

    /// `Content-Range: bytes FIRST-LAST/SIZE` must be the range asked for (RFC 9110, section 14.4).
    fn check_content_range(&self, response: &Response) -> Result<(), String> {
        let text = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let parsed = parse_content_range(text);
        let (first, last) = (self.at, self.end - 1);
        match parsed {
            Some((f, l, size)) if f == first && l == last && size.is_none_or(|s| s == self.size) => Ok(()),
            _ => Err(format!(
                "it sent the range {:?} where bytes {first}-{last}/{} were asked for",
                crate::error::printable(text),
                self.size
            )),
        }
    }

    /// The next bytes; `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.at == self.end {
                return Ok(None);
            }
            if self.body.is_none() {
                self.open().await?;
            }
            let Some(body) = self.body.as_mut() else { continue };
            match body.next(&self.remote, self.end - self.at).await {
                Ok(chunk) => {
                    let length = chunk.len() as u64;
                    self.at += length;
                    self.since_break += length;
                    if self.since_break >= PROGRESS {
                        self.tries.progressed();
                    }
                    return Ok(Some(chunk));
                }
                Err(kind) => {
                    self.body = None;
                    self.since_break = 0;
                    self.tries.failed(&self.remote.net, kind, &self.action).await?;
                }
            }
        }
    }
}

impl Body {
    /// The next bytes of the range, of which `wanted` (above zero) are still missing.
    async fn next(&mut self, remote: &Remote, wanted: u64) -> Result<Bytes, ErrorKind> {
        let net = &remote.net;
        loop {
            let Some(mut chunk) = net.next_chunk(&self.host, &mut self.stream).await? else {
                let problem = format!("the body ended {} bytes too early", wanted + self.skip);
                return Err(ErrorKind::Broken { host: self.host.clone(), problem });
            };
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            drop(chunk.split_to(skipped as usize));
            if chunk.is_empty() {
                continue;
            }
            let have = chunk.len() as u64;
            let excess = if have < wanted {
                0
            } else if have > wanted {
                have - wanted
            } else if self.exact && !self.delimited {
                // Nothing says where this body ends, so it's looked at. That it doesn't end well is no matter now.
                let more = net.next_chunk(&self.host, &mut self.stream).await;
                more.ok().flatten().map_or(0, |more| more.len() as u64)
            } else {
                0
            };
            if excess > 0 && self.exact {
                return Err(ErrorKind::Length { host: self.host.clone(), expected: wanted, got: wanted + excess });
            }
            chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            tracing::trace!(host = self.endpoint.label, bytes = chunk.len(), "read");
            return Ok(chunk);
        }
    }
}

/// First and last byte, and the size if it's told.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, size) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse().ok()).flatten();
    let size = if size == "*" { None } else { Some(number(size)?) };
    unit.eq_ignore_ascii_case("bytes").then_some((number(first)?, number(last)?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_parsed_strictly() {
        assert_eq!(parse_content_range("bytes 0-9/10"), Some((0, 9, Some(10))));
        assert_eq!(parse_content_range("Bytes 5-9/*"), Some((5, 9, None)));
        for bad in
            ["", "bytes", "bytes */10", "bytes 0-9", "items 0-9/10", "bytes +0-9/10", "bytes 0-9/x", "bytes -9/10"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
