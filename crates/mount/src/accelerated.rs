//! Finding what the converter made for an image: from a reference to its layers, their index and its checkpoints.
use crate::LayerRef;
use clipper_format::{
    Digest,
    index::{
        ANNOTATION_INDEX, ANNOTATION_LAYER, BlobRef, MEDIA_TYPE_CHECKPOINTS, MEDIA_TYPE_INDEX_ARTIFACT,
        MEDIA_TYPE_INDEX_LAYER,
    },
};
use clipper_registry::{
    Client, PlatformError, PlatformName, Reference, RegistryError,
    image::{ImageSet, PlatformImage, digest_of},
    oci_spec::image::{Descriptor, ImageManifest},
};
use std::collections::BTreeMap;

/// An accelerated image of one platform.
#[derive(Clone, Debug)]
pub struct AcceleratedImage {
    /// What was asked for.
    pub reference: Reference,
    /// What it was built for.
    pub platform: PlatformName,
    /// The image manifest.
    pub image: BlobRef,
    /// Its content.
    pub manifest: ImageManifest,
    /// The image's configuration.
    pub config: BlobRef,
    /// The index manifest, whose subject is the image manifest.
    pub index_manifest: BlobRef,
    /// The index blob.
    pub index: BlobRef,
    /// The checkpoints blob; an image without compressed layers needs none.
    pub checkpoints: Option<BlobRef>,
    /// The layers, bottom first.
    pub layers: Vec<AcceleratedLayer>,
    /// The image manifest's annotations; the converter leaves there what the image was made from.
    pub annotations: BTreeMap<String, String>,
}

/// A layer of an accelerated image.
#[derive(Clone, Debug)]
pub struct AcceleratedLayer {
    /// What the image manifest says of the layer's blob.
    pub descriptor: Descriptor,
    /// The blob's digest.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// What [`Store`](crate::Store) mounts.
    pub reference: LayerRef,
}

/// Why a reference doesn't lead to an accelerated image.
#[derive(Debug, thiserror::Error)]
pub enum AcceleratedError {
    /// The registry can't be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// An ordinary image.
    #[error("{reference} is not an accelerated image: `clipper convert {reference}` makes one")]
    NotAccelerated {
        /// What was asked for.
        reference: String,
    },
    /// Not the name of a platform.
    #[error(transparent)]
    PlatformName(#[from] PlatformError),
    /// No image for the platform.
    #[error("{reference} has no image for {platform}, only for {available}: choose one with --platform")]
    Platform {
        /// What was asked for.
        reference: String,
        /// The platform asked for.
        platform: String,
        /// What there is.
        available: String,
    },
    /// What the converter wrote was changed or copied in part.
    #[error("{reference} is not a valid accelerated image: {problem}; convert it again, or copy all of it")]
    Invalid {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        problem: String,
    },
}

/// Finds the accelerated image that `reference` leads to, for `platform` (`os/architecture[/variant]`), or else for this
/// machine's, or else the only one that there is.
///
/// # Errors
/// If the registry can't be read, the image isn't accelerated, or it has no image for the platform.
pub async fn resolve(
    client: &Client,
    reference: &Reference,
    platform: Option<&str>,
) -> Result<AcceleratedImage, AcceleratedError> {
    let repository = client.repository(reference)?;
    let set = match platform.map(str::parse::<PlatformName>).transpose()? {
        Some(platform) => ImageSet::resolve_platform(&repository, reference, &platform).await?,
        None => ImageSet::resolve(&repository, reference).await?,
    };
    let wanted = platform.map_or_else(|| Ok(PlatformName::host()), str::parse)?;
    let image = choose(reference, &set, &wanted, platform.is_none())?;
    let invalid = |problem: String| AcceleratedError::Invalid { reference: reference.to_string(), problem };
    let attachment = set
        .attachments_of(&image.digest)
        .find(|attachment| attachment.artifact_type == MEDIA_TYPE_INDEX_ARTIFACT)
        .ok_or_else(|| AcceleratedError::NotAccelerated { reference: reference.to_string() })?;
    let part = |media_type: &str| {
        let found = attachment.manifest.layers().iter().find(|layer| layer.media_type().to_string() == media_type);
        found.map(blob).transpose().map_err(invalid)
    };
    let index = part(MEDIA_TYPE_INDEX_LAYER)?.ok_or_else(|| invalid("its index manifest has no index".into()))?;
    let checkpoints = part(MEDIA_TYPE_CHECKPOINTS)?;
    let mut layers = Vec::new();
    for descriptor in image.manifest.layers() {
        layers.push(layer(descriptor, index.digest, reference).map_err(invalid)?);
    }
    Ok(AcceleratedImage {
        reference: reference.clone(),
        platform: PlatformName::of(&image.platform),
        image: blob(&image.descriptor).map_err(invalid)?,
        config: blob(image.manifest.config()).map_err(invalid)?,
        index_manifest: blob(&attachment.descriptor).map_err(invalid)?,
        index,
        checkpoints,
        layers,
        annotations: image.manifest.annotations().clone().unwrap_or_default().into_iter().collect(),
        manifest: image.manifest.clone(),
    })
}

/// The image for `wanted`; with `or_only`, also the only one that there is, whatever it is for.
fn choose<'s>(
    reference: &Reference,
    set: &'s ImageSet,
    wanted: &PlatformName,
    or_only: bool,
) -> Result<&'s PlatformImage, AcceleratedError> {
    if let Some(image) = set.image(wanted) {
        return Ok(image);
    }
    match &set.images[..] {
        [only] if or_only => Ok(only),
        images => {
            let names: Vec<String> = images.iter().map(|i| PlatformName::of(&i.platform).to_string()).collect();
            Err(AcceleratedError::Platform {
                reference: reference.to_string(),
                platform: wanted.to_string(),
                available: if names.is_empty() { "none".into() } else { names.join(", ") },
            })
        }
    }
}

fn layer(descriptor: &Descriptor, index: Digest, reference: &Reference) -> Result<AcceleratedLayer, String> {
    let BlobRef { digest, size } = blob(descriptor)?;
    // The annotations are what containerd hands to a snapshotter: they must say the same as the index manifest.
    let annotation = |name: &str| descriptor.annotations().as_ref().and_then(|all| all.get(name)).map(String::as_str);
    for (name, expected) in [(ANNOTATION_INDEX, index), (ANNOTATION_LAYER, digest)] {
        match annotation(name) {
            None => return Err(format!("layer {digest} has no annotation {name}")),
            Some(found) if found != expected.to_string() => {
                return Err(format!("layer {digest} has annotation {name} {found:?} instead of {expected}"));
            }
            Some(_) => {}
        }
    }
    let (repositories, image) = (vec![reference.clone()], Some(reference.to_string().into()));
    let reference = LayerRef { index, layer: digest, repositories, image };
    Ok(AcceleratedLayer { descriptor: descriptor.clone(), digest, size, reference })
}

fn blob(descriptor: &Descriptor) -> Result<BlobRef, String> {
    let digest = digest_of(descriptor).map_err(|error| error.to_string())?;
    Ok(BlobRef { digest, size: descriptor.size() })
}
