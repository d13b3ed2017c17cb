//! A range of a blob as a stream that survives broken connections and servers that fall silent.
use crate::{
    blob::Piece,
    doubts::Served,
    endpoint::{Answer, Endpoint},
    error::{ErrorKind, RegistryError},
    net::Net,
    remote::Remote,
    tries::Tries,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{BoxStream, try_unfold},
};
use reqwest::{
    Method, Response,
    header::{CONTENT_ENCODING, CONTENT_RANGE, HeaderValue, RANGE},
};
use std::{ops::Range, pin::pin, sync::Arc, time::Duration};

/// A body that gives this much between two breaks is making progress, and its attempts start anew.
const PROGRESS: u64 = 64 << 10;
/// A body is waited for at least this long before another server is asked for the rest: it may be the link that is busy.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// A read in progress.
pub(crate) struct RangedRead {
    /// What is still to be asked for.
    rest: Rest,
    tries: Tries,
    since_break: u64,
    body: Option<Body>,
    action: String,
}

/// The rest of a range.
#[derive(Clone)]
struct Rest {
    remote: Arc<Remote>,
    digest: Digest,
    /// Bytes of the whole blob.
    size: u64,
    /// Whether the size is what the first server that is asked says.
    unsized_whole: bool,
    /// Next byte to give out.
    at: u64,
    end: u64,
}

/// An answer's body, cut to the range.
struct Body {
    /// Bytes of the whole blob, by the server.
    size: u64,
    host: Arc<str>,
    stream: BoxStream<'static, reqwest::Result<Bytes>>,
    /// Bytes before the range, of a server that ignores ranges.
    skip: u64,
    /// Whether the body must end where the range does.
    exact: bool,
    /// Whether the HTTP library holds the body to an announced length.
    delimited: bool,
    /// Remembers who sent the bytes.
    served: Arc<Served>,
}

/// What came of waiting for a body.
enum Turn {
    Chunk(Result<Bytes, ErrorKind>),
    /// It was silent, and another server has begun to answer.
    Other(Body),
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
        Self::open(Rest { remote, digest, size, unsized_whole: false, at: range.start, end: range.end }, action).await
    }

    /// Starts reading all of a blob whose size nobody has told.
    pub async fn start_whole(remote: Arc<Remote>, digest: Digest) -> Result<Self, RegistryError> {
        let action = format!("reading blob {digest} of {}", remote.name());
        Self::open(Rest { remote, digest, size: 0, unsized_whole: true, at: 0, end: 0 }, action).await
    }

    async fn open(rest: Rest, action: String) -> Result<Self, RegistryError> {
        let tries = rest.remote.tries_for(rest.digest);
        let mut read = Self { rest, tries, since_break: 0, body: None, action };
        if read.rest.at < read.rest.end || read.rest.unsized_whole {
            read.reopen().await?;
        }
        Ok(read)
    }

    /// Bytes of the whole blob.
    pub fn size(&self) -> u64 {
        self.rest.size
    }

    /// The bytes still to come, and who sends them.
    pub fn into_pieces(self) -> impl Stream<Item = Result<Piece, RegistryError>> + Send {
        try_unfold(self, |mut read| async move { Ok(read.next().await?.map(|piece| (piece, read))) })
    }

    /// The bytes still to come.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        self.into_pieces().map_ok(|piece| piece.bytes)
    }

    /// Asks one server after the other for the rest.
    async fn reopen(&mut self) -> Result<(), RegistryError> {
        let Self { rest, tries, action, .. } = self;
        let body = rest.remote.ask(tries, action, |endpoint| rest.clone().ask(endpoint)).await?;
        if rest.at == 0 && rest.unsized_whole {
            (rest.size, rest.end) = (body.size, body.size);
        }
        self.body = Some(body);
        Ok(())
    }

    /// The next bytes; `None` at the end of the range.
    async fn next(&mut self) -> Result<Option<Piece>, RegistryError> {
        loop {
            if self.rest.at == self.rest.end {
                return Ok(None);
            }
            if self.body.is_none() {
                self.reopen().await?;
            }
            match self.turn().await {
                Turn::Chunk(Ok(chunk)) => {
                    let length = chunk.len() as u64;
                    self.rest.at += length;
                    self.since_break += length;
                    if self.since_break >= PROGRESS {
                        self.tries.progressed();
                    }
                    let host = self.body.as_ref().map_or_else(Arc::default, |body| Arc::clone(&body.host));
                    return Ok(Some(Piece { bytes: chunk, host }));
                }
                Turn::Chunk(Err(kind)) => {
                    self.body = None;
                    self.since_break = 0;
                    self.tries.failed(&self.rest.remote.net, kind, &self.action).await?;
                }
                Turn::Other(body) => {
                    self.tries.switch(&self.rest.remote.net);
                    self.body = Some(body);
                    self.since_break = 0;
                }
            }
        }
    }

    /// Waits for the body's next bytes. If it is silent, another server is asked for them as well.
    async fn turn(&mut self) -> Turn {
        let (rest, tries) = (&self.rest, &mut self.tries);
        let net = &rest.remote.net;
        let Some(body) = &mut self.body else {
            let problem = "there is no body".into();
            return Turn::Chunk(Err(ErrorKind::Broken { host: rest.remote.host.clone(), problem }));
        };
        let mut arriving = pin!(body.next(net, rest.end - rest.at));
        loop {
            let Some((other, patience)) = tries.alternative() else { return Turn::Chunk(arriving.await) };
            tokio::select! {
                biased;
                chunk = &mut arriving => return Turn::Chunk(chunk),
                () = tokio::time::sleep(patience.max(SILENCE_MIN)) => {}
            }
            tokio::select! {
                biased;
                chunk = &mut arriving => return Turn::Chunk(chunk),
                answer = rest.clone().ask(other) => match answer {
                    Ok(body) => return Turn::Other(body),
                    Err(kind) => tries.passed(net, kind),
                }
            }
        }
    }
}

impl Rest {
    async fn ask(self, endpoint: Arc<Endpoint>) -> Result<Body, ErrorKind> {
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
        let (mut size, mut end) = (self.size, self.end);
        if self.at == 0 && self.unsized_whole && answer.response.status() == 200 {
            size = length.ok_or_else(|| wrong("it doesn't say how long the blob is".into()))?;
            end = size;
        }
        let (skip, exact, expected) = match answer.response.status().as_u16() {
            200 => (self.at, end == size, size),
            206 if !whole => {
                self.check_content_range(&answer.response).map_err(wrong)?;
                (0, true, end - self.at)
            }
            206 => return Err(wrong("it sent a part of the blob where the whole was asked for".into())),
            416 => return Err(wrong(format!("its blob is shorter than {end} bytes"))),
            _ => return Err(endpoint.refusal(net, answer).await),
        };
        let Answer { response, host, .. } = answer;
        if let Some(got) = length.filter(|l| *l != expected) {
            return Err(ErrorKind::Length { host, expected, got });
        }
        let served = endpoint.doubts.body(self.digest, self.at);
        let stream = response.bytes_stream().boxed();
        let host = host.into();
        Ok(Body { size, host, stream, skip, exact, delimited: length.is_some(), served })
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
}

impl Body {
    /// The next bytes of the range, of which `wanted` (above zero) are still missing.
    async fn next(&mut self, net: &Net, wanted: u64) -> Result<Bytes, ErrorKind> {
        loop {
            let Some(mut chunk) = net.next_chunk(&self.host, &mut self.stream).await? else {
                let problem = format!("the body ended {} bytes too early", wanted + self.skip);
                return Err(ErrorKind::Broken { host: self.host.to_string(), problem });
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
                return Err(ErrorKind::Length { host: self.host.to_string(), expected: wanted, got: wanted + excess });
            }
            chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            self.served.add(chunk.len() as u64);
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
