//! A private containerd: own root, state, socket and shims, beside whatever containerd the machine may run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::snapshots::{PrepareSnapshotRequest, ViewSnapshotRequest};
use containerd_client::with_namespace;
use serde_json::json;
use tonic::Request;

use crate::daemon::{Daemon, run, workspace};
use crate::scratch::Scratch;

/// Has `ctr images pull` of containerd 2.x unpack by Clipper. 1.6 doesn't know the service.
const TRANSFER: &str = r#"[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/amd64"
  snapshotter = "clipper"
"#;

/// What a containerd is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name and socket of a proxy snapshotter.
    pub snapshotter: Option<(String, PathBuf)>,
    /// What the CRI takes as its snapshotter: `overlayfs` or `clipper`.
    pub cri_snapshotter: String,
    /// The CRI's sandbox image.
    pub sandbox_image: String,
    /// Whether the CRI tells snapshotters which image a layer is of; containerd's own default is no.
    pub cri_annotations: bool,
    /// Prefix of another command that containerd is started by.
    pub prefix: Vec<String>,
    /// Where containerd, its shim and `ctr` are looked for before `PATH`.
    pub programs: Option<PathBuf>,
    /// Gives pods that want a network of their own one that leads nowhere but to the host.
    pub pod_network: bool,
    /// Sections of the configuration that stand behind all others.
    pub more: String,
}

impl Settings {
    /// containerd on its own, with its own overlayfs.
    pub fn overlayfs() -> Self {
        Self {
            snapshotter: None,
            cri_snapshotter: "overlayfs".into(),
            sandbox_image: "none".into(),
            cri_annotations: true,
            prefix: Vec::new(),
            programs: None,
            pod_network: false,
            more: String::new(),
        }
    }

    /// containerd with Clipper as a plugin, as the CRI's snapshotter and as one of the transfer service; the machine's
    /// containerd, or that of the Debian release `$CLIPPER_TEST_CONTAINERD`, so that tests can be run again with another
    /// version.
    pub fn clipper(socket: &Path) -> Result<Self> {
        let suite = std::env::var("CLIPPER_TEST_CONTAINERD").ok();
        let programs = suite.map(|suite| other_release(&suite)).transpose()?;
        let more = TRANSFER.into();
        Ok(Self { cri_snapshotter: "clipper".into(), programs, more, ..Self::plugin("clipper", socket) })
    }

    /// containerd with any other snapshotter as a plugin.
    pub fn plugin(name: &str, socket: &Path) -> Self {
        Self { snapshotter: Some((name.into(), socket.into())), ..Self::overlayfs() }
    }
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    daemon: Option<Daemon>,
    settings: Settings,
    socket: PathBuf,
    scratch: Scratch,
}

impl Containerd {
    /// Starts one, empty.
    pub fn start(settings: Settings) -> Result<Self> {
        let scratch = Scratch::new("containerd")?;
        let socket = scratch.join("containerd.sock");
        let mut containerd = Self { daemon: None, settings, socket, scratch };
        fs::write(containerd.scratch.join("config.toml"), containerd.config())?;
        if containerd.settings.pod_network {
            let dir = containerd.scratch.subdir("cni")?;
            fs::write(dir.join("pods.conflist"), pod_network(&dir))?;
        }
        containerd.launch()?;
        Ok(containerd)
    }

    /// Ends containerd and starts it again on the same state. Containers go on meanwhile.
    pub fn restart(&mut self) -> Result<()> {
        self.daemon = None;
        self.launch()
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The namespace that `ctr` is told to use: its own, because runc keeps its containers by namespace and id alone,
    /// below `/run/containerd/runc`, whichever containerd they are of.
    pub fn namespace(&self) -> &str {
        self.scratch.name()
    }

    /// Its directory of persistent data.
    pub fn root(&self) -> PathBuf {
        self.scratch.join("root")
    }

    /// The process.
    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Runs `ctr ARGS`; gives its output.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        run(&mut self.ctr_command(args))
    }

    /// `ctr ARGS`, not yet run.
    pub fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program("ctr"));
        command.arg("--address").arg(&self.socket).args(["--namespace", self.namespace()]).args(args);
        command
    }

    fn program(&self, name: &str) -> PathBuf {
        self.settings.programs.as_ref().map_or_else(|| name.into(), |dir| dir.join(name))
    }

    /// Pulls and unpacks an image as `ctr` does, whole.
    pub fn pull(&self, snapshotter: &str, reference: &str) -> Result<()> {
        self.ctr(&["images", "pull", "--plain-http", "--snapshotter", snapshotter, reference]).map(|_| ())
    }

    /// Runs a command in a new container and removes it; gives what it printed, also on its standard error.
    pub fn run(&self, snapshotter: &str, reference: &str, id: &str, command: &[&str]) -> Result<String> {
        self.run_with(snapshotter, reference, id, &["--net-host"], command)
    }

    /// As [`run`](Self::run), with options of `ctr run`; without any, also without the host's network.
    pub fn run_with(
        &self,
        snapshotter: &str,
        reference: &str,
        id: &str,
        options: &[&str],
        command: &[&str],
    ) -> Result<String> {
        let rest = [&["--rm", "--snapshotter", snapshotter], options, &[reference, id], command].concat();
        self.printed(&["run"], &rest)
    }

    /// Runs a command in a running container; gives what it printed, also on its standard error.
    pub fn exec(&self, id: &str, exec_id: &str, command: &[&str]) -> Result<String> {
        self.printed(&["task", "exec"], &[&["--exec-id", exec_id, id], command].concat())
    }

    /// Runs `ctr VERB REST`; gives what the command in it printed. That goes by way of a file, since `ctr` drops what was
    /// printed by a command that ended before `ctr` opened the pipe.
    fn printed(&self, verb: &[&str], rest: &[&str]) -> Result<String> {
        let dir = Scratch::new("printed")?;
        let file = dir.join("printed");
        let uri = format!("file://{}", file.display());
        let ended = self.ctr(&[verb, &["--log-uri", &uri], rest].concat());
        let printed = match fs::read(&file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        ended.map(|_| printed.clone()).with_context(|| printed)
    }

    /// Starts a container in the background, with the image's own command.
    pub fn start_container(&self, snapshotter: &str, reference: &str, id: &str, args: &[&str]) -> Result<()> {
        let mut line = vec!["run", "--detach", "--net-host", "--snapshotter", snapshotter, reference, id];
        line.extend(args);
        self.ctr(&line).map(|_| ())
    }

    /// Kills and removes a container that was started in the background.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        let _ = self.ctr(&["task", "kill", "--signal", "SIGKILL", id]);
        let _ = self.ctr(&["task", "delete", "--force", id]);
        self.ctr(&["containers", "delete", id]).map(|_| ())
    }

    /// Mounts an image's file tree read-only at a place of its own, through a snapshotter; unmounted when dropped.
    pub fn view(&self, snapshotter: &str, reference: &str) -> Result<View<'_>> {
        self.mount(snapshotter, reference, false)
    }

    /// As [`view`](Self::view), but writable: what a container of the image would have as its root.
    pub fn root_of_container(&self, snapshotter: &str, reference: &str) -> Result<View<'_>> {
        self.mount(snapshotter, reference, true)
    }

    fn mount(&self, snapshotter: &str, reference: &str, writable: bool) -> Result<View<'_>> {
        let at = self.scratch.subdir(format!("view-{}", fs::read_dir(self.scratch.path())?.count()))?;
        let key = format!("view-{}", at.display());
        let (name, parent) = (String::from(snapshotter), self.chain_id(reference)?);
        // Not by `ctr`, which can't say that the garbage collector is to leave it alone.
        let labels = [("containerd.io/gc.root".into(), "test".into())].into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mounts = runtime.block_on(async {
            let mut client = SnapshotsClient::new(containerd_client::connect(&self.socket).await?);
            anyhow::Ok(if writable {
                let request = PrepareSnapshotRequest { snapshotter: name, key: key.clone(), parent, labels };
                client.prepare(with_namespace!(request, self.namespace())).await?.into_inner().mounts
            } else {
                let request = ViewSnapshotRequest { snapshotter: name, key: key.clone(), parent, labels };
                client.view(with_namespace!(request, self.namespace())).await?.into_inner().mounts
            })
        })?;
        let view = View { containerd: self, snapshotter: snapshotter.into(), key, at };
        for mount in mounts {
            let line = ["-t", &mount.r#type, &mount.source, "-o", &mount.options.join(",")].map(String::from);
            run(Command::new("mount").args(line).arg(&view.at))?;
        }
        Ok(view)
    }

    /// The chain ID of an image's topmost layer: the name of its snapshot.
    pub fn chain_id(&self, reference: &str) -> Result<String> {
        let line = self.ctr(&["images", "list", &format!("name=={reference}")])?;
        let digest = line.split_whitespace().find(|word| word.starts_with("sha256:")).context("no such image")?;
        let mut manifest: serde_json::Value = serde_json::from_str(&self.ctr(&["content", "get", digest])?)?;
        if let Some(first) = manifest["manifests"]
            .as_array()
            .and_then(|all| all.iter().find(|one| one["platform"]["architecture"] == "amd64").or(all.first()))
        {
            let digest = first["digest"].as_str().context("a manifest without a digest")?;
            manifest = serde_json::from_str(&self.ctr(&["content", "get", digest])?)?;
        }
        let config = manifest["config"]["digest"].as_str().context("a manifest without a config")?;
        let config: serde_json::Value = serde_json::from_str(&self.ctr(&["content", "get", config])?)?;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().context("no diff_ids")?;
        let mut chain = String::new();
        for diff_id in diff_ids.iter().filter_map(|id| id.as_str()) {
            chain = match chain.as_str() {
                "" => diff_id.to_owned(),
                below => crate::layout::hex_digest(format!("{below} {diff_id}").as_bytes()),
            };
        }
        Ok(chain)
    }

    /// The keys of all snapshots.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Vec<String>> {
        let list = self.ctr(&["snapshots", "--snapshotter", snapshotter, "list"])?;
        Ok(list.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(String::from)).collect())
    }

    /// Bytes that all snapshots take, as the snapshotter tells containerd.
    pub fn usage(&self, snapshotter: &str) -> Result<u64> {
        let listed = self.ctr(&["snapshots", "--snapshotter", snapshotter, "usage", "-b"])?;
        let sizes = listed.lines().skip(1).map(|line| line.split_whitespace().nth(1));
        sizes.map(|size| size.context("no size")?.parse::<u64>().with_context(|| listed.clone())).sum()
    }

    /// Removes an image and waits for the garbage collection that it sets off.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        self.ctr(&["images", "remove", "--sync", reference]).map(|_| ())
    }

    fn launch(&mut self) -> Result<()> {
        let config = self.scratch.join("config.toml").display().to_string();
        let mut line: Vec<&str> = self.settings.prefix.iter().map(String::as_str).collect();
        // containerd looks for its shim and for `mkfs.erofs` in its own PATH.
        let path = std::env::var("PATH").unwrap_or_default();
        let path = self.settings.programs.as_ref().map(|dir| format!("PATH={}:{path}", dir.display()));
        line.extend(path.iter().flat_map(|path| ["env", path]));
        line.extend(["containerd", "--config", &config]);
        let mut daemon = Daemon::start("containerd", Path::new(line[0]), &line[1..], &self.scratch.join("log"))?;
        let (socket, ctr) = (self.socket.clone(), self.program("ctr"));
        daemon.wait_until("answering", Duration::from_secs(30), || {
            Command::new(&ctr)
                .arg("--address")
                .arg(&socket)
                .arg("version")
                .output()
                .ok()
                .filter(|run| run.status.success())
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn config(&self) -> String {
        let dir = self.scratch.path().display();
        let Settings { snapshotter, cri_snapshotter, sandbox_image, .. } = &self.settings;
        let silent = !self.settings.cri_annotations;
        let proxy = snapshotter.as_ref().map(|(name, socket)| {
            // What versions before 1.7 and 2.0 make nothing of: who maps owners, and who wants annotations from the
            // transfer service.
            format!(
                "[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{}\"\n  capabilities = [\"remap-ids\"]\n  \
                 [proxy_plugins.{name}.exports]\n    enable_remote_snapshot_annotations = \"true\"\n",
                socket.display()
            )
        });
        // containerd tells snapshotters of removals when it collects garbage, and waits before each collection for 49 times
        // what one takes: half a minute, where the disk is slow. With a threshold of one half it is once.
        format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.tracing"]
[debug]
  level = "warn"
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "10ms"
  pause_threshold = 0.5
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox_image}"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{cri_snapshotter}"
    disable_snapshot_annotations = {silent}
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{dir}/cni"
    bin_dir = "/usr/lib/cni"
{}{}"#,
            proxy.unwrap_or_default(),
            self.settings.more,
        )
    }
}

/// The programs of another Debian release's containerd, which `scripts/containerd` unpacks.
pub fn other_release(suite: &str) -> Result<PathBuf> {
    let dir = workspace().join(".cache/tools").join(suite).join("bin");
    ensure!(dir.join("containerd").exists(), "{} has no containerd: run scripts/containerd {suite}", dir.display());
    Ok(dir)
}

/// A CNI configuration: a pair of network devices for each pod, whose addresses are noted below `dir`.
fn pod_network(dir: &Path) -> String {
    let ipam = json!({"type": "host-local", "subnet": "10.213.0.0/24", "dataDir": dir.join("addresses")});
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}]}).to_string()
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(self.namespace()));
    }
}

/// A mounted snapshot of an image.
#[derive(Debug)]
pub struct View<'a> {
    containerd: &'a Containerd,
    snapshotter: String,
    key: String,
    at: PathBuf,
}

impl View<'_> {
    /// Where the tree is.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let _ = self.containerd.ctr(&["snapshots", "--snapshotter", &self.snapshotter, "remove", &self.key]);
    }
}
