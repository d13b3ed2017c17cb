//! The configuration file and what the command line changes of it.
use crate::{hints::Hints, logs::LogFormat, metrics, size};
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use clipper_device::{DeviceOptions, MinFree};
use clipper_mount::{Driver, MountOptions};
use clipper_registry::ClientOptions;
use serde::{Deserialize, Deserializer, de};
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a registry may be silent before it is asked again: well below what readers wait by default.
const STALL: Duration = Duration::from_secs(20);

/// Clipper's snapshotter for containerd: mounts images before they are downloaded.
///
/// It is a proxy plugin. Tell containerd of it in /etc/containerd/config.toml:
///
///   [proxy_plugins.clipper]
///     type = "snapshot"
///     address = "/run/clipper-snapshotter/clipper-snapshotter.sock"
///
/// and use it with `clipper pull REF`, then `ctr run --snapshotter clipper REF ID`, or from Kubernetes with
/// `snapshotter = "clipper"` and `disable_snapshot_annotations = false` in containerd's CRI section. From containerd
/// 2.1 on, `ctr images pull --snapshotter clipper REF` is lazy, too, once containerd's transfer service is told of
/// the snapshotter; earlier ones download every layer first. See docs/operations.md for each version's configuration.
///
/// Images converted with `clipper convert` are mounted at once; their files are fetched when they are read. All
/// other images are unpacked as by containerd's overlayfs snapshotter. SIGTERM and SIGINT stop the daemon.
///
/// What runs is two processes: a supervisor, and the daemon that it starts and starts again; containers outlive the
/// daemon, but not the supervisor.
#[derive(Parser, Debug)]
#[command(name = "clipper-snapshotter", version, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file in TOML; see docs/operations.md for its keys.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Unix socket to listen at [default: /run/clipper-snapshotter/clipper-snapshotter.sock].
    #[arg(long, value_name = "SOCKET", global = true)]
    pub address: Option<PathBuf>,
    /// Directory for records, writable layers, indexes and cached data [default: /var/lib/clipper-snapshotter].
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// containerd's own socket, asked where an image came from when `ctr` doesn't say
    /// [default: /run/containerd/containerd.sock].
    #[arg(long, value_name = "SOCKET")]
    pub containerd_address: Option<PathBuf>,
    /// What shows images to the kernel: erofs, fuse, or auto, which is erofs where this kernel can (Linux 6.12 and
    /// later) and fuse elsewhere [default: auto].
    #[arg(long, value_name = "DRIVER")]
    pub driver: Option<Driver>,
    /// What to log: error, warn, info, debug, trace, or directives such as `info,clipper_device=debug`
    /// [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How lines of the log look: text, or json for one object a line [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Only tell what is wrong with the configuration: nothing is started. The exit code is 0 if it is valid, else 1.
    #[arg(long)]
    pub check: bool,
    /// What this process is of those that the program consists of.
    #[arg(long, value_enum, hide = true, default_value_t)]
    pub role: Role,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Action>,
}

/// What the program can do instead of serving.
#[derive(Subcommand, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Replace the running snapshotter by what its program's file holds now, while containers run on.
    ///
    /// Write the new version over the file (by renaming it there), then call this with the same --config or --address.
    /// The new version is tried out first; if it can't read its configuration, the running one goes on. Returns once the
    /// new version serves. SIGHUP to the supervisor does the same without telling how it went.
    Upgrade,
}

/// The processes that the program consists of.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Starts daemons.
    #[default]
    Supervisor,
    /// The same, another version of which this process was before.
    Resumed,
    /// Serves.
    Daemon,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// What the daemon is told to do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Unix socket to listen at.
    pub address: PathBuf,
    /// Directory for everything that is kept.
    pub root: PathBuf,
    /// What to log, as `tracing_subscriber::EnvFilter` takes it.
    pub log_level: String,
    /// How lines of the log look.
    pub log_format: LogFormat,
    /// Milliseconds after which a read that is answered is logged as slow; 0 for never.
    pub slow_read_ms: u64,
    /// Unix socket of the control API; without one, `control.sock` beside `address`.
    pub control_address: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: MetricsConfig,
    /// containerd's own socket, asked where an image came from when a pull doesn't say.
    pub containerd_address: PathBuf,
    /// What shows images to the kernel.
    #[serde(deserialize_with = "driver")]
    pub driver: Driver,
    /// Whether mounted images are loaded whole in the background.
    pub background_fill: bool,
    /// How registries are spoken to.
    pub registry: RegistryConfig,
    /// How data is fetched.
    pub fetch: FetchConfig,
    /// How much of it is kept.
    pub cache: CacheConfig,
    /// Where credentials of registries come from, besides docker's config.json.
    pub credentials: CredentialsConfig,
}

fn driver<'de, D: Deserializer<'de>>(from: D) -> Result<Driver, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

/// Least that the data of images may be limited to: some spans of every image that runs.
const MAX_BYTES_MIN: u64 = 16 << 20;

/// How data is fetched, over all images of the node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Most requests at a time on behalf of readers.
    pub connections: usize,
    /// Most requests at a time for the background, over and above.
    pub background_connections: usize,
    /// Bytes per second that the background may take of the link; without it, whatever readers leave.
    pub background_rate: Option<u64>,
    /// MiB of memory for data on its way.
    pub memory_mib: u64,
    /// MiB that are fetched ahead of a sequential reader; 0 for none.
    pub read_ahead_mib: u64,
    /// Seconds that a read waits for bytes that can't be had, before it fails.
    pub wait_seconds: u64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        let devices = DeviceOptions::default();
        Self {
            connections: devices.foreground_connections,
            background_connections: devices.background_connections,
            background_rate: devices.fill_rate,
            memory_mib: devices.memory >> 20,
            read_ahead_mib: devices.read_ahead >> 20,
            wait_seconds: devices.read_timeout.as_secs(),
        }
    }
}

impl FetchConfig {
    /// In the words of the device room.
    pub fn device_options(&self) -> DeviceOptions {
        DeviceOptions {
            foreground_connections: self.connections,
            background_connections: self.background_connections,
            fill_rate: self.background_rate,
            memory: self.memory_mib << 20,
            read_ahead: self.read_ahead_mib << 20,
            read_timeout: Duration::from_secs(self.wait_seconds),
            ..DeviceOptions::default()
        }
    }
}

/// How much of the disk the data of images may take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Most bytes that they may take; without it, as many as `min_free` leaves.
    #[serde(deserialize_with = "size::bytes")]
    pub max_bytes: Option<u64>,
    /// What stays free on the disk.
    #[serde(deserialize_with = "size::min_free")]
    pub min_free: MinFree,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { max_bytes: None, min_free: MinFree::Percent(5) }
    }
}

/// How registries are spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Whether registries other than those on loopback, which always are, are spoken to over plain HTTP.
    pub plain_http: bool,
    /// Directory of containerd's `HOST/hosts.toml` files, such as /etc/containerd/certs.d.
    pub hosts_dir: Option<PathBuf>,
    /// Docker's config.json with credentials; without it, that of the daemon's user.
    pub docker_config: Option<PathBuf>,
    /// Hosts that images may send this node to, by the annotation `containerd.io/snapshot/clipper.ref`; none by default.
    pub follow_refs: Vec<String>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        let ClientOptions { plain_http, hosts_dir, docker_config, .. } = ClientOptions::default();
        Self { plain_http, hosts_dir, docker_config, follow_refs: Vec::new() }
    }
}

impl RegistryConfig {
    /// In the words of the registry room.
    pub fn client_options(&self) -> ClientOptions {
        let Self { plain_http, hosts_dir, docker_config, follow_refs: _ } = self.clone();
        ClientOptions { plain_http, hosts_dir, docker_config, stall_timeout: STALL, ..ClientOptions::default() }
    }
}

/// What Prometheus is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where metrics, liveness and readiness are served over HTTP; nowhere unless it is set.
    pub address: Option<metrics::Address>,
}

/// Where credentials of registries come from, besides docker's config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CredentialsConfig {
    /// File with the key (32 bytes) of those that are kept over a restart; without it, one beside them.
    pub key_file: Option<PathBuf>,
    /// Kubernetes secrets.
    pub kubernetes: Option<KubernetesConfig>,
    /// Kubelet's credential provider plugins.
    pub plugins: Option<PluginsConfig>,
}

/// Which Kubernetes secrets are watched.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// How the API server is reached; without it by the service account of the pod that the daemon runs in.
    pub kubeconfig: Option<PathBuf>,
    /// `KEY=VALUE`, or `KEY` for any value: a secret that carries one of them is used.
    pub labels: Vec<String>,
    /// Where secrets are looked for; none for everywhere.
    pub namespaces: Vec<String>,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        let labels = ["images.clipper.io/accelerated=true", "images.alibabacloud.com/accelerated=true"];
        Self { kubeconfig: None, labels: labels.map(Into::into).into(), namespaces: Vec::new() }
    }
}

impl KubernetesConfig {
    fn check(&self) -> Result<()> {
        let word = |text: &str, more: &[char]| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
        };
        let label = |text: &String| {
            let (key, value) = text.split_once('=').map_or((text.as_str(), None), |(key, value)| (key, Some(value)));
            word(key, &['-', '_', '.', '/']) && value.is_none_or(|value| word(value, &['-', '_', '.']))
        };
        if self.labels.is_empty() || !self.labels.iter().all(label) {
            bail!("credentials.kubernetes.labels must be one or more KEY=VALUE or KEY, not {:?}", self.labels);
        }
        if !self.namespaces.iter().all(|name| word(name, &['-'])) {
            bail!("credentials.kubernetes.namespaces must be names of namespaces, not {:?}", self.namespaces);
        }
        Ok(())
    }
}

/// Kubelet's credential provider plugins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginsConfig {
    /// What kubelet calls `--image-credential-provider-config`.
    pub config: PathBuf,
    /// What kubelet calls `--image-credential-provider-bin-dir`.
    pub bin_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "/run/clipper-snapshotter/clipper-snapshotter.sock".into(),
            root: "/var/lib/clipper-snapshotter".into(),
            log_level: "info".into(),
            log_format: LogFormat::default(),
            slow_read_ms: 1000,
            control_address: None,
            metrics: MetricsConfig::default(),
            containerd_address: "/run/containerd/containerd.sock".into(),
            driver: Driver::default(),
            background_fill: true,
            registry: RegistryConfig::default(),
            fetch: FetchConfig::default(),
            cache: CacheConfig::default(),
            credentials: CredentialsConfig::default(),
        }
    }
}

impl Config {
    /// The file that `arguments` name, changed by what else they say.
    pub fn load(arguments: Arguments) -> Result<Self> {
        let mut config = match &arguments.config {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Self::parse(&text).with_context(|| format!("in {}", path.display()))?
            }
        };
        let Arguments {
            config: _,
            address,
            root,
            containerd_address,
            driver,
            log_level,
            log_format,
            check: _,
            role: _,
            command: _,
        } = arguments;
        config.address = address.unwrap_or(config.address);
        config.root = root.unwrap_or(config.root);
        config.containerd_address = containerd_address.unwrap_or(config.containerd_address);
        config.driver = driver.unwrap_or(config.driver);
        config.log_level = log_level.unwrap_or(config.log_level);
        config.log_format = log_format.unwrap_or(config.log_format);
        config.root = std::path::absolute(&config.root).context("make the root absolute")?;
        config.check()?;
        Ok(config)
    }

    /// How images are mounted.
    pub fn mount_options(&self) -> MountOptions {
        MountOptions { driver: self.driver, background_fill: self.background_fill, ..MountOptions::default() }
    }

    /// How devices are filled, and how far.
    pub fn device_options(&self) -> DeviceOptions {
        let CacheConfig { max_bytes, min_free } = self.cache;
        let slow_read = match self.slow_read_ms {
            0 => Duration::MAX,
            ms => Duration::from_millis(ms),
        };
        DeviceOptions { max_bytes, min_free, slow_read, ..self.fetch.device_options() }
    }

    /// Where the control API is served.
    pub fn control_address(&self) -> PathBuf {
        self.control_address.clone().unwrap_or_else(|| self.address.with_file_name("control.sock"))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }

    fn check(&self) -> Result<()> {
        // Mount options are one text in which these separate; neither containerd nor the kernel escapes them alike.
        let separator = |path: &Path| path.to_str().is_none_or(|text| text.contains([',', ':', '\\', '"']));
        if separator(&self.root) {
            bail!("root {:?} must be UTF-8 without commas, colons, quotes and backslashes", self.root);
        }
        let FetchConfig { connections, background_connections, memory_mib, read_ahead_mib, wait_seconds, .. } =
            self.fetch;
        if connections == 0 || background_connections == 0 {
            bail!("fetch.connections and fetch.background_connections must be at least 1");
        }
        if !(4..=65536).contains(&memory_mib) || read_ahead_mib > 65536 {
            bail!("fetch.memory_mib must be 4 to 65536, and fetch.read_ahead_mib at most 65536");
        }
        if !(1..=86_400).contains(&wait_seconds) {
            bail!("fetch.wait_seconds must be 1 to 86400");
        }
        Hints::new(&self.registry.follow_refs)?;
        if self.cache.max_bytes.is_some_and(|max| max < MAX_BYTES_MIN) {
            bail!("cache.max_bytes must be at least 16MiB; leave it out for no limit but cache.min_free");
        }
        self.credentials.kubernetes.as_ref().map_or(Ok(()), KubernetesConfig::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(line: &[&str]) -> Arguments {
        Arguments::parse_from(std::iter::once(&"clipper-snapshotter").chain(line))
    }

    #[test]
    fn the_command_line_goes_before_the_file_and_the_file_before_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "root = \"/a\"\naddress = \"/s\"\n[registry]\nplain_http = true\n").unwrap();
        let file = file.to_str().unwrap();
        let config = Config::load(arguments(&["--config", file, "--root", "/b"])).unwrap();
        let registry = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
        assert_eq!(config, Config { root: "/b".into(), address: "/s".into(), registry, ..Config::default() });
    }

    #[test]
    fn a_driver_is_called_by_its_name() {
        assert_eq!(Config::parse("").unwrap().mount_options().driver, Driver::Auto);
        let config = Config::parse("driver = \"fuse\"").unwrap();
        assert_eq!(config.mount_options().driver, Driver::Fuse);
        assert_eq!(Config::load(arguments(&["--driver", "erofs"])).unwrap().driver, Driver::Erofs);
        let error = Config::parse("driver = \"nfs\"").unwrap_err().to_string();
        assert!(error.contains("expected auto, erofs or fuse"), "{error}");
    }

    #[test]
    fn what_is_shown_is_configured() {
        let config = Config::parse(
            "log_format = \"json\"\nslow_read_ms = 0\naddress = \"/a/s\"\n[metrics]\naddress = \"unix:/a/m\"\n",
        )
        .unwrap();
        assert_eq!((config.log_format, config.device_options().slow_read), (LogFormat::Json, Duration::MAX));
        assert_eq!(config.metrics.address, Some(metrics::Address::Unix("/a/m".into())));
        assert_eq!(config.control_address(), PathBuf::from("/a/control.sock"));
        assert!(Config::parse("[metrics]\naddress = \"9440\"").unwrap_err().to_string().contains("127.0.0.1:9440"));
        assert!(Config::parse("log_format = \"xml\"").unwrap_err().to_string().contains("text or json"));
    }

    #[test]
    fn readers_wait_as_long_as_they_are_told() {
        assert_eq!(Config::parse("").unwrap().fetch.device_options().read_timeout, Duration::from_secs(90));
        let config = Config::parse("[fetch]\nwait_seconds = 7").unwrap();
        assert_eq!(config.fetch.device_options().read_timeout, Duration::from_secs(7));
        let error = Config::parse("[fetch]\nwait_seconds = 0").unwrap().check().unwrap_err().to_string();
        assert!(error.contains("wait_seconds"), "{error}");
    }

    #[test]
    fn limits_of_the_cache_reach_the_devices() {
        let config = Config::parse("[cache]\nmax_bytes = \"20GiB\"\nmin_free = \"15%\"\n").unwrap();
        let options = config.device_options();
        assert_eq!((options.max_bytes, options.min_free), (Some(20 << 30), MinFree::Percent(15)));
        let config = Config::parse("[cache]\nmax_bytes = 100000000\nmin_free = 0\n").unwrap();
        assert_eq!(config.cache, CacheConfig { max_bytes: Some(100_000_000), min_free: MinFree::Bytes(0) });
        let options = Config::parse("").unwrap().device_options();
        assert_eq!((options.max_bytes, options.min_free), (None, MinFree::Percent(5)));
        for (text, told) in [
            ("max_bytes = \"20 elephants\"", "20 elephants"),
            ("max_bytes = -1", "\"-1\" is not a size"),
            ("max_bytes = true", "a number of bytes or a text"),
            ("min_free = \"95%\"", "\"0%\" to \"90%\""),
        ] {
            let error = Config::parse(&format!("[cache]\n{text}\n")).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let small = Config { cache: CacheConfig { max_bytes: Some(1 << 20), ..CacheConfig::default() }, ..config };
        assert!(small.check().unwrap_err().to_string().contains("16MiB"));
    }

    #[test]
    fn kubernetes_secrets_are_asked_for_and_which_ones_can_be_told() {
        assert_eq!(Config::parse("").unwrap().credentials.kubernetes, None);
        let config = Config::parse("[credentials.kubernetes]").unwrap();
        config.check().unwrap();
        let kubernetes = config.credentials.kubernetes.unwrap();
        assert_eq!(kubernetes, KubernetesConfig::default());
        assert!(kubernetes.labels.contains(&"images.clipper.io/accelerated=true".into()));
        for (text, told) in [
            ("labels = []", "KEY=VALUE"),
            ("labels = [\"a b\"]", "a b"),
            ("labels = [\"a=\"]", "a="),
            ("labels = [\"a,b=c\"]", "a,b"),
            ("namespaces = [\"../nodes\"]", "../nodes"),
        ] {
            let config = Config::parse(&format!("[credentials.kubernetes]\n{text}\n")).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let text = "[credentials.kubernetes]\nlabels = [\"pull\", \"a.b/c=d\"]\nnamespaces = [\"team-a\"]";
        Config::parse(text).unwrap().check().unwrap();
    }

    #[test]
    fn unknown_keys_and_unmountable_roots_are_refused() {
        assert!(Config::parse("backgroundfill = true").unwrap_err().to_string().contains("backgroundfill"));
        for root in ["/a:b", "/a,b", "/a\\b"] {
            let error = Config::load(arguments(&["--root", root])).unwrap_err().to_string();
            assert!(error.contains("root"), "{error}");
        }
    }
}
