//! Kubelet's pulls by way of this daemon: the CRI's image service, passed on to containerd message by message, with a look
//! at the credentials that kubelet sends along, which are those of the pod's pull secrets.
//!
//! Messages are passed on as they are, whatever version of the CRI they are of; of a pull alone the beginning is
//! understood (k8s.io/cri-api, runtime/v1, `PullImageRequest`).
use super::{
    pattern::Pattern,
    vault::{Origin, Vault},
};
use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes};
use clipper_registry::{Credential, Reference, Subject};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use hyper_util::rt::TokioIo;
use prost::Message;
use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    task::{self, Poll},
};
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::{self, uri::PathAndQuery},
    server::{NamedService, StreamingService},
    transport::{Channel, Endpoint, Uri},
};

/// Bytes of a message: a node may have many images to list.
const MESSAGE_MAX: usize = 64 << 20;
/// The call that carries credentials.
const PULL: &str = "/runtime.v1.ImageService/PullImage";

/// The image service of a containerd.
#[derive(Clone, Debug)]
pub struct ImageProxy {
    containerd: Channel,
    vault: Arc<Vault>,
}

impl ImageProxy {
    /// A proxy for the containerd that listens at the socket `containerd`; it needn't listen yet.
    pub fn new(containerd: &Path, vault: Arc<Vault>) -> Result<Self> {
        let path: PathBuf = containerd.into();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is of no use over a socket.
        let endpoint = Endpoint::try_from("http://containerd").context("set up the connection to containerd")?;
        Ok(Self { containerd: endpoint.connect_with_connector_lazy(connect), vault })
    }

    async fn pass(self, path: PathAndQuery, request: Request<Streaming<Bytes>>) -> Result<Response<Answers>, Status> {
        let (metadata, extensions, mut messages) = request.into_parts();
        let first = messages.next().await.transpose()?;
        let told = match &first {
            Some(first) if path == PULL => self.remember(first).await,
            _ => None,
        };
        let messages = futures::stream::iter(first).chain(messages.filter_map(|message| async { message.ok() }));
        let mut containerd = tonic::client::Grpc::new(self.containerd)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let unavailable = |error| Status::unavailable(format!("containerd can't be reached: {error}"));
        containerd.ready().await.map_err(unavailable)?;
        let request = Request::from_parts(metadata, extensions, messages);
        let answer = containerd.streaming(request, path, Raw).await;
        let mut answers = match answer {
            Ok(response) => response,
            Err(status) => {
                if let Some(told) = told {
                    told.take_back().await;
                }
                return Err(status);
            }
        };
        // Whether a pull has failed shows where its answer should be.
        let (metadata, extensions) = (answers.metadata().clone(), answers.extensions().clone());
        let first = answers.get_mut().next().await;
        if let (Some(told), Some(Err(_)) | None) = (told, &first) {
            told.take_back().await;
        }
        let answers = futures::stream::iter(first).chain(answers.into_inner()).boxed();
        Ok(Response::from_parts(metadata, answers, extensions))
    }

    /// Keeps the credentials of a pull, for the time that it takes and if it succeeds.
    async fn remember(&self, message: &Bytes) -> Option<Told> {
        let request = PullImageRequest::decode(message.clone()).ok()?;
        let (subject, credential) = request.credential()?;
        let before = self.vault.put(Origin::Cri, &subject, credential.clone()).await;
        Some(Told { vault: Arc::clone(&self.vault), subject, credential, before })
    }
}

/// A credential that may turn out to be none.
struct Told {
    vault: Arc<Vault>,
    subject: Subject,
    credential: Credential,
    before: Option<Credential>,
}

impl Told {
    /// Puts the one before in its place, unless another pull has told one meanwhile.
    async fn take_back(self) {
        self.vault.take_back(Origin::Cri, &self.subject, &self.credential, self.before).await;
    }
}

type Answers = BoxStream<'static, Result<Bytes, Status>>;

impl NamedService for ImageProxy {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl tower::Service<http::Request<Body>> for ImageProxy {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let proxy = self.clone();
        async move {
            let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
            let mut server = tonic::server::Grpc::new(Raw)
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX);
            // As a stream of messages each way: that fits every kind of call.
            Ok(server.streaming(Call { proxy, path }, request).await)
        }
        .boxed()
    }
}

struct Call {
    proxy: ImageProxy,
    path: PathAndQuery,
}

impl StreamingService<Bytes> for Call {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        self.proxy.clone().pass(self.path.clone(), request).boxed()
    }
}

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What is understood of a pull.
#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
    /// Base64 of `user:password`.
    #[prost(string, tag = "3")]
    auth: String,
    #[prost(string, tag = "4")]
    server_address: String,
    #[prost(string, tag = "5")]
    identity_token: String,
    #[prost(string, tag = "6")]
    registry_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthConfig(…)")
    }
}

impl PullImageRequest {
    /// The credential that it carries, and for which repository; read as containerd does (containerd,
    /// `internal/cri/server/images/image_pull.go`, `ParseAuth`).
    fn credential(self) -> Option<(Subject, Credential)> {
        let Ok(Reference::Registry(image)) = full_name(&self.image?.image).parse() else { return None };
        let (subject, auth) = (Subject::new(&image.host, &image.repository), self.auth?);
        if !auth.server_address.is_empty() && !Pattern::parse(&auth.server_address)?.matches(&subject) {
            return None;
        }
        let credential = if !auth.username.is_empty() || !auth.password.is_empty() {
            Credential::Password { user: auth.username, password: auth.password }
        } else if !auth.identity_token.is_empty() {
            Credential::Identity(auth.identity_token)
        } else if !auth.auth.is_empty() {
            let text = String::from_utf8(STANDARD.decode(auth.auth).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            Credential::Password { user: user.into(), password: password.trim_end_matches('\0').into() }
        } else if !auth.registry_token.is_empty() {
            Credential::Token(auth.registry_token)
        } else {
            return None;
        };
        Some((subject, credential))
    }
}

/// An image's name with its host, where kubelet leaves that out as docker does.
fn full_name(image: &str) -> String {
    match image.split_once('/') {
        None => format!("docker.io/library/{image}"),
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.into(),
        Some(_) => format!("docker.io/{image}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(image: &str, auth: AuthConfig) -> Option<(Subject, Credential)> {
        PullImageRequest { image: Some(ImageSpec { image: image.into() }), auth: Some(auth) }.credential()
    }

    fn password(user: &str, password: &str) -> Credential {
        Credential::Password { user: user.into(), password: password.into() }
    }

    #[test]
    fn credentials_of_pulls_are_read_as_containerd_reads_them() {
        let subject = Subject::new("r.example:5000", "team/app");
        let image = "r.example:5000/team/app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let login = AuthConfig { username: "me".into(), password: "hush".into(), ..AuthConfig::default() };
        let base64 = AuthConfig { auth: "bWU6czplYw==".into(), ..AuthConfig::default() };
        let identity = AuthConfig { identity_token: "id".into(), ..AuthConfig::default() };
        let token = AuthConfig { registry_token: "t".into(), ..AuthConfig::default() };
        for (auth, credential) in [
            (login.clone(), password("me", "hush")),
            (base64, password("me", "s:ec")),
            (identity, Credential::Identity("id".into())),
            (token, Credential::Token("t".into())),
        ] {
            assert_eq!(pull(image, auth), Some((subject.clone(), credential)));
        }
        for (address, fits) in [("https://r.example:5000", true), ("r.example:5000", true), ("r.example", false)] {
            let auth = AuthConfig { server_address: address.into(), ..login.clone() };
            assert_eq!(pull(image, auth).is_some(), fits, "{address}");
        }
        for (image, repository) in [("busybox", "library/busybox"), ("me/app:1", "me/app")] {
            assert_eq!(pull(image, login.clone()).unwrap().0, Subject::new("docker.io", repository));
        }
        assert_eq!(pull(image, AuthConfig::default()), None);
        assert_eq!(pull("r.example/not an image", login.clone()), None);
        assert!(!format!("{login:?}").contains("hush"));
    }
}
