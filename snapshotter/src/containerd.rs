//! Asking containerd where a layer came from: `ctr` tells its own content store, but not the snapshotter.
use clipper_format::Digest;
use clipper_registry::Reference;
use containerd_client::services::v1::{ListContentRequest, content_client::ContentClient};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};
use tonic::metadata::AsciiMetadataValue;

/// Longest wait for containerd, which waits for us meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Labels of a manifest that keep what it names from being collected (containerd, `images/image.go`,
/// `ChildGCLabels`): `….config`, `….l.0`, …
const CHILD: &str = "containerd.io/gc.ref.content.";
/// Selects manifests of images: only they have a configuration.
const MANIFESTS: &str = r#"labels."containerd.io/gc.ref.content.config""#;
/// Labels of content with the repositories at a host that it was pulled from, separated by commas (containerd,
/// `remotes/docker/handler.go`).
const SOURCE: &str = "containerd.io/distribution.source.";

/// containerd's content store.
pub struct ContentStore {
    address: PathBuf,
}

/// Why containerd couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// Nobody listens, or it speaks no gRPC.
    #[error("containerd at {address:?} cannot be reached; is `containerd_address` right?", address = .address.display())]
    Connect {
        /// containerd's socket.
        address: PathBuf,
        /// What went wrong.
        source: tonic::transport::Error,
    },
    /// It refused.
    #[error("containerd at {address:?} does not list its content", address = .address.display())]
    List {
        /// containerd's socket.
        address: PathBuf,
        /// What it said.
        source: Box<tonic::Status>,
    },
    /// It didn't answer in time.
    #[error("containerd at {address:?} did not answer within {} s", PATIENCE.as_secs(), address = .address.display())]
    Timeout {
        /// containerd's socket.
        address: PathBuf,
    },
}

impl ContentStore {
    /// The content store of the containerd that listens at `address`. Nothing is asked yet.
    pub fn new(address: PathBuf) -> Self {
        Self { address }
    }

    /// The repositories that images of `namespace` with a layer `layer` were pulled from.
    pub async fn repositories(&self, namespace: &str, layer: &Digest) -> Result<Vec<Reference>, LookupError> {
        let answer = tokio::time::timeout(PATIENCE, self.ask(namespace, layer)).await;
        answer.unwrap_or_else(|_| Err(LookupError::Timeout { address: self.address.clone() }))
    }

    async fn ask(&self, namespace: &str, layer: &Digest) -> Result<Vec<Reference>, LookupError> {
        let channel = containerd_client::connect(&self.address)
            .await
            .map_err(|source| LookupError::Connect { address: self.address.clone(), source })?;
        let refused = |status| LookupError::List { address: self.address.clone(), source: Box::new(status) };
        let mut request = tonic::Request::new(ListContentRequest { filters: vec![MANIFESTS.into()] });
        let namespace = AsciiMetadataValue::try_from(namespace)
            .map_err(|_| refused(tonic::Status::invalid_argument("the namespace is not ASCII")))?;
        request.metadata_mut().insert("containerd-namespace", namespace);
        let mut stream = ContentClient::new(channel).list(request).await.map_err(refused)?.into_inner();
        let mut found = BTreeSet::new();
        while let Some(message) = stream.message().await.map_err(refused)? {
            for info in &message.info {
                found.extend(sources(&info.labels, layer));
            }
        }
        Ok(found.into_iter().collect())
    }
}

/// The repositories in a manifest's labels, if it names `layer`.
fn sources(labels: &HashMap<String, String>, layer: &Digest) -> Vec<Reference> {
    let layer = layer.to_string();
    if !labels.iter().any(|(key, value)| key.starts_with(CHILD) && *value == layer) {
        return Vec::new();
    }
    let hosts = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)));
    let names = hosts.flat_map(|(host, value)| value.split(',').map(move |repository| format!("{host}/{repository}")));
    names
        .filter_map(|name| match name.parse() {
            Ok(reference) => Some(reference),
            Err(error) => {
                tracing::debug!(%error, "a content label names no repository");
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_from_manifests_that_name_the_layer() {
        let (layer, other) = (Digest::of(b"layer"), Digest::of(b"other"));
        let labels: HashMap<_, _> = [
            ("containerd.io/gc.ref.content.config", other.to_string()),
            ("containerd.io/gc.ref.content.l.0", layer.to_string()),
            ("containerd.io/distribution.source.localhost:5000", "app,copies/app".into()),
            ("containerd.io/distribution.source.docker.io", "library/app".into()),
            ("containerd.io/distribution.source.bad host", "x".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let mut found: Vec<_> = sources(&labels, &layer).iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found, ["docker.io/library/app", "localhost:5000/app", "localhost:5000/copies/app"]);
        assert_eq!(sources(&labels, &Digest::of(b"none")), []);
    }

    #[tokio::test]
    async fn an_absent_containerd_is_named() {
        let store = ContentStore::new("/nonexistent/containerd.sock".into());
        let error = store.repositories("default", &Digest::of(b"layer")).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/containerd.sock"), "{error}");
    }
}
