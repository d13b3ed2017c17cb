//! A token server for the reference registry (distribution, docs/spec/auth/jwt.md).
use crate::fake::*;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use reqwest::Url;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use std::time::{SystemTime, UNIX_EPOCH};

/// Base64 of `me:secret`, who may do everything.
pub const LOGIN: &str = "bWU6c2VjcmV0";
const ISSUER: &str = "clipper test issuer";
const SERVICE: &str = "clipper test registry";
/// For so long after its end the registry still takes a token (distribution, registry/auth/token/token.go, `Leeway`).
const LEEWAY: u64 = 60;

/// A running token server.
pub struct TokenServer {
    pub server: Fake,
}

impl TokenServer {
    /// Starts one whose tokens the registry takes for `life` seconds, though they are said to live for five minutes.
    pub async fn start(life: u64) -> Self {
        let server = Fake::start(move |seen| match seen.header("authorization") {
            login if login == format!("Basic {LOGIN}") => {
                let token = sign(&claims(&seen.query, life));
                Reply::new(200).bytes(json!({"token": token, "expires_in": 300}).to_string())
            }
            _ => Reply::error(401, "UNAUTHORIZED", "who are you?"),
        })
        .await;
        Self { server }
    }

    /// The section of the registry's configuration that has it believe this server.
    pub fn configuration(&self) -> String {
        let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/certs/ca.pem");
        let token = json!({
            "realm": format!("http://{}/token", self.server.host()),
            "service": SERVICE, "issuer": ISSUER, "rootcertbundle": ca,
        });
        format!("auth: {}\n", json!({ "token": token }))
    }

    /// How often a token for pushes was asked for.
    pub fn pushes(&self) -> usize {
        self.server.seen().iter().filter(|s| s.query.contains("push")).count()
    }
}

fn claims(query: &str, life: u64) -> serde_json::Value {
    let url = Url::parse(&format!("http://t/?{query}")).unwrap();
    let access = url.query_pairs().filter(|(key, _)| key == "scope").map(|(_, scope)| {
        let [kind, name, actions] = scope.split(':').collect::<Vec<_>>().try_into().unwrap();
        json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()})
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({
        "iss": ISSUER, "sub": "me", "aud": SERVICE, "jti": now.to_string(), "access": access.collect::<Vec<_>>(),
        "iat": now - LEEWAY, "nbf": now - LEEWAY, "exp": now + life - LEEWAY,
    })
}

/// A JSON Web Token, signed with the test server's key, whose certificate is the test CA's.
fn sign(claims: &serde_json::Value) -> String {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("certs/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("certs/server.key")).unwrap();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&header), part(claims));
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), &random).unwrap();
    let signature = pair.sign(&random, text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
