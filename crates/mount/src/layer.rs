//! What names one indexed layer: its own digest, the index that describes it, and where both can be fetched.
use clipper_format::Digest;
use clipper_registry::Reference;
use std::sync::Arc;

/// One indexed layer of an image.
#[derive(Clone, Debug)]
pub struct LayerRef {
    /// The index blob that describes the layer.
    pub index: Digest,
    /// The layer blob, as the index knows it.
    pub layer: Digest,
    /// Repositories that hold the index, its checkpoints and the layer, best first. What is cached needs none.
    pub repositories: Vec<Reference>,
    /// The image that it was first met in, for logs and figures; without one, that is a repository.
    pub image: Option<Arc<str>>,
}

/// A layer as a certain index describes it: what the store counts references to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LayerId {
    pub index: Digest,
    pub layer: Digest,
}

impl LayerRef {
    /// What its image is called in logs and figures.
    pub fn image_name(&self) -> Arc<str> {
        let repository =
            || self.repositories.first().map_or_else(|| "unknown".into(), |first| first.to_string().into());
        self.image.clone().unwrap_or_else(repository)
    }

    pub(crate) fn id(&self) -> LayerId {
        LayerId { index: self.index, layer: self.layer }
    }
}
