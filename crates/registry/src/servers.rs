//! The servers of each registry host, as hosts.toml tells them now.
use crate::{endpoint::Endpoint, error::ErrorKind, hosts, net::Net};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How often it is looked whether a hosts.toml has changed.
const LOOK: Duration = Duration::from_secs(1);

/// The servers of a host: mirrors, then the registry itself.
pub(crate) type Endpoints = Arc<Vec<Arc<Endpoint>>>;

/// Which hosts.toml was read, and as of when.
type Stamp = Option<(PathBuf, Option<SystemTime>)>;

/// The servers of all hosts. They are kept, so that whoever speaks to a host shares tokens, redirects and what is known of
/// its servers' health.
#[derive(Debug)]
pub(crate) struct Servers {
    hosts_dir: Option<PathBuf>,
    plain_http: bool,
    net: Arc<Net>,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    looked: Instant,
    endpoints: Endpoints,
}

impl Servers {
    pub fn new(hosts_dir: Option<PathBuf>, plain_http: bool, net: Arc<Net>) -> Self {
        Self { hosts_dir, plain_http, net, known: Mutex::default() }
    }

    /// The servers of `host`. A changed hosts.toml is read anew.
    pub fn of(&self, host: &str) -> Result<Endpoints, ErrorKind> {
        let dir = self.hosts_dir.as_deref().and_then(|dir| hosts::config_dir(dir, host));
        let stamp: Stamp = dir.map(|dir| {
            let modified = std::fs::metadata(dir.join("hosts.toml")).and_then(|m| m.modified()).ok();
            (dir, modified)
        });
        let looked = Instant::now();
        let mut known = self.lock();
        if let Some(known) = known.get_mut(host).filter(|known| known.stamp == stamp) {
            known.looked = looked;
            return Ok(known.endpoints.clone());
        }
        let servers = match &stamp {
            Some((dir, _)) => hosts::configured_servers(dir, host, self.plain_http)?,
            None => vec![hosts::default_server(host, self.plain_http)?],
        };
        let endpoints: Vec<_> = servers.into_iter().map(|s| Arc::new(Endpoint::new(s, &self.net))).collect();
        let endpoints = Arc::new(endpoints);
        known.insert(host.to_owned(), Known { stamp, looked, endpoints: endpoints.clone() });
        Ok(endpoints)
    }

    /// As [`of`](Self::of), for those who have asked before: a hosts.toml that can't be read now, because it's being
    /// written, changes nothing.
    pub fn now(&self, host: &str) -> Endpoints {
        let before = self.lock().get(host).map(|known| (known.looked, known.endpoints.clone()));
        match before {
            Some((looked, endpoints)) if looked.elapsed() < LOOK => endpoints,
            before => self.of(host).unwrap_or_else(|error| {
                tracing::warn!(host, %error, "the registry's servers stay those that they were");
                if let Some(known) = self.lock().get_mut(host) {
                    known.looked = Instant::now();
                }
                before.map(|(_, endpoints)| endpoints).unwrap_or_default()
            }),
        }
    }

    /// Whether one of the known servers of this name failed last.
    pub fn is_sick(&self, label: &str) -> bool {
        self.lock().values().flat_map(|known| known.endpoints.iter()).any(|e| e.label == label && e.health.is_sick())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
