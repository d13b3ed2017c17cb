//! A CRI client: does to containerd what a kubelet does.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PullImageRequest, RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopPodSandboxRequest,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// A connection to a containerd's CRI.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    channel: Channel,
}

/// A pod sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    id: String,
    config: PodSandboxConfig,
}

impl Cri {
    /// Connects to a containerd's socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(containerd_client::connect(socket))?;
        Ok(Self { runtime, channel })
    }

    /// Pulls an image; gives the CRI's name of it.
    pub fn pull(&self, image: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(spec(image)), ..Default::default() };
        Ok(self.wait(async { self.images().pull_image(request).await }).context("PullImage")?.image_ref)
    }

    /// Removes an image.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        self.wait(async { self.images().remove_image(request).await }).context("RemoveImage").map(|_| ())
    }

    /// Starts a sandbox on the host's network.
    pub fn run_sandbox(&self, name: &str) -> Result<Sandbox> {
        let host = NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
        let context = LinuxSandboxSecurityContext { namespace_options: Some(host), ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            log_directory: std::env::temp_dir().display().to_string(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self
            .wait(async { self.containers().run_pod_sandbox(request).await })
            .context("RunPodSandbox")?
            .pod_sandbox_id;
        Ok(Sandbox { id, config })
    }

    /// Creates and starts a container in a sandbox; an empty command means the image's own. Gives its id.
    pub fn start_container(&self, sandbox: &Sandbox, name: &str, image: &str, command: &[&str]) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|word| String::from(*word)).collect(),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let container_id = self
            .wait(async { self.containers().create_container(request).await })
            .context("CreateContainer")?
            .container_id;
        let start = StartContainerRequest { container_id: container_id.clone() };
        self.wait(async { self.containers().start_container(start).await }).context("StartContainer")?;
        Ok(container_id)
    }

    /// Runs a command in a container; gives its exit code and what it printed.
    pub fn exec(&self, container_id: &str, command: &[&str]) -> Result<ExecSyncResponse> {
        let cmd = command.iter().map(|word| String::from(*word)).collect();
        let request = ExecSyncRequest { container_id: container_id.into(), cmd, timeout: 60 };
        self.wait(async { self.containers().exec_sync(request).await }).context("ExecSync")
    }

    /// Stops and removes a container.
    pub fn remove_container(&self, container_id: &str) -> Result<()> {
        let stop = StopContainerRequest { container_id: container_id.into(), timeout: 0 };
        self.wait(async { self.containers().stop_container(stop).await }).context("StopContainer")?;
        let remove = RemoveContainerRequest { container_id: container_id.into() };
        self.wait(async { self.containers().remove_container(remove).await }).context("RemoveContainer").map(|_| ())
    }

    /// Stops and removes a sandbox and what is in it.
    pub fn remove_sandbox(&self, sandbox: Sandbox) -> Result<()> {
        let stop = StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
        self.wait(async { self.containers().stop_pod_sandbox(stop).await }).context("StopPodSandbox")?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
        self.wait(async { self.containers().remove_pod_sandbox(remove).await }).context("RemovePodSandbox").map(|_| ())
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    fn containers(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    fn wait<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
        Ok(self.runtime.block_on(call)?.into_inner())
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), annotations: HashMap::new(), ..Default::default() }
}
