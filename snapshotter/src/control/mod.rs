//! The control API: what `clipper node` asks. It only translates: what there is to know and to do, the node knows.
mod prefetch;
mod views;

use crate::{
    error::with_causes,
    metrics::Readiness,
    node::{ImageView, NoSuchImage, Node, find},
    proto::clipper::control::v1::{
        self as api,
        control_server::{Control as ControlService, ControlServer},
    },
    side_socket::SideSocket,
    trees::layer_ref,
};
use clipper_mount::LayerRef;
use futures::stream::{self, BoxStream, StreamExt};
use std::{error::Error, io, path::Path, sync::Arc, time::Duration};
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, transport::Server};

/// Pause after a connection could not be taken, as when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a trace in one message: well below what a message may have.
const PART: usize = 256 << 10;

/// The control service.
pub struct Control {
    readiness: Readiness,
}

impl Control {
    /// Serves the node that `readiness` has, once it has one.
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness }
    }

    /// Serves at `path` until what is returned is dropped. If that isn't possible, the log says so: containers don't need it.
    pub fn serve(self, path: &Path) -> Option<AbortOnDropHandle<()>> {
        let socket = SideSocket::bind(path);
        let socket = socket.map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "the control API isn't served");
        });
        let socket = socket.ok()?;
        let serving = async move {
            // What one connection fails of is that one's own matter.
            let connections = stream::unfold(socket, |socket: SideSocket| async move {
                loop {
                    match socket.accept().await {
                        Ok(connection) => return Some((Ok::<_, io::Error>(connection), socket)),
                        Err(_) => tokio::time::sleep(PAUSE).await,
                    }
                }
            });
            let connections = connections.boxed();
            let serving = Server::builder().add_service(ControlServer::new(self)).serve_with_incoming(connections);
            if let Err(error) = serving.await {
                tracing::error!(%error, "the control API is not served any more");
            }
        };
        Some(AbortOnDropHandle::new(tokio::spawn(serving)))
    }

    fn node(&self) -> Result<Arc<Node>, Status> {
        self.readiness.node().map_err(|what| Status::unavailable(format!("the daemon isn't ready: {what}")))
    }

    async fn image(node: &Node, name: &str) -> Result<ImageView, Status> {
        find(node.images().await.map_err(internal)?, name).map_err(|error| match error {
            NoSuchImage::Unknown(_) => Status::not_found(error.to_string()),
            NoSuchImage::Ambiguous { .. } => Status::invalid_argument(error.to_string()),
        })
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    type PrefetchStream = BoxStream<'static, Result<api::PrefetchProgress, Status>>;
    type TraceStream = BoxStream<'static, Result<api::TracePart, Status>>;

    async fn status(&self, _: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let node = match self.readiness.node() {
            Ok(node) => node,
            Err(what) => {
                let version = env!("CARGO_PKG_VERSION").into();
                return Ok(Response::new(api::StatusResponse {
                    version,
                    not_ready: what.into(),
                    ..Default::default()
                }));
            }
        };
        let images = node.images().await.map_err(internal)?.len() as u64;
        Ok(Response::new(views::status(&node, node.figures().await, images)))
    }

    async fn images(&self, _: Request<api::ImagesRequest>) -> Result<Response<api::ImagesResponse>, Status> {
        let node = self.node()?;
        let mut images = Vec::new();
        for image in node.images().await.map_err(internal)? {
            let progress = node.store.progress(&layers(&image)).await.map_err(internal)?;
            images.push(views::image(image, &progress));
        }
        Ok(Response::new(api::ImagesResponse { images }))
    }

    async fn disk_usage(&self, _: Request<api::DiskUsageRequest>) -> Result<Response<api::DiskUsageResponse>, Status> {
        let node = self.node()?;
        let images = node.images().await.map_err(internal)?;
        let usage = node.store.disk_usage().await.map_err(internal)?;
        Ok(Response::new(views::disk_usage(usage, &images)))
    }

    async fn prefetch(&self, request: Request<api::PrefetchRequest>) -> Result<Response<Self::PrefetchStream>, Status> {
        let node = self.node()?;
        let image = Self::image(&node, &request.into_inner().image).await?;
        let open = node.store.open_layers(&layers(&image)).await.map_err(|error| {
            // Most likely an index that can't be had now.
            Status::unavailable(format!("{}: {}", image.name, with_causes(&error)))
        })?;
        tracing::info!(image = image.name, "an image is loaded whole, because somebody asked for it");
        Ok(Response::new(prefetch::run(image.name, open).boxed()))
    }

    async fn evict(&self, request: Request<api::EvictRequest>) -> Result<Response<api::EvictResponse>, Status> {
        let node = self.node()?;
        let api::EvictRequest { images: names, bytes, force } = request.into_inner();
        let mut wanted: Vec<LayerRef> = Vec::new();
        for name in &names {
            wanted.extend(layers(&Self::image(&node, name).await?));
        }
        let of = (!names.is_empty()).then_some(&wanted[..]);
        let bytes = if bytes == 0 { u64::MAX } else { bytes };
        let freed = node.store.evict(of, bytes, force).await.map_err(internal)?;
        tracing::info!(images = names.join(", "), freed, force, "evicted, because somebody asked for it");
        Ok(Response::new(api::EvictResponse { freed }))
    }

    async fn trace(&self, request: Request<api::TraceRequest>) -> Result<Response<Self::TraceStream>, Status> {
        let node = self.node()?;
        let image = Self::image(&node, &request.into_inner().image).await?;
        let Some(mounted) = image.mounted else {
            let text = format!("{} isn't mounted, so nothing was read of it: start a container first", image.name);
            return Err(Status::failed_precondition(text));
        };
        let touches = spawn_blocking(move || mounted.touches()).await.map_err(internal)?.map_err(internal)?;
        let text = touches.text();
        let parts: Vec<_> = text.chunks(PART).map(|part| Ok(api::TracePart { text: part.to_vec() })).collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }
}

/// The layers of an image, as the store calls them.
fn layers(image: &ImageView) -> Vec<LayerRef> {
    image.layers.iter().map(layer_ref).collect()
}

fn internal(error: impl Error + 'static) -> Status {
    Status::internal(with_causes(&error))
}
