//! A repository: one set of methods over a registry's repository and over an OCI layout directory.
use crate::{
    blob::Blob,
    error::{ErrorKind, RegistryError},
    layout::Layout,
    reference::Reference,
    remote::Remote,
    source::Source,
    upload::BlobUpload,
};
use bytes::Bytes;
use clipper_format::digest::Digest;
use std::{fmt, sync::Arc};

/// Largest manifest that is read: the limit that registries are told to hold to (distribution-spec, "Pushing
/// Manifests").
pub const MANIFEST_MAX: u64 = 4 << 20;

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one that the tag names now.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest or an index, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Media type without parameters.
    pub media_type: String,
    /// Digest of `bytes`.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

/// A repository of a registry, or an OCI layout directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository(pub(crate) Place);

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Remote(Arc<Remote>),
    Layout(Arc<Layout>),
}

impl Repository {
    pub(crate) fn remote(remote: Remote) -> Self {
        Self(Place::Remote(Arc::new(remote)))
    }

    pub(crate) fn layout(layout: Arc<Layout>) -> Self {
        Self(Place::Layout(layout))
    }

    /// `host/repository`, or the directory.
    pub fn name(&self) -> String {
        match &self.0 {
            Place::Remote(remote) => remote.name(),
            Place::Layout(layout) => layout.name(),
        }
    }

    /// The registry's host with its port; `None` for a layout.
    pub fn host(&self) -> Option<&str> {
        match &self.0 {
            Place::Remote(remote) => Some(&remote.host),
            Place::Layout(_) => None,
        }
    }

    /// What `reference`, which must be of this repository, selects in it. Only a layout without a tag asks for I/O.
    ///
    /// # Errors
    /// A layout's reference without a tag or digest, where the layout doesn't hold exactly one entry.
    pub async fn selector(&self, reference: &Reference) -> Result<Selector, RegistryError> {
        match (reference.selector(), &self.0) {
            (Some(selector), _) => Ok(selector),
            (None, Place::Layout(layout)) => layout.only_entry().await,
            (None, Place::Remote(_)) => Err(ErrorKind::Request(format!("{reference} names a layout, not a registry"))
                .during(format!("looking into {}", self.name()))),
        }
    }

    /// Reads a manifest, verified by its digest; a tag's also by the digest that the registry announces.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind); [`RegistryError::is_not_found`] if there is none; one of more than
    /// [`MANIFEST_MAX`] bytes is refused.
    pub async fn manifest(&self, selector: &Selector) -> Result<Manifest, RegistryError> {
        match &self.0 {
            Place::Remote(remote) => remote.manifest(selector).await,
            Place::Layout(layout) => layout.manifest(selector).await,
        }
    }

    /// Writes a manifest; under a tag, that tag names it from then on. Its blobs must have been pushed before.
    ///
    /// # Errors
    /// `selector` is a digest other than that of `bytes`; otherwise see [`ErrorKind`](crate::ErrorKind).
    pub async fn put_manifest(
        &self,
        selector: &Selector,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let digest = Digest::of(&bytes);
        if matches!(selector, Selector::Digest(asked) if *asked != digest) {
            let problem = ErrorKind::Request(format!("the manifest's digest is {digest}, not {selector}"));
            return Err(problem.during(format!("pushing a manifest to {}", self.name())));
        }
        match &self.0 {
            Place::Remote(remote) => remote.put_manifest(selector, media_type, bytes).await,
            Place::Layout(layout) => layout.put_manifest(selector, media_type, bytes).await,
        }
    }

    /// Size of a blob in bytes; `None` if it isn't there.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        match &self.0 {
            Place::Remote(remote) => remote.blob_size(digest).await,
            Place::Layout(layout) => layout.blob_size(digest).await,
        }
    }

    /// A blob of this repository. `size` is the one that its descriptor tells; nothing is asked of the registry yet.
    pub fn blob(&self, digest: Digest, size: u64) -> Blob {
        Blob::new(self.0.clone(), digest, size)
    }

    /// Reads a whole blob of at most `max` bytes whose size nobody has told, and verifies its digest. `None` if it isn't
    /// there.
    ///
    /// # Errors
    /// As [`Blob::read_all`].
    pub async fn read_blob(&self, digest: Digest, max: u64) -> Result<Option<Bytes>, RegistryError> {
        if let Place::Remote(remote) = &self.0 {
            match Blob::read_unsized(remote, digest, max).await {
                Err(error) if error.is_not_found() => return Ok(None),
                // Of a server that sends it in chunks; it may tell when it is asked for nothing else.
                Err(error) if matches!(error.kind(), ErrorKind::Protocol { .. }) => {
                    tracing::debug!(%error, "asking for the size first");
                }
                read => return read.map(Some),
            }
        }
        match self.blob_size(&digest).await? {
            Some(size) => self.blob(digest, size).read_all(max).await.map(Some),
            None => Ok(None),
        }
    }

    /// Uploads a blob unless it's there. True if it was uploaded. The registry verifies the digest. A registry gets one of
    /// over 8 MiB in chunks, of which it's sent what it lacks after a break.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn push_blob(&self, digest: Digest, bytes: Bytes) -> Result<bool, RegistryError> {
        match &self.0 {
            Place::Remote(remote) => remote.push_blob(digest, bytes).await,
            Place::Layout(layout) => layout.push_bytes(digest, bytes).await,
        }
    }

    /// Brings a blob here, through this process, unless it's there. True if it was brought. A registry gets a small blob
    /// in one piece and others in chunks; after a break `from` is read again at the byte that the registry has come to,
    /// from the first one if it has lost the upload or takes no chunks. `on_progress` is told up to which byte the blob
    /// has been handed on, which may go back.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind); [`ErrorKind::Source`] if a large blob can't be read.
    pub async fn copy_blob(
        &self,
        from: &Blob,
        on_progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<bool, RegistryError> {
        let (digest, size) = (from.digest(), from.size());
        let source = Source::new(from.clone(), Arc::new(on_progress));
        match &self.0 {
            Place::Remote(remote) => remote.push_from(&source).await,
            Place::Layout(layout) => layout.push_stream(digest, source.upload(0..size)).await,
        }
    }

    /// Begins an upload of a blob whose digest is known only at its end.
    ///
    /// # Errors
    /// A layout can't be written to. A registry isn't asked yet.
    pub async fn upload(&self) -> Result<BlobUpload, RegistryError> {
        match &self.0 {
            Place::Remote(remote) => Ok(BlobUpload::to_registry(remote.clone())),
            Place::Layout(layout) => BlobUpload::to_layout(layout).await,
        }
    }

    /// Has the registry take a blob over from another of its repositories, without the bytes passing through here.
    /// False if that can't be done (other registry, no right to read `from`, no such function): then push it.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn mount_blob(&self, from: &Repository, digest: Digest, size: u64) -> Result<bool, RegistryError> {
        match (&self.0, &from.0) {
            (Place::Remote(to), Place::Remote(from)) => to.mount_blob(from, &digest).await,
            (Place::Layout(to), Place::Layout(from)) => to.link_blob(from, &digest, size).await,
            _ => Ok(false),
        }
    }

    /// All tags, in the registry's order.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind); [`RegistryError::is_not_found`] for a repository that doesn't exist.
    pub async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        match &self.0 {
            Place::Remote(remote) => remote.tags().await,
            Place::Layout(layout) => layout.tags().await,
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}
