//! A repository of a registry: manifests, blob sizes, tags.
use crate::{
    auth::Scope,
    endpoint::{Answer, Endpoint, Request},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    media::{ACCEPTED_MANIFESTS, manifest_media_type},
    net::{Body, Net},
    repository::{MANIFEST_MAX, Manifest, Selector},
    servers::Servers,
    tries::Tries,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LINK},
};
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// Pages of a tags list that are read.
const TAG_PAGES_MAX: usize = 1000;
/// Bytes of one page of a tags list.
const TAG_PAGE_BYTES: u64 = 8 << 20;

/// A repository of a registry.
#[derive(Debug)]
pub(crate) struct Remote {
    pub net: Arc<Net>,
    pub servers: Arc<Servers>,
    /// The host by which the registry is named.
    pub host: String,
    pub repository: String,
}

impl Remote {
    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// Mirrors, then the server, as hosts.toml tells them now.
    fn endpoints(&self, capability: Capability) -> Vec<Arc<Endpoint>> {
        self.servers.now(&self.host).iter().filter(|e| e.can(capability)).cloned().collect()
    }

    /// The servers to ask; uploads go to the server itself only.
    pub fn tries(&self, capability: Capability) -> Tries {
        let candidates = match capability {
            Capability::Push => {
                let endpoints = self.servers.now(&self.host);
                endpoints.last().filter(|e| e.can(capability)).cloned().into_iter().collect()
            }
            Capability::Pull | Capability::Resolve => self.endpoints(capability),
        };
        Tries::new(candidates, None)
    }

    /// The servers to ask for a blob.
    pub fn tries_for(&self, blob: Digest) -> Tries {
        Tries::new(self.endpoints(Capability::Pull), Some(blob))
    }

    /// Has those servers asked last for a blob, for a while, that sent some of the bytes of `range`, which turned out
    /// wrong. True if there's another one, so that reading them again is worth it.
    pub fn distrust(&self, blob: Digest, range: &Range<u64>) -> bool {
        let servers = self.endpoints(Capability::Pull);
        let mut guilty: Vec<_> = servers.iter().filter(|server| server.doubts.sent(&blob, range)).collect();
        if guilty.is_empty() {
            // It was too long ago to be known: rather the mirrors than the registry itself.
            guilty = servers.split_last().map(|(_, mirrors)| mirrors.iter().collect()).unwrap_or_default();
        }
        for server in &guilty {
            server.sent_wrong_bytes(blob);
            self.net.transports.counters.host(&server.label).verification_failures.fetch_add(1, Relaxed);
            tracing::warn!(host = server.label, %blob, ?range, "a server sent wrong bytes");
        }
        let now = Instant::now();
        let worst = guilty.iter().map(|server| server.doubts.about(&blob, now)).max();
        worst.is_some_and(|worst| servers.iter().any(|server| server.doubts.about(&blob, now) < worst))
    }

    /// The server to ask now.
    pub fn next(&self, tries: &Tries, action: &str) -> Result<Arc<Endpoint>, RegistryError> {
        tries.endpoint().ok_or_else(|| self.none_allowed().during(action))
    }

    /// Asks servers until one answers.
    pub async fn ask<T, F>(
        &self,
        tries: &mut Tries,
        action: &str,
        ask: impl Fn(Arc<Endpoint>) -> F + Sync,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, ErrorKind>> + Send,
        T: Send,
    {
        if tries.is_empty() {
            return Err(self.none_allowed().during(action));
        }
        tries.ask(&self.net, action, ask).await
    }

    fn none_allowed(&self) -> ErrorKind {
        let host = &self.host;
        ErrorKind::Unsupported(format!("the capabilities in {host}'s hosts.toml allow no server to be asked"))
    }

    /// A request about this repository; `path` is below `/v2/NAME/`.
    pub fn request(&self, endpoint: &Endpoint, method: Method, path: &str, push: bool) -> Result<Request, ErrorKind> {
        Ok(Request {
            method,
            url: endpoint.url(&format!("{}/{path}", self.repository))?,
            headers: HeaderMap::new(),
            body: Body::Empty,
            scope: self.scope(push),
            blob: None,
        })
    }

    pub fn scope(&self, push: bool) -> Scope {
        Scope { repository: self.repository.clone(), push, from: None }
    }

    pub async fn manifest(&self, selector: &Selector) -> Result<Manifest, RegistryError> {
        let action = format!("reading the manifest {selector} of {}", self.name());
        let mut tries = self.tries(match selector {
            Selector::Tag(_) => Capability::Resolve,
            Selector::Digest(_) => Capability::Pull,
        });
        let ask = |endpoint: Arc<Endpoint>| async move { self.manifest_of(&endpoint, selector).await };
        self.ask(&mut tries, &action, ask).await
    }

    async fn manifest_of(&self, endpoint: &Endpoint, selector: &Selector) -> Result<Manifest, ErrorKind> {
        let mut request = self.request(endpoint, Method::GET, &format!("manifests/{selector}"), false)?;
        request.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED_MANIFESTS));
        let answer = endpoint.send(&self.net, &request).await?;
        if answer.response.status() != 200 {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        let Answer { response, host, .. } = answer;
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (content_type, announced) = (header("content-type"), header("docker-content-digest"));
        let length = response.content_length();
        let bytes = self.net.read_body(&host, response, MANIFEST_MAX).await?;
        if let Some(expected) = length.filter(|l| *l != bytes.len() as u64) {
            return Err(ErrorKind::Length { host, expected, got: bytes.len() as u64 });
        }
        let digest = Digest::of(&bytes);
        let expected = match selector {
            Selector::Digest(expected) => Some(*expected),
            Selector::Tag(_) => announced.and_then(|d| d.parse().ok()),
        };
        if let Some(expected) = expected.filter(|e| *e != digest) {
            return Err(ErrorKind::Digest { host, expected, got: digest });
        }
        let media_type = manifest_media_type(content_type.as_deref(), &bytes).map_err(ErrorKind::Malformed)?;
        Ok(Manifest { media_type, digest, bytes })
    }

    pub async fn put_manifest(
        &self,
        selector: &Selector,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let action = format!("pushing the manifest {selector} to {}", self.name());
        let digest = Digest::of(&bytes);
        let mut tries = self.tries(Capability::Push);
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.put_manifest_to(&endpoint, selector, media_type, &bytes, digest).await {
                Ok(()) => return Ok(digest),
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
    }

    async fn put_manifest_to(
        &self,
        endpoint: &Endpoint,
        selector: &Selector,
        media_type: &str,
        bytes: &Bytes,
        digest: Digest,
    ) -> Result<(), ErrorKind> {
        let mut request = self.request(endpoint, Method::PUT, &format!("manifests/{selector}"), true)?;
        let content_type = HeaderValue::from_str(media_type)
            .map_err(|_| ErrorKind::Request(format!("{media_type:?} is not a media type")))?;
        request.headers.insert(CONTENT_TYPE, content_type);
        request.body = Body::Bytes(bytes.clone());
        let answer = endpoint.send(&self.net, &request).await?;
        if !answer.response.status().is_success() {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        let stored = answer.response.headers().get("docker-content-digest").and_then(|d| d.to_str().ok());
        match stored.and_then(|d| d.parse().ok()) {
            Some(got) if got != digest => Err(ErrorKind::Digest { host: answer.host, expected: digest, got }),
            _ => Ok(()),
        }
    }

    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        self.head_blob(digest, Capability::Pull, false).await
    }

    /// Size of a blob. Before an upload it's the server that is asked, with the rights of the upload, so that one token
    /// does for both.
    pub async fn head_blob(
        &self,
        digest: &Digest,
        capability: Capability,
        push: bool,
    ) -> Result<Option<u64>, RegistryError> {
        let action = format!("looking for blob {digest} in {}", self.name());
        let mut tries = self.tries(capability);
        let ask = |endpoint: Arc<Endpoint>| async move { self.head_blob_of(&endpoint, digest, push).await };
        match self.ask(&mut tries, &action, ask).await {
            Err(error) if error.is_not_found() => Ok(None),
            size => size.map(Some),
        }
    }

    /// [`head_blob`](Self::head_blob), asked once.
    pub async fn head_blob_of(&self, endpoint: &Endpoint, digest: &Digest, push: bool) -> Result<u64, ErrorKind> {
        let request = self.request(endpoint, Method::HEAD, &format!("blobs/{digest}"), push)?;
        let answer = endpoint.send(&self.net, &request).await?;
        if answer.response.status() != 200 {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        // Not content_length(): that is the length of the body, which a HEAD doesn't have.
        let length = answer.response.headers().get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse().ok());
        length.ok_or_else(|| endpoint.wrong("it doesn't say how long the blob is"))
    }

    pub async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        let action = format!("listing the tags of {}", self.name());
        let mut tries = self.tries(Capability::Resolve);
        self.ask(&mut tries, &action, |endpoint| async move { self.tags_of(&endpoint).await }).await
    }

    async fn tags_of(&self, endpoint: &Endpoint) -> Result<Vec<String>, ErrorKind> {
        #[derive(serde::Deserialize)]
        struct Page {
            // The reference registry says `null` for none.
            tags: Option<Vec<String>>,
        }
        let mut request = self.request(endpoint, Method::GET, "tags/list", false)?;
        let mut tags = Vec::new();
        for _ in 0..TAG_PAGES_MAX {
            let answer = endpoint.send(&self.net, &request).await?;
            if answer.response.status() != 200 {
                return Err(endpoint.refusal(&self.net, answer).await);
            }
            let next = next_page(answer.response.headers());
            let bytes = self.net.read_body(&answer.host, answer.response, TAG_PAGE_BYTES).await?;
            let page: Page = serde_json::from_slice(&bytes)
                .map_err(|e| ErrorKind::Malformed(format!("the list of tags can't be understood: {e}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let Some(next) = next else { return Ok(tags) };
            let next: Url = endpoint.resolve(&request.url, &next)?;
            if !endpoint.is_own(&next) || next == request.url {
                return Err(endpoint.wrong("the next page of its tags is elsewhere or the same page again"));
            }
            request.url = next;
        }
        Err(endpoint.wrong(format!("its list of tags has more than {TAG_PAGES_MAX} pages")))
    }
}

/// The target of `Link: <url>; rel="next"` (distribution-spec, "Listing Tags"; RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|v| v.to_str().ok());
    links.flat_map(|v| v.split(",<")).find_map(|link| {
        let (target, parameters) = link.trim().trim_start_matches('<').split_once('>')?;
        let next = parameters.split(';').any(|p| {
            let (name, value) = p.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
        });
        next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_the_link_header() {
        let next = |text: &str| next_page(&HeaderMap::from_iter([(LINK, HeaderValue::from_str(text).unwrap())]));
        assert_eq!(next("</v2/a/tags/list?last=x&n=1>; rel=\"next\"").as_deref(), Some("/v2/a/tags/list?last=x&n=1"));
        assert_eq!(next("<b>; rel=prev,<c>; title=\"x\"; REL=next").as_deref(), Some("c"));
        assert_eq!(next("<b>; rel=\"prev\""), None);
        assert_eq!(next("b; rel=next"), None);
        assert_eq!(next("<b"), None);
    }
}
