//! What a reference stands for: its images by platform, and what is attached to them.
use crate::{
    error::{ErrorKind, RegistryError},
    media::{is_image_config, is_index, is_manifest},
    platform::PlatformName,
    reference::Reference,
    repository::{Manifest, Repository, Selector},
};
use clipper_format::digest::Digest;
use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType, Platform};
use std::collections::HashSet;

/// Manifests that an index may list: more are refused as hostile.
const MANIFESTS_MAX: usize = 1000;
/// Manifests that are read side by side.
const PARALLEL: usize = 8;
/// Largest image configuration that is read.
const CONFIG_MAX: u64 = 8 << 20;
/// Buildkit's name for the manifest that one of its attestations is about (moby/buildkit, docs/attestations).
const DOCKER_REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// What a reference stands for.
#[derive(Clone, Debug)]
pub struct ImageSet {
    /// The document that the reference names, byte for byte: an index, or the manifest of the only image.
    pub top: Manifest,
    /// The top document, if it's an index.
    pub index: Option<ImageIndex>,
    /// The images, in the index's order.
    pub images: Vec<PlatformImage>,
    /// What belongs to an image without being one, in the index's order.
    pub attachments: Vec<Attachment>,
}

/// The image for one platform.
#[derive(Clone, Debug)]
pub struct PlatformImage {
    /// The manifest's descriptor: the index's entry with all its annotations, or one made for a single manifest.
    pub descriptor: Descriptor,
    /// Digest of the manifest.
    pub digest: Digest,
    /// From the index's entry, else from the image's configuration.
    pub platform: Platform,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The manifest, byte for byte.
    pub source: Manifest,
}

/// A manifest that belongs to an image without being one: an attestation, a signature, an index of Clipper.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The index's entry.
    pub descriptor: Descriptor,
    /// Digest of the manifest.
    pub digest: Digest,
    /// The manifest that it's about, by its `subject` or by Buildkit's annotation.
    pub subject: Option<Digest>,
    /// `artifactType`, else the media type of the config (image-spec, manifest.md).
    pub artifact_type: String,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The manifest, byte for byte.
    pub source: Manifest,
}

/// One entry of an index, read.
enum Found {
    Image(Box<PlatformImage>),
    Attachment(Box<Attachment>),
    /// Something legal that isn't an image for a platform that is wanted.
    Other,
}

impl ImageSet {
    /// Reads everything that `reference`, which must be of `repository`, stands for.
    ///
    /// # Errors
    /// Those of [`Repository::manifest`]; documents that can't be understood; an index within an index.
    pub async fn resolve(repository: &Repository, reference: &Reference) -> Result<Self, RegistryError> {
        Self::resolve_where(repository, reference, None, true).await
    }

    /// As [`resolve`](Self::resolve), but of an index's images reads only the one for `platform`. Its attachments are
    /// all there.
    ///
    /// # Errors
    /// Also if there is no image for `platform`, naming those that there are.
    pub async fn resolve_platform(
        repository: &Repository,
        reference: &Reference,
        platform: &PlatformName,
    ) -> Result<Self, RegistryError> {
        Self::resolve_one(repository, reference, platform, true).await
    }

    /// As [`resolve_platform`](Self::resolve_platform), without reading what is attached to the image.
    ///
    /// # Errors
    /// As there.
    pub async fn resolve_bare(
        repository: &Repository,
        reference: &Reference,
        platform: &PlatformName,
    ) -> Result<Self, RegistryError> {
        Self::resolve_one(repository, reference, platform, false).await
    }

    async fn resolve_one(
        repository: &Repository,
        reference: &Reference,
        platform: &PlatformName,
        attached: bool,
    ) -> Result<Self, RegistryError> {
        let set = Self::resolve_where(repository, reference, Some(platform), attached).await?;
        if set.image(platform).is_some() {
            return Ok(set);
        }
        let listed = set.index.iter().flat_map(|i| i.manifests()).filter_map(|d| d.platform().as_ref());
        let read = set.images.iter().map(|i| &i.platform);
        let mut names: Vec<_> = listed.chain(read).map(PlatformName::of).filter(|p| !p.is_unknown()).collect();
        names.dedup();
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let problem = format!("it has no image for {platform}, but for {}", names.join(", "));
        Err(ErrorKind::Unsupported(problem).during(format!("resolving {reference}")))
    }

    /// The image for a platform: with its variant, if the name has one and an image has it; else the first one of its
    /// architecture.
    pub fn image(&self, platform: &PlatformName) -> Option<&PlatformImage> {
        let named = || self.images.iter().map(|image| (PlatformName::of(&image.platform), image));
        let exact = named().find(|(name, _)| name == platform);
        let alike = || named().find(|(name, _)| name.os == platform.os && name.architecture == platform.architecture);
        exact.or_else(|| if platform.variant.is_none() { alike() } else { None }).map(|(_, image)| image)
    }

    /// The attachments of one image.
    pub fn attachments_of(&self, image: &Digest) -> impl Iterator<Item = &Attachment> {
        self.attachments.iter().filter(move |a| a.subject.as_ref() == Some(image))
    }

    async fn resolve_where(
        repository: &Repository,
        reference: &Reference,
        wanted: Option<&PlatformName>,
        attached: bool,
    ) -> Result<Self, RegistryError> {
        let selector = repository.selector(reference).await?;
        let top = repository.manifest(&selector).await?;
        let resolving = || format!("resolving {reference}");
        if is_manifest(&top.media_type) {
            let descriptor = describe(&top).map_err(|kind| kind.during(resolving()))?;
            let mut set = Self { top: top.clone(), index: None, images: Vec::new(), attachments: Vec::new() };
            set.add(sort(repository, descriptor, top).await?);
            return Ok(set);
        }
        if !is_index(&top.media_type) {
            let problem = format!("{} is neither an image nor an index of images", top.media_type);
            return Err(ErrorKind::Unsupported(problem).during(resolving()));
        }
        let index: ImageIndex = serde_json::from_slice(&top.bytes)
            .map_err(|e| ErrorKind::Malformed(format!("the index can't be understood: {e}")).during(resolving()))?;
        if index.manifests().len() > MANIFESTS_MAX {
            let problem = format!("the index lists more than {MANIFESTS_MAX} manifests");
            return Err(ErrorKind::Unsupported(problem).during(resolving()));
        }
        // An index may list one manifest twice.
        let mut seen = HashSet::new();
        let entries = index.manifests().iter().filter(|d| seen.insert(d.digest().to_string()));
        let chosen: Vec<_> =
            entries.filter(|d| may_be_wanted(d, wanted) && (attached || !is_unknown(d))).cloned().collect();
        let found: Vec<Found> = stream::iter(chosen)
            .map(|descriptor| read_entry(repository, descriptor))
            .buffered(PARALLEL)
            .try_collect()
            .await?;
        let mut set = Self { top, index: Some(index), images: Vec::new(), attachments: Vec::new() };
        found.into_iter().for_each(|f| set.add(f));
        Ok(set)
    }

    fn add(&mut self, found: Found) {
        match found {
            Found::Image(image) => self.images.push(*image),
            Found::Attachment(attachment) => self.attachments.push(*attachment),
            Found::Other => {}
        }
    }
}

/// The digest of a descriptor.
///
/// # Errors
/// It isn't a sha256.
pub fn digest_of(descriptor: &Descriptor) -> Result<Digest, ErrorKind> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|e| ErrorKind::Malformed(format!("a descriptor of {}: {e}", descriptor.media_type())))
}

/// Whether an index's entry has to be read when one platform is wanted: other platforms' images needn't.
fn may_be_wanted(descriptor: &Descriptor, wanted: Option<&PlatformName>) -> bool {
    let (Some(wanted), Some(platform)) = (wanted, descriptor.platform()) else { return true };
    let name = PlatformName::of(platform);
    name.is_unknown() || (name.os == wanted.os && name.architecture == wanted.architecture)
}

async fn read_entry(repository: &Repository, descriptor: Descriptor) -> Result<Found, RegistryError> {
    let media_type = descriptor.media_type().to_string();
    let resolving = || format!("resolving manifest {} of {repository}", descriptor.digest());
    if is_index(&media_type) {
        let problem = "it's an index within an index, which Clipper doesn't follow: name the inner one by its digest";
        return Err(ErrorKind::Unsupported(problem.into()).during(resolving()));
    }
    if !is_manifest(&media_type) {
        // Unknown media types must not be an error (image-spec, image-index.md).
        tracing::debug!(media_type, "an index's entry is of no concern");
        return Ok(Found::Other);
    }
    let digest = digest_of(&descriptor).map_err(|kind| kind.during(resolving()))?;
    let source = match repository.manifest(&Selector::Digest(digest)).await {
        Err(error) if error.is_not_found() && is_unknown(&descriptor) => {
            // Tools that copy an image often leave its attestations behind.
            tracing::warn!(%error, "an attachment is missing");
            return Ok(Found::Other);
        }
        other => other?,
    };
    if source.media_type != media_type {
        let problem = format!("its index says that it's {media_type:?}, but it's {:?}", source.media_type);
        return Err(ErrorKind::Malformed(problem).during(resolving()));
    }
    if source.bytes.len() as u64 != descriptor.size() {
        let problem = format!("its index says {} bytes, but it has {}", descriptor.size(), source.bytes.len());
        return Err(ErrorKind::Malformed(problem).during(resolving()));
    }
    sort(repository, descriptor, source).await
}

fn is_unknown(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_some_and(|p| PlatformName::of(p).is_unknown())
}

/// Tells images from attachments.
async fn sort(repository: &Repository, descriptor: Descriptor, source: Manifest) -> Result<Found, RegistryError> {
    let digest = source.digest;
    let resolving = || format!("resolving manifest {digest} of {repository}");
    let manifest: ImageManifest = serde_json::from_slice(&source.bytes)
        .map_err(|e| ErrorKind::Malformed(format!("the manifest can't be understood: {e}")).during(resolving()))?;
    let config = manifest.config().media_type().to_string();
    let annotation = descriptor.annotations().as_ref().and_then(|a| a.get(DOCKER_REFERENCE_DIGEST));
    let about = match (manifest.subject(), annotation) {
        (Some(subject), _) => Some(subject.digest().to_string()),
        (None, annotation) => annotation.cloned(),
    };
    let is_image = is_image_config(&config) && manifest.artifact_type().is_none() && !is_unknown(&descriptor);
    if !is_image || annotation.is_some() {
        let subject = about.map(|d| d.parse::<Digest>()).transpose();
        let subject = subject.map_err(|e| ErrorKind::Malformed(format!("the subject: {e}")).during(resolving()))?;
        let artifact_type = manifest.artifact_type().as_ref().map_or(config, ToString::to_string);
        return Ok(Found::Attachment(Box::new(Attachment {
            descriptor,
            digest,
            subject,
            artifact_type,
            manifest,
            source,
        })));
    }
    let platform = match descriptor.platform() {
        Some(platform) => platform.clone(),
        None => config_platform(repository, manifest.config()).await?,
    };
    Ok(Found::Image(Box::new(PlatformImage { descriptor, digest, platform, manifest, source })))
}

/// The platform that an image's configuration tells (image-spec, config.md).
async fn config_platform(repository: &Repository, config: &Descriptor) -> Result<Platform, RegistryError> {
    let reading = || format!("reading the image configuration {} of {repository}", config.digest());
    let digest = digest_of(config).map_err(|kind| kind.during(reading()))?;
    let bytes = repository.blob(digest, config.size()).read_all(CONFIG_MAX).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| ErrorKind::Malformed(format!("it tells no platform: {e}")).during(reading()))
}

/// A descriptor for a manifest that no index describes.
fn describe(manifest: &Manifest) -> Result<Descriptor, ErrorKind> {
    let digest: oci_spec::image::Digest =
        manifest.digest.to_string().parse().map_err(|e| ErrorKind::Malformed(format!("{e}")))?;
    Ok(Descriptor::new(MediaType::from(manifest.media_type.as_str()), manifest.bytes.len() as u64, digest))
}
