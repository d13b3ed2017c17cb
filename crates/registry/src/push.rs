//! Uploads to a registry's repository: blobs from memory and from other places, and mounts from other repositories.
use crate::{
    auth::Scope,
    endpoint::{Answer, Endpoint, Request},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    net::Body,
    remote::Remote,
    session::{Content, Session},
    source::Source,
    upload::CHUNK,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use std::sync::Arc;

/// Length of the chunks of a blob whose content can be had again, so that they cost no memory but a round trip each. A
/// proxy in between that gathers requests throws away no more than one after a break.
const LONG_CHUNK: u64 = 64 << 20;

/// How a mount was answered.
enum Mount {
    Done,
    /// The registry opened an upload instead (distribution-spec, "Mounting a blob from another repository").
    Refused(Option<Url>),
}

impl Remote {
    /// Uploads a blob unless the registry has it. False if it had it.
    pub async fn push_blob(self: &Arc<Self>, digest: Digest, bytes: Bytes) -> Result<bool, RegistryError> {
        if self.head_blob(&digest, Capability::Push, true).await?.is_some() {
            return Ok(false);
        }
        let size = bytes.len() as u64;
        self.push(&digest, size, &Content::Bytes(0, &bytes)).await?;
        Ok(true)
    }

    /// Brings a blob here from another place unless the registry has it. False if it had it. Nothing of a long one is
    /// kept: what the registry lacks after a break is read again.
    pub async fn push_from(self: &Arc<Self>, source: &Source) -> Result<bool, RegistryError> {
        let (digest, size) = (source.blob.digest(), source.blob.size());
        if self.head_blob(&digest, Capability::Push, true).await?.is_some() {
            return Ok(false);
        }
        if size > CHUNK as u64 {
            self.push(&digest, size, &Content::Source(source)).await?;
        } else {
            let bytes = source.blob.read_all(size).await?;
            self.push(&digest, size, &Content::Bytes(0, &bytes)).await?;
            source.finished();
        }
        Ok(true)
    }

    /// Uploads a blob whose content can be had again: a short one in one piece, a long one in chunks, begun anew if the
    /// registry loses it.
    async fn push(self: &Arc<Self>, digest: &Digest, size: u64, content: &Content<'_>) -> Result<(), RegistryError> {
        let whole = || content.body(0..size).unwrap_or_default();
        if size <= CHUNK as u64 {
            return self.push_whole(digest, &whole).await;
        }
        let action = format!("pushing blob {digest} to {}", self.name());
        let mut restarts = self.tries(Capability::Push);
        loop {
            let Err(error) = self.push_in_chunks(digest, size, content, &action).await else { return Ok(()) };
            match error.kind() {
                ErrorKind::NoChunks { .. } => {
                    tracing::debug!(%error, "sending the blob in one piece");
                    return self.push_whole(digest, &whole).await;
                }
                lost @ ErrorKind::UploadLost { .. } => restarts.failed(&self.net, lost.clone(), &action).await?,
                _ => return Err(error),
            }
        }
    }

    async fn push_in_chunks(
        self: &Arc<Self>,
        digest: &Digest,
        size: u64,
        content: &Content<'_>,
        action: &str,
    ) -> Result<(), RegistryError> {
        let mut session = Session::open(self.clone(), action.to_owned()).await?;
        let step = LONG_CHUNK.max(session.chunk_min);
        let mut end = 0;
        while end < size {
            end = size.min(end.saturating_add(step));
            session.send(content, end).await?;
        }
        session.commit(digest).await
    }

    /// A POST for a place, a PUT of everything (distribution-spec, "POST then PUT"), which `body` gives for each attempt.
    async fn push_whole(&self, digest: &Digest, body: &(dyn Fn() -> Body + Sync)) -> Result<(), RegistryError> {
        let action = format!("pushing blob {digest} to {}", self.name());
        let mut tries = self.tries(Capability::Push);
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.post_and_put(&endpoint, digest, body()).await {
                Ok(()) => return Ok(()),
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
    }

    async fn post_and_put(&self, endpoint: &Endpoint, digest: &Digest, body: Body) -> Result<(), ErrorKind> {
        let (url, _) = self.open_upload(endpoint).await?;
        let answer = self.send_to(endpoint, &self.put_request(url, digest, body)).await?;
        match answer.response.status().as_u16() {
            200 | 201 | 204 => Ok(()),
            _ => Err(endpoint.refusal(&self.net, answer).await),
        }
    }

    /// Has a server open an upload: where it is, and what else was said.
    pub async fn open_upload(&self, endpoint: &Endpoint) -> Result<(Url, HeaderMap), ErrorKind> {
        let request = self.request(endpoint, Method::POST, "blobs/uploads/", true)?;
        let answer = endpoint.send(&self.net, &request).await?;
        if answer.response.status() != 202 {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        let url = self.location(endpoint, &request.url, &answer)?;
        let url = url.ok_or_else(|| endpoint.wrong("it doesn't say where to upload to"))?;
        let headers = answer.response.headers().clone();
        let _ = self.net.read_body(&answer.host, answer.response, 64 << 10).await;
        Ok((url, headers))
    }

    /// The request that ends an upload, with what is still to be sent.
    pub fn put_request(&self, mut url: Url, digest: &Digest, body: Body) -> Request {
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut put = self.at(Method::PUT, url);
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        put.body = body;
        put
    }

    /// Has the registry take a blob over from another of its repositories. False if it won't.
    pub async fn mount_blob(&self, from: &Remote, digest: &Digest) -> Result<bool, RegistryError> {
        if from.host != self.host {
            return Ok(false);
        }
        let action = format!("mounting blob {digest} of {} in {}", from.name(), self.name());
        let mut tries = self.tries(Capability::Push);
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.mount_on(&endpoint, from, digest).await {
                Ok(Mount::Done) => return Ok(true),
                Ok(Mount::Refused(upload)) => {
                    if let Some(url) = upload {
                        // Not our concern if it fails: registries forget unfinished uploads by themselves.
                        let _ = self.send_to(&endpoint, &self.at(Method::DELETE, url)).await;
                    }
                    return Ok(false);
                }
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
    }

    async fn mount_on(&self, endpoint: &Endpoint, from: &Remote, digest: &Digest) -> Result<Mount, ErrorKind> {
        let mut request = self.request(endpoint, Method::POST, "blobs/uploads/", true)?;
        request.scope = Scope { from: Some(from.repository.clone()), ..request.scope };
        request.url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", &from.repository);
        let answer = endpoint.send(&self.net, &request).await?;
        match answer.response.status().as_u16() {
            201 => Ok(Mount::Done),
            202 => Ok(Mount::Refused(self.location(endpoint, &request.url, &answer)?)),
            404 | 405 => Ok(Mount::Refused(None)),
            _ => Err(endpoint.refusal(&self.net, answer).await),
        }
    }

    /// The `Location` of an answer to a request to `from`.
    pub fn location(&self, endpoint: &Endpoint, from: &Url, answer: &Answer) -> Result<Option<Url>, ErrorKind> {
        let location = answer.response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        location.map(|l| endpoint.resolve(from, l)).transpose()
    }

    /// A request to a place that the registry named.
    pub fn at(&self, method: Method, url: Url) -> Request {
        let headers = HeaderMap::new();
        Request { method, url, headers, body: Body::Empty, scope: self.scope(true), blob: None }
    }

    /// Sends to a place that the registry named: with credentials only if that's the registry itself.
    pub async fn send_to(&self, endpoint: &Endpoint, request: &Request) -> Result<Answer, ErrorKind> {
        if endpoint.is_own(&request.url) {
            endpoint.send(&self.net, request).await
        } else {
            endpoint.send_bare(&self.net, request).await
        }
    }
}
