//! HTTP clients: TLS settings, timeouts, connection pools.
use crate::{dns::Names, error::ErrorKind, hosts::authority, stats::Counters};
use reqwest::Url;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// Idle connections kept per server: as many as a container start-up has range requests in flight.
const POOL_PER_HOST: usize = 64;
/// Below the 60 s after which common registries and proxies close idle connections.
const POOL_IDLE: Duration = Duration::from_secs(55);
/// Silence after which a connection is asked whether the other end still lives, how often, and for how long what was sent
/// may stay unacknowledged: a machine that vanished is noticed within half a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// Servers whose connections are kept.
const SERVERS_MAX: usize = 256;
/// A pool that is younger than this isn't thrown away: those who found the one before it dead come late.
const POOL_MIN: Duration = Duration::from_secs(1);

/// How a server's certificate is checked, and ours shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TlsSettings {
    /// PEM files of CAs trusted besides the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    pub skip_verify: bool,
}

/// Makes and keeps HTTP clients, one for each server: each has its own connection pool.
#[derive(Debug)]
pub(crate) struct Transports {
    connect_timeout: Duration,
    pub counters: Counters,
    provider: Arc<CryptoProvider>,
    roots: OnceLock<Arc<RootCertStore>>,
    names: Names,
    pools: Mutex<HashMap<Variant, Pool>>,
}

/// The connections to one server.
#[derive(Debug)]
struct Pool {
    client: reqwest::Client,
    made: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Variant {
    /// `host` or `host:port`.
    host: String,
    /// `None` for plain HTTP, so that a client that never needs TLS never reads the system's certificates.
    tls: Option<TlsSettings>,
    /// Loopback servers are never reached through the proxy of the environment.
    loopback: bool,
}

impl Transports {
    pub fn new(connect_timeout: Duration) -> Self {
        Self {
            connect_timeout,
            counters: Counters::default(),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            roots: OnceLock::new(),
            names: Names::system(),
            pools: Mutex::default(),
        }
    }

    /// The client for `url`.
    pub fn client(&self, url: &Url, tls: &TlsSettings) -> Result<reqwest::Client, ErrorKind> {
        let variant = Variant {
            host: authority(url),
            tls: (url.scheme() == "https").then(|| tls.clone()),
            loopback: url.host_str().is_some_and(is_loopback),
        };
        let mut pools = self.pools();
        if let Some(pool) = pools.get(&variant) {
            return Ok(pool.client.clone());
        }
        if pools.len() >= SERVERS_MAX {
            // Connections in use live on.
            pools.clear();
        }
        let client = self.build(&variant)?;
        pools.insert(variant, Pool { client: client.clone(), made: Instant::now() });
        Ok(client)
    }

    /// Throws the idle connections to `host` away, because one of them was silent or its TLS failed: the next request gets
    /// a new one, to where the name points now, with certificates as they are now.
    pub fn renew(&self, host: &str) {
        self.pools().retain(|variant, pool| variant.host != host || pool.made.elapsed() < POOL_MIN);
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<Variant, Pool>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn build(&self, variant: &Variant) -> Result<reqwest::Client, ErrorKind> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("clipper/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.tls(variant.tls.as_ref())?)
            // Many connections with one range request each: HTTP/2 would put them all behind one TCP connection's
            // congestion window and flow control.
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
            .tcp_keepalive_retries(KEEPALIVE_PROBES)
            .tcp_user_timeout(UNACKNOWLEDGED)
            .dns_resolver(self.names.clone())
            .pool_max_idle_per_host(POOL_PER_HOST)
            .pool_idle_timeout(POOL_IDLE);
        if variant.loopback {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|e| ErrorKind::Request(format!("the HTTP client can't be set up: {e}")))
    }

    fn tls(&self, settings: Option<&TlsSettings>) -> Result<ClientConfig, ErrorKind> {
        let versions = ClientConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| ErrorKind::Request(format!("TLS can't be set up: {e}")))?;
        let Some(settings) = settings else {
            return Ok(versions.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        };
        let verified = if settings.skip_verify {
            versions.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(self.provider.clone())))
        } else {
            versions.with_root_certificates(self.roots_with(&settings.ca)?)
        };
        let mut config = match &settings.client {
            None => verified.with_no_client_auth(),
            Some((certificate, key)) => {
                let bad =
                    |path: &Path, problem: String| ErrorKind::Config { path: path.display().to_string(), problem };
                let chain = read_certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, e.to_string()))?;
                verified.with_client_auth_cert(chain, private).map_err(|e| bad(certificate, e.to_string()))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn roots_with(&self, extra: &[PathBuf]) -> Result<Arc<RootCertStore>, ErrorKind> {
        let system = self.roots.get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "a system certificate can't be read");
            }
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                tracing::warn!(
                    "the system has no CA certificates: install ca-certificates, or name a CA in hosts.toml"
                );
            }
            Arc::new(roots)
        });
        if extra.is_empty() {
            return Ok(system.clone());
        }
        let mut roots = RootCertStore::clone(system);
        for path in extra {
            for certificate in read_certificates(path)? {
                roots.add(certificate).map_err(|e| ErrorKind::Config {
                    path: path.display().to_string(),
                    problem: format!("not a CA certificate: {e}"),
                })?;
            }
        }
        Ok(Arc::new(roots))
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ErrorKind> {
    let bad = |problem: String| ErrorKind::Config { path: path.display().to_string(), problem };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| bad(e.to_string()))?;
    if certificates.is_empty() { Err(bad("it holds no PEM certificate".into())) } else { Ok(certificates) }
}

/// Whether a host name, without a port, is this machine's loopback: `localhost`, 127.0.0.0/8 or `::1`.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// `skip_verify` of hosts.toml: any certificate will do, but the handshake's signatures are still checked.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_rest() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "128.0.0.1", "[::2]", "r.example", "", "10.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_missing_or_empty_ca_file_is_named() {
        let transports = Transports::new(Duration::from_secs(1));
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let url = Url::parse("https://r.example/").unwrap();
        for path in [dir.path().join("missing.pem"), empty] {
            let settings = TlsSettings { ca: vec![path.clone()], ..TlsSettings::default() };
            let error = transports.client(&url, &settings).unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
    }
}
