//! A CRI client: does to containerd what a kubelet does.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AuthConfig, ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ExecSyncResponse,
    IdMapping, ImageSpec, ImageStatusRequest, KeyValue, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListImagesRequest, Mount, MountPropagation, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PullImageRequest, RemoveContainerRequest,
    RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UserNamespace,
};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// Longest that a CRI may take to be ready.
const READY: Duration = Duration::from_secs(30);

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
    namespaces: NamespaceOption,
    privileged: bool,
    config: PodSandboxConfig,
}

impl Cri {
    /// Connects to a containerd's socket, and waits until its CRI is ready: containerd answers others before.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let channel = runtime.block_on(containerd_client::connect(socket))?;
        let cri = Self { runtime, channel };
        let begun = Instant::now();
        while let Err(error) = cri.wait(async { cri.images().list_images(ListImagesRequest::default()).await }) {
            ensure!(error.to_string().contains("not initialized") && begun.elapsed() < READY, "ListImages: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(cri)
    }

    /// Pulls an image; gives the CRI's name of it.
    pub fn pull(&self, image: &str) -> Result<String> {
        let request = PullImageRequest { image: Some(spec(image)), ..Default::default() };
        Ok(self.wait(async { self.images().pull_image(request).await }).context("PullImage")?.image_ref)
    }

    /// As [`pull`](Self::pull), with a name and a password.
    pub fn pull_as(&self, image: &str, user: &str, password: &str) -> Result<String> {
        let auth = AuthConfig { username: user.into(), password: password.into(), ..Default::default() };
        let request = PullImageRequest { image: Some(spec(image)), auth: Some(auth), ..Default::default() };
        Ok(self.wait(async { self.images().pull_image(request).await }).context("PullImage")?.image_ref)
    }

    /// Whether an image is there.
    pub fn has_image(&self, image: &str) -> Result<bool> {
        let request = ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.wait(async { self.images().image_status(request).await }).context("ImageStatus")?.image.is_some())
    }

    /// Removes an image.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: Some(spec(image)) };
        self.wait(async { self.images().remove_image(request).await }).context("RemoveImage").map(|_| ())
    }

    /// Starts a sandbox on the host's network.
    pub fn run_sandbox(&self, name: &str) -> Result<Sandbox> {
        self.run_sandbox_in(name, own_processes(NamespaceMode::Node), false)
    }

    /// Starts a sandbox on the host's network, whose containers may do everything.
    pub fn run_privileged_sandbox(&self, name: &str) -> Result<Sandbox> {
        self.run_sandbox_in(name, own_processes(NamespaceMode::Node), true)
    }

    /// Starts a sandbox with a network and a user namespace of its own (`hostUsers: false`), whose users begin at `uid`
    /// and whose groups at `gid`.
    pub fn run_sandbox_with_users(&self, name: &str, uid: u32, gid: u32) -> Result<Sandbox> {
        let from = |host_id| vec![IdMapping { host_id, container_id: 0, length: 65536 }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: from(uid), gids: from(gid) };
        let namespaces = NamespaceOption { userns_options: Some(users), ..own_processes(NamespaceMode::Pod) };
        self.run_sandbox_in(name, namespaces, false)
    }

    fn run_sandbox_in(&self, name: &str, namespaces: NamespaceOption, privileged: bool) -> Result<Sandbox> {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces.clone()),
            privileged,
            ..Default::default()
        };
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
        Ok(Sandbox { id, namespaces, privileged, config })
    }

    /// Creates and starts a container in a sandbox; an empty command means the image's own. Gives its id.
    pub fn start_container(&self, sandbox: &Sandbox, name: &str, image: &str, command: &[&str]) -> Result<String> {
        self.start_container_with(sandbox, name, image, command, &[], Vec::new())
    }

    /// As [`start_container`](Self::start_container), with variables and mounts.
    pub fn start_container_with(
        &self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
        variables: &[(&str, &str)],
        mounts: Vec<Mount>,
    ) -> Result<String> {
        let config = ContainerConfig {
            envs: variables
                .iter()
                .map(|(key, value)| KeyValue { key: (*key).into(), value: (*value).into() })
                .collect(),
            mounts,
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|word| String::from(*word)).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(sandbox.namespaces.clone()),
                    privileged: sandbox.privileged,
                    ..Default::default()
                }),
                ..Default::default()
            }),
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

/// What kubelet asks for by default, but for the network.
fn own_processes(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption { network: network.into(), pid: NamespaceMode::Container.into(), ..Default::default() }
}

/// A directory or file of the host in a container. With `both_ways`, what is mounted below it by either is there for both.
pub fn bind(host: &Path, inside: &Path, both_ways: bool) -> Mount {
    let propagation = if both_ways { MountPropagation::PropagationBidirectional } else { Default::default() };
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.display().to_string(),
        propagation: propagation.into(),
        ..Default::default()
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.into(), annotations: HashMap::new(), ..Default::default() }
}
