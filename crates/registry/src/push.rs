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
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use std::sync::Arc;

/// Length of the chunks in which a blob is brought from elsewhere. They are streamed, so they cost no memory but a round
/// trip each; what a proxy in between that gathers requests throws away after a break is no more than one.
const STREAMED_CHUNK: u64 = 64 << 20;

/// How a mount was answered.
enum Mount {
    Done,
    /// The registry opened an upload instead (distribution-spec, "Mounting a blob from another repository").
    Refused(Option<Url>),
}

impl Remote {
    /// Uploads a blob in one piece unless the registry has it. False if it had it.
    pub async fn push_blob(&self, digest: Digest, bytes: Bytes) -> Result<bool, RegistryError> {
        if self.head_blob(&digest, Capability::Push, true).await?.is_some() {
            return Ok(false);
        }
        self.push_bytes(digest, bytes).await?;
        Ok(true)
    }

    /// [`push_blob`](Self::push_blob), of one that the registry doesn't have.
    pub async fn push_bytes(&self, digest: Digest, bytes: Bytes) -> Result<(), RegistryError> {
        let body = || if bytes.is_empty() { Body::Empty } else { Body::Bytes(bytes.clone()) };
        self.push_whole(digest, &body).await
    }

    /// Brings a blob here from another place unless the registry has it. False if it had it. Nothing of it is kept, so
    /// what the registry lacks after a break is read again.
    pub async fn push_from(self: &Arc<Self>, source: &Source) -> Result<bool, RegistryError> {
        let (digest, size) = (source.blob.digest(), source.blob.size());
        if self.head_blob(&digest, Capability::Push, true).await?.is_some() {
            return Ok(false);
        }
        let action = format!("pushing blob {digest} to {}", self.name());
        let mut restarts = self.tries(Capability::Push);
        loop {
            match self.push_in_chunks(source, &action).await {
                Ok(()) => return Ok(true),
                Err(error) => match error.kind() {
                    ErrorKind::NoChunks { .. } => {
                        tracing::debug!(%error, "sending the blob in one piece");
                        self.push_whole(digest, &|| source.body(0..size)).await?;
                        return Ok(true);
                    }
                    lost @ ErrorKind::UploadLost { .. } => restarts.failed(&self.net, lost.clone(), &action).await?,
                    _ => return Err(error),
                },
            }
        }
    }

    async fn push_in_chunks(self: &Arc<Self>, source: &Source, action: &str) -> Result<(), RegistryError> {
        let mut session = Session::open(self.clone(), action.to_owned()).await?;
        let (size, step) = (source.blob.size(), STREAMED_CHUNK.max(session.chunk_min));
        let mut end = 0;
        while end < size {
            end = size.min(end.saturating_add(step));
            session.send(&Content::Source(source), end).await?;
        }
        session.commit(&source.blob.digest()).await
    }

    /// A POST for a place, a PUT of everything (distribution-spec, "POST then PUT"), which `body` gives for each attempt.
    async fn push_whole(&self, digest: Digest, body: &(dyn Fn() -> Body + Sync)) -> Result<(), RegistryError> {
        let action = format!("pushing blob {digest} to {}", self.name());
        let mut tries = self.tries(Capability::Push);
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.post_and_put(&endpoint, &digest, body()).await {
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
