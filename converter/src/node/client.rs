//! The connection to a daemon's control socket, and its failures in words.
use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use proto::control_client::ControlClient;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// The control API as compiled from `proto/`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod proto {
    tonic::include_proto!("clipper.control.v1");
}

/// A daemon that listens.
pub struct Daemon {
    /// The API.
    pub api: ControlClient<Channel>,
}

impl Daemon {
    /// Connects to the daemon that listens at `address`.
    ///
    /// # Errors
    /// If nobody does.
    pub async fn connect(address: &Path) -> Result<Self> {
        let first = UnixStream::connect(address).await.map_err(|error| {
            let what = match error.kind() {
                ErrorKind::NotFound => {
                    "there is no such socket: is clipper-snapshotter running, and is this its address (--address)?"
                }
                ErrorKind::ConnectionRefused => "nobody listens there: is clipper-snapshotter running?",
                ErrorKind::PermissionDenied => "only root may speak to the daemon",
                _ => "it can't be connected to",
            };
            anyhow!(error).context(format!("{}: {what}", address.display()))
        })?;
        drop(first);
        let path: PathBuf = address.to_owned();
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is never looked up.
        let channel = Endpoint::from_static("http://control").connect_with_connector(connect).await;
        let channel = channel.with_context(|| format!("{}: it doesn't answer", address.display()))?;
        Ok(Self { api: ControlClient::new(channel) })
    }
}

/// What the daemon answered instead of doing it.
pub fn refused(status: Status) -> anyhow::Error {
    match status.code() {
        Code::Unimplemented => anyhow!("the daemon doesn't know this: it is of another version"),
        _ => anyhow!("{}", status.message()),
    }
}
