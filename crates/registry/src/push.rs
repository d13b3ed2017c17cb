//! Uploads to a registry's repository: blobs, from memory or from a stream, and mounts from other repositories.
use crate::{
    auth::Scope,
    endpoint::{Answer, Endpoint, Request},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    net::{Body, UploadStream},
    remote::Remote,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use std::sync::Arc;

/// How a mount was answered.
enum Mount {
    Done,
    /// The registry opened an upload instead (distribution-spec, "Mounting a blob from another repository").
    Refused(Option<Url>),
}

impl Remote {
    /// Uploads a blob unless the registry has it. False if it had it.
    pub async fn push_blob(&self, digest: Digest, body: Body) -> Result<bool, RegistryError> {
        if self.head_blob(&digest, Capability::Push, true).await?.is_some() {
            return Ok(false);
        }
        let action = format!("pushing blob {digest} to {}", self.name());
        let mut tries = self.tries(Capability::Push);
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.upload(&endpoint, &digest, &body).await {
                Ok(()) => return Ok(true),
                // What was read of a caller's stream is gone.
                Err(kind) if matches!(&body, Body::Stream(upload) if upload.is_spent()) => {
                    return Err(kind.during(action));
                }
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
    }

    /// A POST for a place, a PUT of everything (distribution-spec, "POST then PUT").
    async fn upload(&self, endpoint: &Endpoint, digest: &Digest, body: &Body) -> Result<(), ErrorKind> {
        let request = self.request(endpoint, Method::POST, "blobs/uploads/", true)?;
        let answer = endpoint.send(&self.net, &request).await?;
        if answer.response.status() != 202 {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        let url = self.location(endpoint, &request.url, &answer)?;
        let mut url = url.ok_or_else(|| endpoint.wrong("it doesn't say where to upload to"))?;
        let _ = self.net.read_body(&answer.host, answer.response, 64 << 10).await;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut put = self.at(Method::PUT, url);
        put.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        put.body = body.clone();
        let answer = self.send_to(endpoint, &put).await?;
        match answer.response.status().as_u16() {
            200 | 201 | 204 => Ok(()),
            _ => Err(endpoint.refusal(&self.net, answer).await),
        }
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

    fn location(&self, endpoint: &Endpoint, from: &Url, answer: &Answer) -> Result<Option<Url>, ErrorKind> {
        let location = answer.response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        location.map(|l| endpoint.resolve(from, l)).transpose()
    }

    fn at(&self, method: Method, url: Url) -> Request {
        let headers = HeaderMap::new();
        Request { method, url, headers, body: Body::Empty, scope: self.scope(true), blob: None }
    }

    /// Sends to a place that the registry named: with credentials only if that's the registry itself.
    async fn send_to(&self, endpoint: &Endpoint, request: &Request) -> Result<Answer, ErrorKind> {
        if endpoint.is_own(&request.url) {
            endpoint.send(&self.net, request).await
        } else {
            endpoint.send_bare(&self.net, request).await
        }
    }
}

/// A body of bytes, or of a stream that can be sent only once.
pub(crate) fn body_of_bytes(bytes: Bytes) -> Body {
    if bytes.is_empty() { Body::Empty } else { Body::Bytes(bytes) }
}

/// As [`body_of_bytes`], for a stream of exactly `size` bytes.
pub(crate) fn body_of_stream(upload: UploadStream) -> Body {
    Body::Stream(Arc::new(upload))
}
