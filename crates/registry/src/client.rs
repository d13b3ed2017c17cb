//! The client: its options, and what all who use it share.
use crate::{
    credentials::{CredentialSource, DockerConfig},
    error::{ErrorKind, RegistryError},
    hosts,
    layout::Layout,
    net::Net,
    reference::Reference,
    remote::Remote,
    repository::Repository,
    servers::Servers,
    stats::{HostStats, Stats},
    transport::Transports,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How a client speaks to registries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// Speak plain HTTP to every host for which hosts.toml names no scheme. Loopback hosts are spoken to so anyhow.
    pub plain_http: bool,
    /// containerd's directory of hosts.toml files; `None` to read none.
    pub hosts_dir: Option<PathBuf>,
    /// Docker's config.json; `None` for the user's own. Of no effect where credentials come from elsewhere.
    pub docker_config: Option<PathBuf>,
    /// Longest wait for a TCP connection with its TLS handshake.
    pub connect_timeout: Duration,
    /// Longest silence of a server: before an answer's head, or between two pieces of its body.
    pub stall_timeout: Duration,
    /// Rounds of attempts at a request, the first included; in a round, each mirror and the server is asked once. A body
    /// that made progress before it broke starts anew.
    pub attempts: u32,
    /// Wait before the second round; doubled for each further one, with jitter.
    pub backoff: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            hosts_dir: Some("/etc/containerd/certs.d".into()),
            docker_config: None,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            attempts: 6,
            backoff: Duration::from_millis(200),
        }
    }
}

/// A client of registries and OCI layouts. Clones share connections, tokens and counters.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: ClientOptions,
    net: Arc<Net>,
    servers: Arc<Servers>,
    layouts: Mutex<HashMap<PathBuf, Arc<Layout>>>,
}

impl Client {
    /// A client with the credentials of docker's config.json; it opens no connection and reads no file yet.
    ///
    /// # Errors
    /// An option is out of its range.
    pub fn new(options: ClientOptions) -> Result<Self, RegistryError> {
        let credentials = Arc::new(DockerConfig::new(options.docker_config.clone()));
        Self::with_credentials(options, credentials)
    }

    /// As [`new`](Self::new), with credentials from elsewhere.
    ///
    /// # Errors
    /// An option is out of its range.
    pub fn with_credentials(
        options: ClientOptions,
        credentials: Arc<dyn CredentialSource>,
    ) -> Result<Self, RegistryError> {
        if options.attempts == 0 || options.stall_timeout.is_zero() || options.connect_timeout.is_zero() {
            return Err(ErrorKind::Request("attempts and timeouts must be above zero".into())
                .during("setting up the registry client"));
        }
        let net = Net {
            transports: Transports::new(options.connect_timeout),
            credentials,
            stall: options.stall_timeout,
            attempts: options.attempts,
            backoff: options.backoff,
        };
        let net = Arc::new(net);
        let servers = Arc::new(Servers::new(options.hosts_dir.clone(), options.plain_http, net.clone()));
        Ok(Self(Arc::new(Inner { options, net, servers, layouts: Mutex::default() })))
    }

    /// The repository that `reference` is in. Nothing is asked of the registry yet.
    ///
    /// # Errors
    /// The host's hosts.toml can't be read.
    pub fn repository(&self, reference: &Reference) -> Result<Repository, RegistryError> {
        match reference {
            Reference::Layout(layout) => Ok(Repository::layout(self.layout(&layout.dir))),
            Reference::Registry(r) => {
                let read = self.0.servers.of(&r.host);
                read.map_err(|kind| kind.during(format!("reading the configuration of registry {}", r.host)))?;
                Ok(Repository::remote(Remote {
                    net: self.0.net.clone(),
                    servers: self.0.servers.clone(),
                    host: r.host.clone(),
                    repository: r.repository.clone(),
                }))
            }
        }
    }

    /// The hosts, with their ports, that `hosts_dir` has a directory for.
    pub fn configured_hosts(&self) -> Vec<String> {
        self.0.options.hosts_dir.as_deref().map(hosts::configured_hosts).unwrap_or_default()
    }

    /// What has been asked of registries so far.
    pub fn stats(&self) -> Stats {
        self.0.net.transports.counters.snapshot()
    }

    /// The same by server, with how each is doing: registries, mirrors, token servers, and the storage servers that
    /// registries redirect to. Sorted by name.
    pub fn host_stats(&self) -> Vec<HostStats> {
        let mut hosts = self.0.net.transports.counters.hosts();
        for host in &mut hosts {
            host.sick = self.0.servers.is_sick(&host.host);
        }
        hosts
    }

    /// One object per directory, so that writers of one index.json take turns.
    fn layout(&self, dir: &Path) -> Arc<Layout> {
        let key = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let mut layouts = self.0.layouts.lock().unwrap_or_else(PoisonError::into_inner);
        layouts.entry(key).or_insert_with(|| Arc::new(Layout::new(dir.to_owned()))).clone()
    }
}
