//! TLS: trust, client certificates, and servers of the wrong kind. The certificates in certs/ are for 127.0.0.1 and
//! valid until 2120; the key of their CA was thrown away.
use crate::fake::*;
use clipper_registry::{Client, ClientOptions, ErrorKind};
use std::sync::Arc;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

fn certificate(name: &str) -> String {
    format!("{}/tests/it/certs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A TLS server of one blob that may want a client certificate.
async fn server(wants_client: bool) -> Fake {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificate("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_file(certificate("server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()));
    let data = sample(1000);
    Fake::start_with(
        move |seen| blob_reply(seen, &data),
        move |socket| {
            let acceptor = acceptor.clone();
            async move { acceptor.accept(socket).await }
        },
    )
    .await
}

/// Reads from a server as hosts.toml says.
async fn read_with(server: &Fake, settings: &str) -> Result<bytes::Bytes, clipper_registry::RegistryError> {
    let toml = format!("server = \"https://{}\"\n{settings}", server.host());
    let (client, _dir) = client_with_hosts(&server.host(), &toml);
    read(&blob(server, &client, &sample(1000)), 0..100).await
}

#[tokio::test]
async fn https_in_hosts_toml_wins_over_loopback_s_plain_http() {
    let server = server(false).await;
    let ca = format!("ca = {:?}", certificate("ca.pem"));
    assert_eq!(read_with(&server, &ca).await.unwrap(), sample(1000).slice(..100));
    assert_eq!(read_with(&server, "skip_verify = true").await.unwrap(), sample(1000).slice(..100));
}

#[tokio::test]
async fn an_unknown_certificate_is_refused_once_and_the_cure_named() {
    let server = server(false).await;
    let error = read_with(&server, "").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Tls { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&server.host()) && text.contains("hosts.toml"), "{text}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let server = server(true).await;
    let ca = format!("ca = {:?}", certificate("ca.pem"));
    let pair = format!("client = [[{:?}, {:?}]]", certificate("client.pem"), certificate("client.key"));
    assert!(read_with(&server, &format!("{ca}\n{pair}")).await.is_ok());
    assert!(read_with(&server, &ca).await.is_err());
}

#[tokio::test]
async fn a_plain_server_spoken_to_in_tls_suggests_plain_http() {
    let server = Fake::start(|_| Reply::new(200)).await;
    let error = read_with(&server, "skip_verify = true").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::PlainServer { .. }), "{error}");
    assert!(error.to_string().contains("--plain-http"), "{error}");
}

#[tokio::test]
async fn a_tls_server_spoken_to_in_plain_http_is_told() {
    // What Go's servers answer.
    let words = "Client sent an HTTP request to an HTTPS server.\n";
    let server = Fake::start(move |_| Reply::new(400).bytes(words)).await;
    let client = Client::new(ClientOptions { plain_http: true, ..options() }).unwrap();
    let error = read(&blob(&server, &client, &sample(10)), 0..5).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TlsServer { .. }), "{error}");
    assert!(error.to_string().contains("HTTPS"), "{error}");
}
