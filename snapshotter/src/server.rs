//! The Unix socket on which containerd speaks to the service.
use crate::{proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer, service::Service};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// How long requests under way may take to end, and clients to hang up, once the daemon is told to stop.
const GRACE: Duration = Duration::from_secs(3);

/// A listening socket; its file goes when this is dropped.
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Listens at `path`. A socket file that nobody listens at is replaced.
    pub async fn bind(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.with_context(|| format!("create {}", parent.display()))?;
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("look at {}", path.display())),
            Ok(meta) if !meta.file_type().is_socket() => {
                bail!("{} exists and is not a socket: choose another address", path.display())
            }
            Ok(_) => {
                if UnixStream::connect(path).await.is_ok() {
                    bail!("another program listens at {}: stop it first or choose another address", path.display());
                }
                fs::remove_file(path).with_context(|| format!("remove the stale {}", path.display()))?;
            }
        }
        let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .with_context(|| format!("restrict {}", path.display()))?;
        Ok(Self { path: path.into(), listener: Some(listener) })
    }

    /// Serves until SIGTERM or SIGINT, then lets requests under way end.
    pub async fn serve(mut self, service: Service) -> Result<()> {
        let listener = self.listener.take().context("the socket serves already")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder().add_service(SnapshotsServer::new(service)).serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            async {
                // A dropped sender means stop as well.
                let _ = stopped.await;
            },
        );
        let mut server = std::pin::pin!(server);
        tokio::select! {
            ended = &mut server => return ended.context("serve containerd"),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        let _ = stop.send(());
        match tokio::time::timeout(GRACE, server).await {
            Ok(ended) => ended.context("serve containerd"),
            Err(_) => {
                tracing::info!("not everybody hung up within {} s: stopping nevertheless", GRACE.as_secs());
                Ok(())
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: a stale socket is replaced at the next start anyway.
        let _ = fs::remove_file(&self.path);
    }
}
