//! The Unix socket on which containerd speaks to the service.
use crate::{
    credentials::ImageProxy, notify, proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer,
    service::Service,
};
use anyhow::{Context, Result};
use std::{os::unix, time::Duration};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// How long requests under way may take to end, and clients to hang up, once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// A listening socket.
pub struct Socket {
    listener: UnixListener,
}

/// Why the service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The node is to be without it.
    Stop,
    /// Another daemon goes on.
    Leave,
}

impl Socket {
    /// One that the supervisor listens at.
    pub fn new(listener: unix::net::UnixListener) -> Result<Self> {
        listener.set_nonblocking(true).context("set up the socket")?;
        Ok(Self { listener: UnixListener::from_std(listener).context("set up the socket")? })
    }

    /// Serves snapshots to containerd, and images to kubelet, until SIGTERM or SIGINT or `leave` comes, then lets requests
    /// under way end.
    pub async fn serve(self, service: Service, images: ImageProxy, leave: oneshot::Receiver<()>) -> Result<Ending> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopped) = oneshot::channel::<()>();
        let services = Server::builder().add_service(SnapshotsServer::new(service)).add_service(images);
        let server = services.serve_with_incoming_shutdown(UnixListenerStream::new(self.listener), async {
            // A dropped sender means stop as well.
            let _ = stopped.await;
        });
        notify::ready();
        let mut server = std::pin::pin!(server);
        let ending = tokio::select! {
            ended = &mut server => {
                ended.context("serve containerd")?;
                return Ok(Ending::Stop);
            }
            _ = terminate.recv() => Ending::Stop,
            _ = interrupt.recv() => Ending::Stop,
            Ok(()) = leave => Ending::Leave,
        };
        tracing::info!(?ending, "stopping");
        let _ = stop.send(());
        match tokio::time::timeout(GRACE, server).await {
            Ok(ended) => ended.context("serve containerd")?,
            Err(_) => {
                tracing::info!("not everybody hung up within {} s: stopping nevertheless", GRACE.as_secs());
            }
        }
        Ok(ending)
    }
}
