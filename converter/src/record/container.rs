//! One container of containerd's: its snapshot, recorded by the snapshotter, and its task.
use crate::cli::{RecordArgs, RecordDriver};
use crate::pull::{Pulled, explain, nanoseconds};
use anyhow::{Context, Result};
use containerd_client::services::v1::{
    Container as Description, CreateContainerRequest, CreateRequest, CreateTaskRequest, DeleteContainerRequest,
    DeleteRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
    container::Runtime,
    containers_client::ContainersClient,
    leases_client::LeasesClient,
    snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
    tasks_client::TasksClient,
};
use containerd_client::types::Mount;
use prost_types::Any;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use tonic::Request;
use tonic::transport::Channel;

/// The type of a runtime spec in a container's description (containerd, `oci/spec.go`).
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Label by which the snapshotter knows that a snapshot's reads are to be recorded.
const LABEL_TRACE: &str = "containerd.io/snapshot/clipper.trace";
/// Label by which it knows with which driver.
const LABEL_TRACE_DRIVER: &str = "containerd.io/snapshot/clipper.trace-driver";
const SIGKILL: u32 = 9;

/// How a container's snapshot is recorded.
#[derive(Clone, Copy)]
pub struct Recording<'a> {
    /// The file that the snapshotter writes the trace to.
    pub trace: &'a Path,
    /// What the container's mount is made with.
    pub driver: RecordDriver,
}

/// The snapshotter gave no snapshot, and a mount by this driver was asked for.
#[derive(Debug, thiserror::Error)]
#[error("no snapshot to be recorded with the driver {}", .0.name())]
pub struct NotPrepared(RecordDriver);

/// A container, to be removed with [`Container::remove`].
pub struct Container {
    channel: Channel,
    namespace: String,
    snapshotter: String,
    id: String,
    mounts: Vec<Mount>,
    state: State,
}

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Leased,
    Prepared,
    Created,
    Tasked,
}

/// How a container ended.
pub struct Ended {
    /// Its exit status.
    pub status: u32,
}

impl Container {
    /// Prepares the snapshot, and describes the container.
    pub async fn create(args: &RecordArgs, pulled: &Pulled, recording: Recording<'_>, spec: Value) -> Result<Self> {
        let channel = containerd_client::connect(&args.containerd.address)
            .await
            .with_context(|| format!("containerd at {}", args.containerd.address.display()))?;
        let id = format!("clipper-record-{}-{}", std::process::id(), nanoseconds());
        let (namespace, snapshotter) = (args.containerd.namespace.clone(), args.containerd.snapshotter.clone());
        let mut container = Self { channel, namespace, snapshotter, id, mounts: Vec::new(), state: State::Leased };
        let lease = CreateRequest { id: container.id.clone(), ..CreateRequest::default() };
        let mut leases = LeasesClient::new(container.channel.clone());
        leases.create(container.request(lease)?).await.map_err(|s| explain("taking a lease", &s))?;
        if let Err(error) = container.describe(args, pulled, recording, spec).await {
            if let Err(second) = container.remove().await {
                tracing::warn!("{second:#}");
            }
            return Err(error);
        }
        Ok(container)
    }

    async fn describe(
        &mut self,
        args: &RecordArgs,
        pulled: &Pulled,
        recording: Recording<'_>,
        spec: Value,
    ) -> Result<()> {
        let Recording { trace, driver } = recording;
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: self.id.clone(),
            parent: pulled.chain.clone(),
            labels: HashMap::from([
                (LABEL_TRACE.to_owned(), trace.display().to_string()),
                (LABEL_TRACE_DRIVER.to_owned(), driver.name().to_owned()),
            ]),
        };
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        // Under the lease: until a container names it, containerd would take the snapshot for garbage.
        let mut request = self.request(request)?;
        request
            .metadata_mut()
            .insert("containerd-lease", self.id.parse().context("the container's id isn't plain ASCII")?);
        let answer = snapshots.prepare(request).await;
        let answer = answer.map_err(|s| explain("preparing a snapshot", &s).context(NotPrepared(driver)))?;
        self.mounts = answer.into_inner().mounts;
        self.state = State::Prepared;

        let container = Description {
            id: self.id.clone(),
            image: args.reference.to_string(),
            runtime: Some(Runtime { name: "io.containerd.runc.v2".into(), options: None }),
            spec: Some(Any { type_url: SPEC.into(), value: serde_json::to_vec(&spec)? }),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.id.clone(),
            ..Description::default()
        };
        let mut containers = ContainersClient::new(self.channel.clone());
        let request = CreateContainerRequest { container: Some(container) };
        containers.create(self.request(request)?).await.map_err(|s| explain("creating a container", &s))?;
        self.state = State::Created;
        Ok(())
    }

    /// Starts its command.
    pub async fn start(&mut self) -> Result<()> {
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.mounts.clone(),
            ..CreateTaskRequest::default()
        };
        self.tasks().create(self.request(request)?).await.map_err(|s| explain("creating a task", &s))?;
        self.state = State::Tasked;
        let request = StartRequest { container_id: self.id.clone(), ..StartRequest::default() };
        self.tasks().start(self.request(request)?).await.map_err(|s| explain("starting the command", &s))?;
        Ok(())
    }

    /// Waits until the command has ended.
    pub async fn ended(&self) -> Result<Ended> {
        let request = WaitRequest { container_id: self.id.clone(), ..WaitRequest::default() };
        let answer = self.tasks().wait(self.request(request)?).await.map_err(|s| explain("waiting for it", &s))?;
        Ok(Ended { status: answer.into_inner().exit_status })
    }

    /// Kills it, and removes all that was made for it. Returns when the snapshotter has removed its snapshot.
    pub async fn remove(self) -> Result<()> {
        let mut first: Result<()> = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        if self.state >= State::Tasked {
            let request =
                KillRequest { container_id: self.id.clone(), signal: SIGKILL, all: true, ..Default::default() };
            // It may have ended by itself.
            let _ = self.tasks().kill(self.request(request)?).await;
            note(self.ended().await.map(drop));
            let request = DeleteTaskRequest { container_id: self.id.clone() };
            let deleted = self.tasks().delete(self.request(request)?).await;
            note(deleted.map(drop).map_err(|s| explain("removing the task", &s)));
        }
        if self.state >= State::Created {
            let request = DeleteContainerRequest { id: self.id.clone() };
            let deleted = ContainersClient::new(self.channel.clone()).delete(self.request(request)?).await;
            note(deleted.map(drop).map_err(|s| explain("removing the container", &s)));
        }
        if self.state >= State::Prepared {
            let request = RemoveSnapshotRequest { snapshotter: self.snapshotter.clone(), key: self.id.clone() };
            let removed = SnapshotsClient::new(self.channel.clone()).remove(self.request(request)?).await;
            note(removed.map(drop).map_err(|s| explain("removing the snapshot", &s)));
        }
        // containerd removes snapshots when it collects garbage: at once, if a lease is given back like this.
        let request = DeleteRequest { id: self.id.clone(), sync: true };
        let deleted = LeasesClient::new(self.channel.clone()).delete(self.request(request)?).await;
        note(deleted.map(drop).map_err(|s| explain("giving the lease back", &s)));
        first
    }

    fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone())
    }

    fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.parse().context("the namespace isn't plain ASCII")?);
        Ok(request)
    }
}
