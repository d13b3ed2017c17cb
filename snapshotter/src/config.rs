//! The configuration file and what the command line changes of it.
use anyhow::{Context, Result, bail};
use clap::Parser;
use clipper_device::DeviceOptions;
use clipper_mount::{Driver, MountOptions};
use clipper_registry::ClientOptions;
use serde::{Deserialize, Deserializer, de};
use std::path::{Path, PathBuf};

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
#[derive(Parser, Debug)]
#[command(name = "clipper-snapshotter", version, max_term_width = 100)]
pub struct Arguments {
    /// Configuration file in TOML; see docs/operations.md for its keys.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Unix socket to listen at [default: /run/clipper-snapshotter/clipper-snapshotter.sock].
    #[arg(long, value_name = "SOCKET")]
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
}

fn driver<'de, D: Deserializer<'de>>(from: D) -> Result<Driver, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

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
            ..DeviceOptions::default()
        }
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
}

impl Default for RegistryConfig {
    fn default() -> Self {
        let ClientOptions { plain_http, hosts_dir, docker_config, .. } = ClientOptions::default();
        Self { plain_http, hosts_dir, docker_config }
    }
}

impl RegistryConfig {
    /// In the words of the registry room.
    pub fn client_options(&self) -> ClientOptions {
        let Self { plain_http, hosts_dir, docker_config } = self.clone();
        ClientOptions { plain_http, hosts_dir, docker_config, ..ClientOptions::default() }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: "/run/clipper-snapshotter/clipper-snapshotter.sock".into(),
            root: "/var/lib/clipper-snapshotter".into(),
            log_level: "info".into(),
            containerd_address: "/run/containerd/containerd.sock".into(),
            driver: Driver::default(),
            background_fill: true,
            registry: RegistryConfig::default(),
            fetch: FetchConfig::default(),
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
        let Arguments { config: _, address, root, containerd_address, driver, log_level } = arguments;
        config.address = address.unwrap_or(config.address);
        config.root = root.unwrap_or(config.root);
        config.containerd_address = containerd_address.unwrap_or(config.containerd_address);
        config.driver = driver.unwrap_or(config.driver);
        config.log_level = log_level.unwrap_or(config.log_level);
        config.root = std::path::absolute(&config.root).context("make the root absolute")?;
        config.check()?;
        Ok(config)
    }

    /// How images are mounted.
    pub fn mount_options(&self) -> MountOptions {
        MountOptions { driver: self.driver, background_fill: self.background_fill, ..MountOptions::default() }
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
        let FetchConfig { connections, background_connections, memory_mib, read_ahead_mib, .. } = self.fetch;
        if connections == 0 || background_connections == 0 {
            bail!("fetch.connections and fetch.background_connections must be at least 1");
        }
        if !(4..=65536).contains(&memory_mib) || read_ahead_mib > 65536 {
            bail!("fetch.memory_mib must be 4 to 65536, and fetch.read_ahead_mib at most 65536");
        }
        Ok(())
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
    fn unknown_keys_and_unmountable_roots_are_refused() {
        assert!(Config::parse("backgroundfill = true").unwrap_err().to_string().contains("backgroundfill"));
        for root in ["/a:b", "/a,b", "/a\\b"] {
            let error = Config::load(arguments(&["--root", root])).unwrap_err().to_string();
            assert!(error.contains("root"), "{error}");
        }
    }
}
