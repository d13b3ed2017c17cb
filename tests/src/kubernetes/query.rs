//! What was asked for, and what fits it.
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::server::Event;

/// What was asked for.
pub(crate) struct Query {
    namespace: Option<String>,
    pub pairs: BTreeMap<String, String>,
}

impl Query {
    /// Reads path and query; `None` if that isn't about secrets.
    pub fn parse(line: &str) -> Option<Self> {
        let (path, query) = line.split_once('?').unwrap_or((line, ""));
        let namespace = match path.strip_prefix("/api/v1/")?.split('/').collect::<Vec<_>>()[..] {
            ["secrets"] => None,
            ["namespaces", namespace, "secrets"] => Some(namespace.into()),
            _ => return None,
        };
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (decoded(key), decoded(value)));
        Some(Self { namespace, pairs: query.split('&').filter_map(pair).collect() })
    }

    /// Whether a secret is asked for.
    pub fn matches(&self, secret: &Value) -> bool {
        let each = |selector: &str| self.pairs.get(selector).cloned().unwrap_or_default();
        let label = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => secret["metadata"]["labels"][key] == value.trim_start_matches('='),
            None => !secret["metadata"]["labels"][wanted].is_null(),
        };
        let field = |wanted: &str| wanted.strip_prefix("type=").is_some_and(|kind| secret["type"] == kind);
        self.namespace.as_ref().is_none_or(|namespace| secret["metadata"]["namespace"] == **namespace)
            && each("labelSelector").split(',').filter(|part| !part.is_empty()).all(label)
            && each("fieldSelector").split(',').filter(|part| !part.is_empty()).all(field)
    }

    /// What a change is to whoever asked: a secret that isn't asked for any more is deleted to them.
    pub fn event(&self, event: &Event) -> Option<Value> {
        let before = event.before.as_ref().filter(|secret| self.matches(secret));
        let after = event.after.as_ref().filter(|secret| self.matches(secret));
        let (kind, mut secret) = match (before, after) {
            (None, Some(secret)) => ("ADDED", secret.clone()),
            (Some(_), Some(secret)) => ("MODIFIED", secret.clone()),
            (Some(secret), None) => ("DELETED", secret.clone()),
            (None, None) => return None,
        };
        secret["metadata"]["resourceVersion"] = event.version.to_string().into();
        Some(json!({"type": kind, "object": secret}))
    }
}

/// A part of a query without its escapes.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex: String = rest.by_ref().take(2).map(char::from).collect();
                u8::from_str_radix(&hex, 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
