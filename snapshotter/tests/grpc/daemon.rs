//! A running `clipper-snapshotter` and containerd's client for it.
use clipper_tests::{clipper::driver, daemon::Daemon as Process, scratch::Scratch};
use containerd_client::{
    services::v1::snapshots::{
        CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
        RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, UsageResponse, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    types::Mount,
};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change, unmount},
    process::{Pid, Signal, kill_process},
};
use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::{Code, Status, transport::Channel};

pub type Labels = HashMap<String, String>;

/// A snapshotter with a root of its own. Nothing is filled in the background, so that usage tells what was read.
pub struct Daemon {
    process: Option<Process>,
    pub scratch: Scratch,
}

/// Makes requests, each with just what it is about.
#[derive(Clone)]
pub struct Client(pub SnapshotsClient<Channel>);

impl Daemon {
    pub async fn start() -> (Self, Client) {
        let scratch = Scratch::new("grpc").unwrap();
        let config = format!(
            "address = {:?}\nroot = {:?}\ndriver = {:?}\nbackground_fill = false\ncontainerd_address = {:?}\n",
            scratch.join("run/s.sock"),
            scratch.join("root"),
            driver(),
            scratch.join("no-containerd.sock"),
        );
        fs::write(scratch.join("config.toml"), config).unwrap();
        let mut daemon = Self { process: None, scratch };
        let client = daemon.launch().await;
        (daemon, client)
    }

    /// Starts it on the root that it left.
    pub async fn launch(&mut self) -> Client {
        let program = Path::new(env!("CARGO_BIN_EXE_clipper-snapshotter"));
        let config = self.scratch.join("config.toml").display().to_string();
        let log = self.scratch.join("log");
        let mut process = Process::start("clipper-snapshotter", program, &["--config", &config], &log).unwrap();
        let socket = self.socket();
        process.wait_until("listening", Duration::from_secs(30), || UnixStream::connect(&socket).ok()).unwrap();
        self.process = Some(process);
        // The supervisor listens from the first moment; whoever is answered knows that the daemon has begun.
        let begun = Instant::now();
        loop {
            let mut client = Client(SnapshotsClient::new(containerd_client::connect(self.socket()).await.unwrap()));
            match client.list(&[]).await {
                Ok(_) => return client,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(30), "{error}: {}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to stop, and waits.
    pub fn stop(&mut self) {
        self.process.take().unwrap().stop().unwrap();
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill().unwrap();
    }

    /// The process that serves, once there is one that isn't `other`.
    pub fn serving(&self, other: Option<u32>) -> u32 {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let children = self.process.as_ref().unwrap().children();
            if let [child] = children[..]
                && Some(child) != other
            {
                return child;
            }
            assert!(Instant::now() < deadline, "no daemon, or too many: {children:?}; {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the process that serves, and gives the one that takes over.
    pub fn kill_serving(&self) -> u32 {
        let serving = self.serving(None);
        kill_process(Pid::from_raw(serving as i32).unwrap(), Signal::KILL).unwrap();
        self.serving(Some(serving))
    }

    /// The supervisor.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.scratch.join("run/s.sock")
    }

    pub fn root(&self, name: &str) -> PathBuf {
        self.scratch.join("root").join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("log")).unwrap()
    }
}

impl Client {
    pub async fn prepare(&mut self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            snapshotter: "clipper".into(),
            key: key.into(),
            parent: parent.into(),
            labels: labels.clone(),
        };
        Ok(self.0.prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.labelled_view(key, parent, &Labels::new()).await
    }

    pub async fn labelled_view(&mut self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, Status> {
        let (key, parent, labels) = (key.into(), parent.into(), labels.clone());
        let request = ViewSnapshotRequest { key, parent, labels, ..Default::default() };
        Ok(self.0.view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { key: key.into(), ..Default::default() };
        Ok(self.0.mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(&mut self, key: &str, name: &str, labels: &Labels) -> Result<(), Status> {
        let request =
            CommitSnapshotRequest { key: key.into(), name: name.into(), labels: labels.clone(), ..Default::default() };
        self.0.commit(request).await.map(drop)
    }

    pub async fn remove(&mut self, key: &str) -> Result<(), Status> {
        self.0.remove(RemoveSnapshotRequest { key: key.into(), ..Default::default() }).await.map(drop)
    }

    pub async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { key: key.into(), ..Default::default() };
        Ok(self.0.stat(request).await?.into_inner().info.unwrap())
    }

    pub async fn usage(&mut self, key: &str) -> UsageResponse {
        self.0.usage(UsageRequest { key: key.into(), ..Default::default() }).await.unwrap().into_inner()
    }

    /// What every message of a List holds.
    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let mut stream = self.0.list(ListSnapshotsRequest { filters, ..Default::default() }).await?.into_inner();
        let mut batches = Vec::new();
        while let Some(batch) = stream.message().await? {
            batches.push(batch.info);
        }
        Ok(batches)
    }

    /// The names of the snapshots that `filters` match.
    pub async fn names(&mut self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.unwrap().into_iter().flatten().map(|info| info.name).collect()
    }
}

/// The status code of a failure.
#[track_caller]
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.unwrap_err().code()
}

/// A snapshot mounted as containerd would mount it; unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    #[track_caller]
    pub fn new(mounts: &[Mount], at: PathBuf) -> Self {
        let [one] = mounts else { panic!("one mount expected: {mounts:?}") };
        fs::create_dir_all(&at).unwrap();
        match one.r#type.as_str() {
            "bind" => {
                mount_bind_recursive(&one.source, &at).unwrap();
                if one.options.contains(&"ro".to_owned()) {
                    let flags = MountFlags::BIND | MountFlags::RDONLY;
                    rustix::mount::mount_remount(&at, flags, "").unwrap();
                }
            }
            "overlay" => {
                let options = CString::new(one.options.join(",")).unwrap();
                mount("overlay", &at, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
            }
            other => panic!("unexpected mount type {other}"),
        }
        mount_change(&at, MountPropagationFlags::PRIVATE).unwrap();
        Self(at)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Names in a directory, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

/// The value of a mount's option.
pub fn option<'a>(mount: &'a Mount, name: &str) -> &'a str {
    mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('=')).unwrap()
}
