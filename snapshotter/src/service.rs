//! The gRPC edge: containerd's messages to the lifecycle's types and back, and errors to status codes.
use crate::{
    credentials::Told,
    error::Error,
    filters::Filters,
    lifecycle::{Lifecycle, NewSnapshot},
    proto::containerd::{
        services::snapshots::v1::{self as api, snapshots_server::Snapshots},
        types,
    },
    snapshot::{Info, Kind, Mount, Timestamp},
    wanted,
};
use futures::stream::{self, BoxStream, StreamExt};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tracing::Instrument;

/// Snapshots in one message of a List.
const BATCH: usize = 100;

/// The snapshots service.
pub struct Service {
    lifecycle: Arc<Lifecycle>,
    told: Told,
}

impl Service {
    /// Serves `lifecycle`; credentials in labels are for `told` alone.
    pub fn new(lifecycle: Arc<Lifecycle>, told: Told) -> Self {
        Self { lifecycle, told }
    }

    /// Does `work` for the request `call` about `snapshot`, logs what came of it, and makes a status of an error. Work
    /// once begun runs to its end even if containerd hangs up: nothing is left half done.
    async fn answer<T, F>(
        &self,
        call: &'static str,
        snapshot: String,
        work: impl FnOnce(Arc<Lifecycle>, String) -> F,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let result = tokio::spawn(work(Arc::clone(&self.lifecycle), snapshot.clone()).in_current_span());
        let result = result.await.unwrap_or(Err(Error::Interrupted));
        match &result {
            Ok(_) => tracing::debug!(call, snapshot, "done"),
            // Both are part of containerd's ordinary conversation.
            Err(error @ (Error::NotFound(_) | Error::AlreadyExists(_))) => {
                tracing::debug!(call, snapshot, %error, "answered");
            }
            Err(error) => tracing::warn!(call, snapshot, %error, "failed"),
        }
        result.map_err(status)
    }
}

#[tonic::async_trait]
impl Snapshots for Service {
    type ListStream = BoxStream<'static, Result<api::ListSnapshotsResponse, Status>>;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let namespace = namespace(request.metadata());
        let api::PrepareSnapshotRequest { key, parent, mut labels, .. } = request.into_inner();
        self.told.take(&mut labels).await;
        let about = wanted::about(&labels);
        let new = NewSnapshot { kind: Kind::Active, key: key.clone(), parent: parent_name(parent), labels, namespace };
        let prepared = self.answer("prepare", key, |all, _| async move { all.prepare(new).await });
        let mounts = prepared.instrument(about).await?;
        Ok(Response::new(api::PrepareSnapshotResponse { mounts: mounts_message(mounts) }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let namespace = namespace(request.metadata());
        let api::ViewSnapshotRequest { key, parent, mut labels, .. } = request.into_inner();
        self.told.take(&mut labels).await;
        let new = NewSnapshot { kind: Kind::View, key: key.clone(), parent: parent_name(parent), labels, namespace };
        let mounts = self.answer("view", key, |all, _| async move { all.prepare(new).await }).await?;
        Ok(Response::new(api::ViewSnapshotResponse { mounts: mounts_message(mounts) }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Result<Response<api::MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.answer("mounts", key, |all, key| async move { all.mounts(key).await }).await?;
        Ok(Response::new(api::MountsResponse { mounts: mounts_message(mounts) }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let api::CommitSnapshotRequest { name, key, mut labels, .. } = request.into_inner();
        self.told.take(&mut labels).await;
        self.answer("commit", key, |all, key| async move { all.commit(key, name, labels).await }).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.answer("remove", key, |all, key| async move { all.remove(key).await }).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let info = self.answer("stat", key, |all, key| async move { all.stat(key).await }).await?;
        Ok(Response::new(api::StatSnapshotResponse { info: Some(info_message(info)) }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let api::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let Some(mut info) = info else {
            return Err(Status::invalid_argument("an update must tell the snapshot's info"));
        };
        self.told.take(&mut info.labels).await;
        let paths = update_mask.unwrap_or_default().paths;
        let info = self
            .answer("update", info.name, |all, key| async move { all.update(key, info.labels, paths).await })
            .await?;
        Ok(Response::new(api::UpdateSnapshotResponse { info: Some(info_message(info)) }))
    }

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)
            .map_err(|error| status(Error::InvalidArgument(error.to_string())))?;
        let infos = self.answer("list", String::new(), |all, _| async move { all.list(filters).await }).await?;
        let batches =
            stream::iter(infos).map(info_message).chunks(BATCH).map(|info| Ok(api::ListSnapshotsResponse { info }));
        Ok(Response::new(batches.boxed()))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Result<Response<api::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let usage = self.answer("usage", key, |all, key| async move { all.usage(key).await }).await?;
        let count = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse { size: count(usage.size), inodes: count(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<api::CleanupRequest>) -> Result<Response<()>, Status> {
        self.answer("cleanup", String::new(), |all, _| async move { all.cleanup().await }).await?;
        Ok(Response::new(()))
    }
}

/// containerd's namespace of a request (containerd, `namespaces/grpc.go`).
fn namespace(metadata: &MetadataMap) -> Option<String> {
    metadata.get("containerd-namespace")?.to_str().ok().map(str::to_owned)
}

/// The name of a parent; empty for none.
fn parent_name(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The status code that containerd turns into the error class again (containerd, `errdefs/grpc.go`).
fn status(error: Error) -> Status {
    let code = match &error {
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::FailedPrecondition(_) => Code::FailedPrecondition,
        Error::InvalidArgument(_) => Code::InvalidArgument,
        Error::Unavailable(_) => Code::Unavailable,
        Error::Interrupted => Code::Aborted,
        Error::Database(_) | Error::CorruptRecord { .. } | Error::Io { .. } => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn mounts_message(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let message = |mount: Mount| types::Mount {
        r#type: mount.kind.into(),
        source: mount.source.display().to_string(),
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(message).collect()
}

fn info_message(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    let time = |Timestamp(seconds, nanos)| {
        Some(prost_types::Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() })
    };
    api::Info {
        name: info.name,
        parent: info.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: time(info.created),
        updated_at: time(info.updated),
        labels: info.labels,
    }
}
