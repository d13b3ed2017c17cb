//! Media types of manifests and layers: OCI's and Docker's.

/// An OCI image manifest (image-spec, manifest.md).
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index (image-spec, image-index.md).
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// An OCI image configuration (image-spec, config.md).
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The `Accept` of a request for a manifest.
pub(crate) const ACCEPTED_MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

/// Whether a media type is that of an index of manifests.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether a media type is that of a manifest with a config and layers.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether a media type is that of an image's configuration.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// How a layer of this media type is compressed; `None` if it isn't a layer that Clipper knows.
pub fn layer_compression(media_type: &str) -> Option<Compression> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Some(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

/// The media type of a manifest from its `Content-Type` and its own field. They must agree, and the document must be of
/// one kind only: else two readers could see two images in it (CVE-2021-41190).
pub(crate) fn manifest_media_type(content_type: Option<&str>, bytes: &[u8]) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: Option<serde_json::Value>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes).map_err(|e| format!("the manifest isn't a JSON object: {e}"))?;
    if shape.fs_layers.is_some() || shape.schema_version.is_some_and(|v| v == 1) {
        return Err("the manifest is of Docker's schema 1, which is obsolete: pull and push the image anew".into());
    }
    let own = shape.media_type;
    // Some registries and file servers don't know manifests and say something general.
    let told = content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase());
    let told = told.filter(|t| is_index(t) || is_manifest(t));
    if let (Some(own), Some(told)) = (&own, &told)
        && own != told
    {
        return Err(format!("the manifest says that it's {own:?}, but the registry calls it {told:?}"));
    }
    let (as_index, as_image) = (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some());
    if as_index && as_image {
        return Err("the manifest is both an index and an image".into());
    }
    let media_type = match own.or(told) {
        Some(media_type) => media_type,
        None if as_index => OCI_INDEX.into(),
        None if as_image => OCI_MANIFEST.into(),
        None => return Err("the document is neither an index nor an image manifest".into()),
    };
    if (is_index(&media_type) && as_image) || (is_manifest(&media_type) && as_index) {
        return Err(format!("the manifest says that it's {media_type:?} but has another form"));
    }
    Ok(media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_come_from_where_they_are_told() {
        let table = [
            (Some(OCI_INDEX), r#"{"manifests":[]}"#, Ok(OCI_INDEX)),
            (Some("application/json"), r#"{"manifests":[]}"#, Ok(OCI_INDEX)),
            (None, r#"{"config":{},"layers":[]}"#, Ok(OCI_MANIFEST)),
            (None, &format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","layers":[]}}"#), Ok(DOCKER_MANIFEST)),
            (Some(&format!("{DOCKER_INDEX}; charset=utf-8")), r#"{"manifests":[]}"#, Ok(DOCKER_INDEX)),
            (Some(OCI_MANIFEST), &format!(r#"{{"mediaType":"{OCI_INDEX}","manifests":[]}}"#), Err("but the registry")),
            (Some(OCI_MANIFEST), r#"{"manifests":[]}"#, Err("another form")),
            (Some(OCI_INDEX), r#"{"layers":[]}"#, Err("another form")),
            (Some(OCI_MANIFEST), r#"{"manifests":[],"layers":[]}"#, Err("both")),
            (Some(OCI_MANIFEST), r#"{"schemaVersion":1,"fsLayers":[]}"#, Err("schema 1")),
            (None, r"{}", Err("neither")),
            (None, r"[]", Err("JSON object")),
            (None, "<html>", Err("JSON object")),
        ];
        for (content_type, body, expected) in table {
            match (manifest_media_type(content_type, body.as_bytes()), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{body}"),
                (Err(got), Err(word)) => assert!(got.contains(word), "{body}: {got}"),
                (got, _) => panic!("{content_type:?} {body}: {got:?}"),
            }
        }
    }

    #[test]
    fn layers_are_told_by_their_media_types() {
        assert_eq!(layer_compression("application/vnd.docker.image.rootfs.diff.tar.gzip"), Some(Compression::Gzip));
        assert_eq!(layer_compression("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Compression::Zstd));
        assert_eq!(layer_compression("application/vnd.oci.image.layer.v1.tar"), Some(Compression::None));
        assert_eq!(layer_compression("application/octet-stream"), None);
    }
}
