//! A repository of a registry: manifests, blob sizes, tags.
use crate::{
    auth::Scope,
    endpoint::{Answer, Endpoint, Request},
    error::{ErrorKind, RegistryError},
    hosts::Capability,
    media::{ACCEPTED_MANIFESTS, manifest_media_type},
    net::{Body, Net},
    repository::{MANIFEST_MAX, Manifest, Selector},
    tries::Tries,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use reqwest::{
    Method, Url,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LINK},
};
use std::sync::Arc;

/// Pages of a tags list that are read.
const TAG_PAGES_MAX: usize = 1000;
/// Bytes of one page of a tags list.
const TAG_PAGE_BYTES: u64 = 8 << 20;

/// A repository of a registry.
#[derive(Debug)]
pub(crate) struct Remote {
    pub net: Arc<Net>,
    /// Mirrors, then the server.
    pub endpoints: Arc<Vec<Arc<Endpoint>>>,
    /// The host by which the registry is named.
    pub host: String,
    pub repository: String,
}

impl Remote {
    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// The servers to ask; uploads go to the server itself only.
    pub fn tries(&self, capability: Capability) -> Tries {
        let able = self.endpoints.iter().filter(|e| e.can(capability));
        Tries::new(match capability {
            Capability::Push => self.endpoints.last().filter(|e| e.can(capability)).cloned().into_iter().collect(),
            Capability::Pull | Capability::Resolve => able.cloned().collect(),
        })
    }

    /// Has the server asked before its mirrors for a while. False if there are no mirrors.
    pub fn distrust_mirrors(&self) -> bool {
        let mirrors = self.endpoints.split_last().map_or(&[][..], |(_, mirrors)| mirrors);
        mirrors.iter().for_each(|mirror| mirror.shun());
        !mirrors.is_empty()
    }

    /// The server to ask now.
    pub fn next(&self, tries: &Tries, action: &str) -> Result<Arc<Endpoint>, RegistryError> {
        let none = || {
            ErrorKind::Unsupported(format!(
                "the capabilities in {}'s hosts.toml allow no server to be asked",
                self.host
            ))
        };
        tries.endpoint().ok_or_else(|| none().during(action))
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
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.manifest_of(&endpoint, selector).await {
                Ok(manifest) => return Ok(manifest),
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
    }

    async fn manifest_of(&self, endpoint: &Endpoint, selector: &Selector) -> Result<Manifest, ErrorKind> {
        let mut request = self.request(endpoint, Method::GET, &format!("manifests/{selector}"), false)?;
        request.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED_MANIFESTS));
        let answer = endpoint.send(&self.net, &request).await?;
        if answer.response.status() != 200 {
            return Err(endpoint.refusal(&self.net, answer).await);
        }
        let Answer { response, host } = answer;
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
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.head_blob_of(&endpoint, digest, push).await {
                Ok(size) => return Ok(Some(size)),
                Err(kind) => match tries.failed(&self.net, kind, &action).await {
                    Err(error) if error.is_not_found() => return Ok(None),
                    other => other?,
                },
            }
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
        loop {
            let endpoint = self.next(&tries, &action)?;
            match self.tags_of(&endpoint).await {
                Ok(tags) => return Ok(tags),
                Err(kind) => tries.failed(&self.net, kind, &action).await?,
            }
        }
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
