//! What the labels of a layer that containerd prepares say about mounting it instead.
use crate::{
    hints::hint,
    snapshot::{LABEL_SNAPSHOT_REF, Labels},
};
use clipper_format::{
    Digest,
    index::{ANNOTATION_INDEX, ANNOTATION_LAYER},
};
use clipper_registry::{Reference, RegistryReference};

/// Label with the image's reference, set by containerd's CRI plugin with snapshot annotations, by its transfer
/// service, and by `clipper pull` (containerd, `pkg/snapshotters/annotations.go`).
pub const LABEL_IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";

/// Label with a layer's digest, set by the same.
const LABEL_LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// What lines of the log about a snapshot with these labels are within: it says which image and layer, if they tell.
pub fn about(labels: &Labels) -> tracing::Span {
    let label = |key: &str| labels.get(key).map(String::as_str);
    let (image, layer) = (label(LABEL_IMAGE_REF), label(ANNOTATION_LAYER).or_else(|| label(LABEL_LAYER_DIGEST)));
    match (image, layer) {
        (None, None) => tracing::Span::none(),
        _ => tracing::error_span!("prepare", image, layer),
    }
}

/// A layer that can be mounted instead of unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The chain ID that it is going to have.
    pub chain: Digest,
    /// The index blob that describes it.
    pub index: Digest,
    /// The layer blob.
    pub layer: Digest,
    /// The image it is pulled for, if the labels tell.
    pub image: Option<Reference>,
    /// Where it is by what the image itself says.
    pub hint: Option<RegistryReference>,
}

impl Wanted {
    /// What `labels` ask for; nothing if the layer isn't one of an accelerated image, or if they make no sense.
    pub fn from_labels(labels: &Labels) -> Option<Self> {
        let digest = |key: &str| {
            let text = labels.get(key)?;
            match text.parse::<Digest>() {
                Ok(digest) => Some(digest),
                Err(error) => {
                    tracing::warn!(label = key, %error, "a layer's label makes no sense: unpacking it");
                    None
                }
            }
        };
        // In this order, so that nothing is said about layers that aren't ours.
        let index = digest(ANNOTATION_INDEX)?;
        let (layer, chain) = (digest(ANNOTATION_LAYER)?, digest(LABEL_SNAPSHOT_REF)?);
        let image = labels.get(LABEL_IMAGE_REF).and_then(|text| match text.parse() {
            Ok(reference) => Some(reference),
            Err(error) => {
                tracing::warn!(%error, "asking containerd instead where the image came from");
                None
            }
        });
        Some(Self { chain, index, layer, image, hint: hint(labels) })
    }
}

/// The name of the committed snapshot of a remote layer with chain ID `chain` on `parent`.
///
/// It is the bare chain ID, so that all of containerd's namespaces share it, whose own snapshots have names such as
/// `k8s.io/7/sha256:…`. On a parent with such a name the layer belongs to that namespace.
pub fn snapshot_name(chain: &str, parent: Option<&str>) -> String {
    match parent {
        Some(parent) if parent.parse::<Digest>().is_err() => format!("{chain}/{parent}"),
        _ => chain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn only_layers_with_all_digests_are_wanted() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let (at, bt, ct) = (a.to_string(), b.to_string(), c.to_string());
        let ours = [(ANNOTATION_INDEX, at.as_str()), (ANNOTATION_LAYER, &bt), (LABEL_SNAPSHOT_REF, &ct)];
        let mut wanted = Wanted { index: a, layer: b, chain: c, image: None, hint: None };
        assert_eq!(Wanted::from_labels(&labels(&ours)), Some(wanted.clone()));
        for missing in 0..3 {
            let mut some = ours.to_vec();
            some.remove(missing);
            assert_eq!(Wanted::from_labels(&labels(&some)), None);
        }
        let mut malformed = labels(&ours);
        malformed.insert(ANNOTATION_LAYER.into(), "sha256:0".into());
        assert_eq!(Wanted::from_labels(&malformed), None);

        let mut with_image = labels(&ours);
        with_image.insert(LABEL_IMAGE_REF.into(), "registry.example/app:1".into());
        wanted.image = Some("registry.example/app:1".parse().unwrap());
        assert_eq!(Wanted::from_labels(&with_image), Some(wanted));
    }

    #[test]
    fn names_are_shared_unless_the_parent_belongs_to_a_namespace() {
        let chain = Digest::of(b"c").to_string();
        let parent = Digest::of(b"p").to_string();
        assert_eq!(snapshot_name(&chain, None), chain);
        assert_eq!(snapshot_name(&chain, Some(&parent)), chain);
        let own = format!("k8s.io/7/{parent}");
        let on_own = snapshot_name(&chain, Some(&own));
        assert_eq!(on_own, format!("{chain}/{own}"));
        assert_eq!(snapshot_name(&parent, Some(&on_own)), format!("{parent}/{on_own}"));
    }
}
