//! Which servers stand for a registry host: containerd's `hosts.toml`, or the defaults.
use crate::{
    error::ErrorKind,
    transport::{TlsSettings, is_loopback},
};
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What a server may be asked (containerd, docs/hosts.md, "capabilities").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Content by digest.
    Pull,
    /// A tag's digest.
    Resolve,
    /// Uploads.
    Push,
}

/// One server of a registry host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    /// Base of the API with a trailing slash: `https://host/v2/`.
    pub base: Url,
    pub capabilities: Vec<Capability>,
    pub tls: TlsSettings,
    pub headers: HeaderMap,
    /// The registry host whose content a mirror is asked for, as the query parameter `ns`.
    pub namespace: Option<String>,
}

const ALL: [Capability; 3] = [Capability::Pull, Capability::Resolve, Capability::Push];

#[derive(Deserialize, Default)]
struct HostsFile {
    server: Option<String>,
    #[serde(flatten)]
    settings: HostSettings,
    #[serde(default)]
    host: toml::Table,
}

#[derive(Deserialize, Default)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<toml::Value>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: toml::Table,
    override_path: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// The directory that configures `host`, if there is one: `host_port_`, `host:port`, else `_default`
/// (containerd, core/remotes/docker/config/config_unix.go).
pub(crate) fn config_dir(hosts_dir: &Path, host: &str) -> Option<PathBuf> {
    let mut names = Vec::with_capacity(3);
    if let Some((name, port)) = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())) {
        names.push(format!("{name}_{port}_"));
    }
    names.extend([host.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| hosts_dir.join(name)).find(|dir| dir.is_dir())
}

/// The hosts that `hosts_dir` configures: the other way round of [`config_dir`].
pub(crate) fn configured_hosts(hosts_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(hosts_dir).into_iter().flatten().flatten();
    let mut hosts: Vec<_> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "_default")
        .map(|name| match name.strip_suffix('_').and_then(|rest| rest.rsplit_once('_')) {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => format!("{host}:{port}"),
            _ => name,
        })
        .collect();
    hosts.sort();
    hosts
}

/// The server that a host stands for where nothing is configured.
pub(crate) fn default_server(host: &str, plain_http: bool) -> Result<Server, ErrorKind> {
    let (server, scheme) = (actual_host(host), if plain_http || default_is_plain(host) { "http" } else { "https" });
    let base = parse_url(&format!("{scheme}://{server}/v2/"))?;
    Ok(Server {
        base,
        capabilities: ALL.to_vec(),
        tls: TlsSettings::default(),
        headers: HeaderMap::new(),
        namespace: None,
    })
}

/// The servers that `dir` configures for `host`: mirrors in their order, then the server itself.
pub(crate) fn configured_servers(dir: &Path, host: &str, plain_http: bool) -> Result<Vec<Server>, ErrorKind> {
    let path = dir.join("hosts.toml");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let mut server = default_server(host, plain_http)?;
            server.tls = docker_certificates(dir)?;
            return Ok(vec![server]);
        }
        Err(e) => return Err(ErrorKind::Config { path: path.display().to_string(), problem: e.to_string() }),
    };
    parse_hosts(&text, dir, host, plain_http)
        .map_err(|problem| ErrorKind::Config { path: path.display().to_string(), problem })
}

fn parse_hosts(text: &str, dir: &Path, host: &str, plain_http: bool) -> Result<Vec<Server>, String> {
    let file: HostsFile = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut servers = Vec::new();
    for (name, settings) in file.host {
        let settings: HostSettings = settings.try_into().map_err(|e| format!("[host.{name:?}]: {e}"))?;
        servers.push(settings.server(&name, dir, host).map_err(|e| format!("[host.{name:?}]: {e}"))?);
    }
    let name = match file.server.filter(|s| !s.is_empty()) {
        Some(server) => server,
        None => {
            let scheme = if plain_http || default_is_plain(host) { "http" } else { "https" };
            format!("{scheme}://{}", actual_host(host))
        }
    };
    servers.push(file.settings.server(&name, dir, host).map_err(|e| format!("server {name:?}: {e}"))?);
    Ok(servers)
}

impl HostSettings {
    fn server(self, name: &str, dir: &Path, host: &str) -> Result<Server, String> {
        let url = if name.contains("://") {
            name.to_owned()
        } else {
            let bare = name.split('/').next().unwrap_or(name);
            format!("{}://{name}", if default_is_plain(bare) { "http" } else { "https" })
        };
        let mut base = parse_url(&url).map_err(|e| e.to_string())?;
        let path = base.path().trim_end_matches('/').to_owned();
        let override_path = self.override_path.unwrap_or(false);
        base.set_path(&if override_path || path.ends_with("/v2") { format!("{path}/") } else { format!("{path}/v2/") });
        let capabilities = match self.capabilities {
            None => ALL.to_vec(),
            Some(names) => names.iter().map(|n| parse_capability(n)).collect::<Result<_, _>>()?,
        };
        let absolute = |file: String| dir.join(file);
        let tls = TlsSettings {
            ca: self.ca.map(OneOrMany::into_vec).unwrap_or_default().into_iter().map(absolute).collect(),
            client: self.client.map(|c| client_pair(&c, dir)).transpose()?.flatten(),
            skip_verify: self.skip_verify.unwrap_or(false),
        };
        let own = authority(&base);
        let namespace = (own != host && own != actual_host(host)).then(|| host.to_owned());
        Ok(Server { base, capabilities, tls, headers: parse_headers(&self.header)?, namespace })
    }
}

fn parse_capability(name: &str) -> Result<Capability, String> {
    match name {
        "pull" => Ok(Capability::Pull),
        "resolve" => Ok(Capability::Resolve),
        "push" => Ok(Capability::Push),
        other => Err(format!("unknown capability {other:?}")),
    }
}

/// `client = "pem"`, `["pem", …]` or `[["cert", "key"], …]`; the first pair is shown.
fn client_pair(value: &toml::Value, dir: &Path) -> Result<Option<(PathBuf, PathBuf)>, String> {
    let wrong = || "client wants a file, or pairs of a certificate and a key".to_owned();
    let file = |v: &toml::Value| v.as_str().map(|s| dir.join(s)).ok_or_else(wrong);
    let first = match value {
        toml::Value::Array(list) => match list.first() {
            None => return Ok(None),
            Some(first) => first,
        },
        single => single,
    };
    match first {
        toml::Value::Array(pair) => match pair.as_slice() {
            [certificate, key] => Ok(Some((file(certificate)?, file(key)?))),
            [both] => Ok(Some((file(both)?, file(both)?))),
            _ => Err(wrong()),
        },
        both => Ok(Some((file(both)?, file(both)?))),
    }
}

fn parse_headers(table: &toml::Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let bad = || format!("header {name:?} wants a text or a list of texts");
        let values = match value {
            toml::Value::Array(list) => list.iter().map(|v| v.as_str()).collect::<Option<Vec<_>>>().ok_or_else(bad)?,
            one => vec![one.as_str().ok_or_else(bad)?],
        };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| format!("header {name:?}: {e}"))?;
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).map_err(|e| format!("header {name}: {e}"))?);
        }
    }
    Ok(headers)
}

/// Docker's way: `*.crt` are CAs, `*.cert` with `*.key` a client certificate, in the host's directory.
fn docker_certificates(dir: &Path) -> Result<TlsSettings, ErrorKind> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(|e| ErrorKind::io(dir, &e))?;
    files.sort();
    let ending = |path: &PathBuf, end: &str| path.extension().is_some_and(|e| e == end);
    let ca = files.iter().filter(|f| ending(f, "crt")).cloned().collect();
    let pairs = files.iter().filter(|f| ending(f, "cert")).map(|f| (f.clone(), f.with_extension("key")));
    Ok(TlsSettings { ca, client: pairs.into_iter().find(|(_, key)| key.is_file()), skip_verify: false })
}

/// Docker Hub's API is at another host than its images are named by.
fn actual_host(host: &str) -> &str {
    if host == "docker.io" { "registry-1.docker.io" } else { host }
}

fn default_is_plain(host: &str) -> bool {
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(']') => name,
        _ => host,
    };
    is_loopback(bare)
}

fn parse_url(text: &str) -> Result<Url, ErrorKind> {
    let url = Url::parse(text).map_err(|e| ErrorKind::Request(format!("{text:?} is not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(ErrorKind::Request(format!("{text:?} is not an http:// or https:// URL")));
    }
    Ok(url)
}

/// `host` or `host:port` of a URL.
pub(crate) fn authority(url: &Url) -> String {
    match (url.host_str().unwrap_or_default(), url.port()) {
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, host: &str) -> Result<Vec<Server>, String> {
        parse_hosts(text, Path::new("/etc/certs/x"), host, false)
    }

    #[test]
    fn defaults_are_plain_on_loopback_only() {
        let base = |host: &str, plain| default_server(host, plain).unwrap().base.to_string();
        assert_eq!(base("localhost:5000", false), "http://localhost:5000/v2/");
        assert_eq!(base("127.0.0.2", false), "http://127.0.0.2/v2/");
        assert_eq!(base("[::1]:5000", false), "http://[::1]:5000/v2/");
        assert_eq!(base("[::1]", false), "http://[::1]/v2/");
        assert_eq!(base("r.example:5000", false), "https://r.example:5000/v2/");
        assert_eq!(base("r.example", true), "http://r.example/v2/");
        assert_eq!(base("docker.io", false), "https://registry-1.docker.io/v2/");
    }

    #[test]
    fn mirrors_keep_the_file_s_order_and_the_server_comes_last() {
        let text = r#"
            server = "https://r.example"
            [host."https://z.example:8443/prefix"]
              capabilities = ["pull"]
              skip_verify = true
              ca = "z.crt"
              client = [["c.pem", "/k.pem"]]
              [host."https://z.example:8443/prefix".header]
                x-one = "1"
                x-two = ["2", "3"]
            [host."a.example/api"]
              override_path = true
              capabilities = ["pull", "resolve"]
              ca = ["a.crt", "/b.crt"]
              client = "both.pem"
            [host."127.0.0.1:5000"]
        "#;
        let servers = parse(text, "r.example").unwrap();
        let bases: Vec<_> = servers.iter().map(|s| s.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example:8443/prefix/v2/",
                "https://a.example/api/",
                "http://127.0.0.1:5000/v2/",
                "https://r.example/v2/"
            ]
        );
        assert_eq!(servers[0].capabilities, [Capability::Pull]);
        assert!(servers[0].tls.skip_verify && !servers[1].tls.skip_verify);
        assert_eq!(servers[0].tls.ca, [PathBuf::from("/etc/certs/x/z.crt")]);
        assert_eq!(servers[0].tls.client, Some(("/etc/certs/x/c.pem".into(), "/k.pem".into())));
        assert_eq!(servers[0].headers.get("x-one").unwrap(), "1");
        assert_eq!(servers[0].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(servers[1].tls.ca, [PathBuf::from("/etc/certs/x/a.crt"), "/b.crt".into()]);
        assert_eq!(servers[2].capabilities, ALL);
        assert_eq!(servers[0].namespace.as_deref(), Some("r.example"));
        assert_eq!(servers[3].namespace, None);
    }

    #[test]
    fn settings_at_the_top_are_the_server_s() {
        let servers =
            parse("server = \"https://127.0.0.1:5443\"\nskip_verify = true\nca = 'own.crt'", "127.0.0.1:5443");
        let [server] = servers.unwrap().try_into().unwrap();
        assert_eq!(server.base.as_str(), "https://127.0.0.1:5443/v2/");
        assert!(server.tls.skip_verify);
        assert_eq!(server.tls.ca, [PathBuf::from("/etc/certs/x/own.crt")]);
        let [unnamed] = parse("", "docker.io").unwrap().try_into().unwrap();
        assert_eq!((unnamed.base.as_str(), unnamed.namespace), ("https://registry-1.docker.io/v2/", None));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("server = 3", "server"),
            ("[host.\"ftp://x\"]", "ftp://x"),
            ("[host.\"https://x\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://x\"]\nclient = 3", "client"),
            ("[host.\"https://x\"]\nheader = {a = 1}", "header"),
            ("[host.\"https://x\"]\nheader = {\"a b\" = \"1\"}", "a b"),
            ("host = 1", "host"),
        ] {
            let problem = parse(text, "r.example").expect_err(text);
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }

    #[test]
    fn directories_are_named_as_containerd_names_them() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(config_dir(dir.path(), "r.example:5000"), None);
        for name in ["_default", "r.example:5000", "r.example_5000_"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            assert_eq!(config_dir(dir.path(), "r.example:5000"), Some(dir.path().join(name)));
        }
        assert_eq!(config_dir(dir.path(), "other"), Some(dir.path().join("_default")));
        assert_eq!(configured_hosts(dir.path()), ["r.example:5000"; 2]);
        assert_eq!(configured_hosts(Path::new("/nonexistent")), [""; 0]);
    }

    #[test]
    fn certificates_lie_beside_where_there_is_no_hosts_toml() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "other.cert"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let [server] = configured_servers(dir.path(), "r.example", false).unwrap().try_into().unwrap();
        assert_eq!(server.tls.ca, [dir.path().join("ca.crt")]);
        assert_eq!(server.tls.client, Some((dir.path().join("me.cert"), dir.path().join("me.key"))));
    }
}
