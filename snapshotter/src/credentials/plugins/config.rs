//! The configuration of credential provider plugins, as kubelet's `--image-credential-provider-config` takes it
//! (kubelet.config.k8s.io, `CredentialProviderConfig`): YAML or JSON.
use super::{super::pattern::Pattern, duration};
use anyhow::{Context, Result, bail};
use clipper_registry::Subject;
use serde::Deserialize;
use std::{path::Path, time::Duration};

/// Versions of the plugins' protocol, which are alike in what is used of them.
const PROTOCOLS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// One plugin.
#[derive(Clone, Debug)]
pub struct Provider {
    /// Name of its program.
    pub name: String,
    /// Version of the protocol.
    pub protocol: String,
    /// The images that it knows.
    images: Vec<Pattern>,
    /// How long its answers hold that don't tell.
    pub hold: Duration,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

impl Provider {
    /// Whether it is to be asked about a repository.
    pub fn knows(&self, subject: &Subject) -> bool {
        self.images.iter().any(|pattern| pattern.matches(subject))
    }
}

#[derive(Deserialize)]
struct File {
    kind: String,
    #[serde(default)]
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    api_version: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// The plugins that the file at `path` lists.
pub fn load(path: &Path) -> Result<Vec<Provider>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Provider>> {
    let file: File = serde_saphyr::from_str(text)?;
    if file.kind != "CredentialProviderConfig" {
        bail!("it is a {:?}, not a CredentialProviderConfig", file.kind);
    }
    let mut providers = Vec::new();
    for entry in file.providers {
        if entry.token_attributes.is_some() {
            // Kubelet hands such a plugin a token of the pod's service account, which nobody else can.
            tracing::warn!(provider = entry.name, "a credential provider wants service account tokens: it isn't used");
            continue;
        }
        let name = entry.name.clone();
        providers.push(entry.provider().with_context(|| format!("provider {name:?}"))?);
    }
    Ok(providers)
}

impl Entry {
    fn provider(self) -> Result<Provider> {
        if self.name.is_empty() || self.name.contains('/') || self.name.starts_with('.') {
            bail!("a name must be that of a file");
        }
        if !PROTOCOLS.contains(&self.api_version.as_str()) {
            bail!("apiVersion {:?} is none of {PROTOCOLS:?}", self.api_version);
        }
        let pattern = |text: &String| Pattern::parse(text).with_context(|| format!("matchImages: {text:?}"));
        let hold = duration::parse(&self.default_cache_duration)
            .with_context(|| format!("defaultCacheDuration: {:?}", self.default_cache_duration))?;
        Ok(Provider {
            images: self.match_images.iter().map(pattern).collect::<Result<_>>()?,
            name: self.name,
            protocol: self.api_version,
            hold,
            arguments: self.args.unwrap_or_default(),
            environment: self.env.unwrap_or_default().into_iter().map(|v| (v.name, v.value)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelet_s_own_example_is_understood() {
        let text = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
      - "registry.io:8080/path"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example_profile
  - name: with-tokens
    matchImages: ["x.io"]
    defaultCacheDuration: "0"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}
"#;
        let [provider] = parse(text).unwrap().try_into().unwrap();
        assert_eq!((provider.name.as_str(), provider.hold), ("ecr", Duration::from_secs(12 * 3600)));
        assert_eq!(provider.arguments, ["get-credentials"]);
        assert_eq!(provider.environment, [("AWS_PROFILE".into(), "example_profile".into())]);
        assert!(provider.knows(&Subject::new("1.dkr.ecr.eu.amazonaws.com", "a")));
        assert!(provider.knows(&Subject::new("registry.io:8080", "path/a")));
        assert!(!provider.knows(&Subject::new("registry.io:8080", "other")));
    }

    #[test]
    fn mistakes_are_named() {
        let file = |provider: &str| format!(r#"{{"kind": "CredentialProviderConfig", "providers": [{provider}]}}"#);
        let entry = |name: &str, version: &str, images: &str, hold: &str| {
            file(&format!(
                r#"{{"name": "{name}", "apiVersion": "credentialprovider.kubelet.k8s.io/{version}", "matchImages": ["{images}"],
                    "defaultCacheDuration": "{hold}"}}"#
            ))
        };
        assert_eq!(parse(&entry("p", "v1", "r.io", "1m")).unwrap().len(), 1);
        for (text, word) in [
            (r#"{"kind": "Pod"}"#.into(), "Pod"),
            (entry("../p", "v1", "r.io", "1m"), "../p"),
            (entry("p", "v9", "r.io", "1m"), "v9"),
            (entry("p", "v1", "", "1m"), "matchImages"),
            (entry("p", "v1", "r.io", "soon"), "soon"),
            ("kind: [".into(), ""),
        ] {
            let error = format!("{:#}", parse(&text).expect_err(&text));
            assert!(error.contains(word), "{error}");
        }
    }
}
