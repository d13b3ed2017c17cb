//! Asking containerd what it has just pulled: where a layer came from, even where nobody tells the snapshotter, and
//! which layers an image has.
use clipper_format::Digest;
use clipper_registry::Reference;
use containerd_client::services::v1::{
    ListContentRequest, ListImagesRequest, ReadContentRequest, content_client::ContentClient,
    images_client::ImagesClient,
};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};
use tonic::{metadata::AsciiMetadataValue, transport::Channel};

/// Longest wait for containerd, which waits for us meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Labels of a manifest that keep what it names from being collected (containerd, `images/image.go`,
/// `ChildGCLabels`): `….config`, `….l.0`, …
const CHILD: &str = "containerd.io/gc.ref.content.";
/// Selects manifests of images: only they have a configuration.
const MANIFESTS: &str = r#"labels."containerd.io/gc.ref.content.config""#;
/// Labels of content with the repositories at a host that it was pulled from, separated by commas; the host's port is
/// left out (containerd, `remotes/docker/handler.go`).
const SOURCE: &str = "containerd.io/distribution.source.";

/// containerd's content store.
#[derive(Clone, Debug)]
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
    /// It doesn't have something, or not as its digest says.
    #[error("containerd at {address:?} does not give {digest}", address = .address.display())]
    Read {
        /// containerd's socket.
        address: PathBuf,
        /// What was asked for.
        digest: Digest,
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

    /// The repositories that images of `namespace` with a layer `layer` were pulled from, the likeliest first.
    ///
    /// containerd notes hosts without their ports. Which port is meant, `hosts` and the names of the namespace's images
    /// suggest; the port of the scheme comes last.
    pub async fn repositories(
        &self,
        namespace: &str,
        layer: &Digest,
        hosts: Vec<String>,
    ) -> Result<Vec<Reference>, LookupError> {
        let answer = tokio::time::timeout(PATIENCE, self.ask(namespace, layer, hosts)).await;
        answer.unwrap_or_else(|_| Err(LookupError::Timeout { address: self.address.clone() }))
    }

    /// The content `digest` of `namespace`, of at most `max` bytes.
    pub async fn read(&self, namespace: &str, digest: Digest, max: u64) -> Result<Vec<u8>, LookupError> {
        let answer = tokio::time::timeout(PATIENCE, self.fetch(namespace, digest, max)).await;
        answer.unwrap_or_else(|_| Err(LookupError::Timeout { address: self.address.clone() }))
    }

    async fn fetch(&self, namespace: &str, digest: Digest, max: u64) -> Result<Vec<u8>, LookupError> {
        let refused = |status| LookupError::Read { address: self.address.clone(), digest, source: Box::new(status) };
        let mut request = tonic::Request::new(ReadContentRequest { digest: digest.to_string(), ..Default::default() });
        request.metadata_mut().insert("containerd-namespace", ascii(namespace).map_err(refused)?);
        let mut stream = ContentClient::new(self.connect().await?).read(request).await.map_err(refused)?.into_inner();
        let mut bytes = Vec::new();
        while let Some(message) = stream.message().await.map_err(refused)? {
            bytes.extend(message.data);
            if bytes.len() as u64 > max {
                return Err(refused(tonic::Status::resource_exhausted(format!("it has more than {max} bytes"))));
            }
        }
        if Digest::of(&bytes) != digest {
            return Err(refused(tonic::Status::data_loss("its digest is another")));
        }
        Ok(bytes)
    }

    async fn connect(&self) -> Result<Channel, LookupError> {
        let connected = containerd_client::connect(&self.address).await;
        connected.map_err(|source| LookupError::Connect { address: self.address.clone(), source })
    }

    async fn ask(&self, namespace: &str, layer: &Digest, hosts: Vec<String>) -> Result<Vec<Reference>, LookupError> {
        let channel = self.connect().await?;
        let refused = |status| LookupError::List { address: self.address.clone(), source: Box::new(status) };
        let namespace = ascii(namespace).map_err(refused)?;
        let mut manifests = tonic::Request::new(ListContentRequest { filters: vec![MANIFESTS.into()] });
        manifests.metadata_mut().insert("containerd-namespace", namespace.clone());
        let mut stream = ContentClient::new(channel.clone()).list(manifests).await.map_err(refused)?.into_inner();
        let mut found = BTreeSet::new();
        while let Some(message) = stream.message().await.map_err(refused)? {
            for info in &message.info {
                found.extend(sources(&info.labels, layer));
            }
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut images = tonic::Request::new(ListImagesRequest::default());
        images.metadata_mut().insert("containerd-namespace", namespace);
        let images = ImagesClient::new(channel).list(images).await.map_err(refused)?.into_inner().images;
        let named = images.iter().filter_map(|image| Some(image.name.split_once('/')?.0.to_owned()));
        Ok(with_ports(&found, &hosts.into_iter().chain(named).collect()))
    }
}

/// A namespace as gRPC metadata.
fn ascii(namespace: &str) -> Result<AsciiMetadataValue, tonic::Status> {
    AsciiMetadataValue::try_from(namespace).map_err(|_| tonic::Status::invalid_argument("the namespace is not ASCII"))
}

/// The repositories in a manifest's labels, if it names `layer`: hosts without ports, and paths.
fn sources(labels: &HashMap<String, String>, layer: &Digest) -> Vec<(String, String)> {
    let layer = layer.to_string();
    if !labels.iter().any(|(key, value)| key.starts_with(CHILD) && *value == layer) {
        return Vec::new();
    }
    let hosts = labels.iter().filter_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)));
    hosts.flat_map(|(host, value)| value.split(',').map(|path| (host.to_owned(), path.to_owned()))).collect()
}

/// Each repository at those of `hosts` that are its host with a port, then as it is.
fn with_ports(repositories: &BTreeSet<(String, String)>, hosts: &BTreeSet<String>) -> Vec<Reference> {
    let at = |host: &str, path: &str| match format!("{host}/{path}").parse() {
        Ok(reference) => Some(reference),
        Err(error) => {
            tracing::debug!(%error, "a content label names no repository");
            None
        }
    };
    let ported = repositories.iter().flat_map(|(host, path)| {
        // An IPv6 address is noted without its brackets.
        let bare = move |name: &str| name.trim_matches(['[', ']']) == host;
        let with_port = hosts.iter().filter(move |known| known.rsplit_once(':').is_some_and(|(name, _)| bare(name)));
        with_port.filter_map(move |known| at(known, path))
    });
    ported.chain(repositories.iter().filter_map(|(host, path)| at(host, path))).collect()
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
            ("containerd.io/distribution.source.localhost", "app,copies/app".into()),
            ("containerd.io/distribution.source.docker.io", "library/app".into()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        let mut found = sources(&labels, &layer);
        found.sort();
        let expected = [("docker.io", "library/app"), ("localhost", "app"), ("localhost", "copies/app")];
        assert_eq!(found, expected.map(|(host, path)| (host.to_owned(), path.to_owned())));
        assert_eq!(sources(&labels, &Digest::of(b"none")), []);
    }

    #[test]
    fn ports_come_from_the_hosts_that_are_known() {
        let owned = |(host, path): (&str, &str)| (host.to_owned(), path.to_owned());
        let pulled = [("bad host", "x"), ("docker.io", "library/app"), ("r.example", "app"), ("::1", "six")];
        let repositories = pulled.map(owned).into();
        let hosts =
            ["r.example", "r.example:5000", "r.example:6000", "other:7000", "[::1]:80"].map(str::to_owned).into();
        let names: Vec<_> = with_ports(&repositories, &hosts).iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            ["[::1]:80/six", "r.example:5000/app", "r.example:6000/app", "docker.io/library/app", "r.example/app"]
        );
    }

    #[tokio::test]
    async fn an_absent_containerd_is_named() {
        let store = ContentStore::new("/nonexistent/containerd.sock".into());
        let error = store.repositories("default", &Digest::of(b"layer"), Vec::new()).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/containerd.sock"), "{error}");
    }
}
