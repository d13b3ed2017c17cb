//! Credentials of registries: where they come from, in the order in which they are tried.
//!
//! | source | told by |
//! |---|---|
//! | [`labels`] | whoever prepares a snapshot |
//! | [`kubernetes`] | Kubernetes secrets with a label |
//! | [`plugins`] | kubelet's credential provider plugins |
//! | docker's config.json | its helpers, too ([`DockerConfig`]) |
//! | [`cri`] | kubelet, with the pod's pull secrets, if it pulls images through this daemon |
mod cri;
mod kubernetes;
mod labels;
mod pattern;
mod plugins;
mod sealed;
mod vault;
mod written;

pub use cri::ImageProxy;
pub use labels::Told;
pub use pattern::Pattern;

use crate::config::Config;
use anyhow::{Context, Result};
use clipper_registry::{CredentialSource, DockerConfig, Found, Subject};
use futures::{FutureExt, future::BoxFuture};
use kubernetes::Kubernetes;
use plugins::Plugins;
use sealed::Key;
use std::{path::Path, sync::Arc};
use vault::{Origin, Vault};

/// All sources.
#[derive(Debug)]
pub struct Credentials {
    sources: Vec<Arc<dyn CredentialSource>>,
    vault: Arc<Vault>,
}

impl Credentials {
    /// The sources that `config` names; what an earlier life was told is read from below `root`. Nothing is waited for.
    pub fn open(root: &Path, config: &Config) -> Result<Arc<Self>> {
        let key = Key::open(root, config.credentials.key_file.as_deref())?;
        let vault = Arc::new(Vault::open(root, &key)?);
        let mut sources: Vec<Arc<dyn CredentialSource>> = vec![Arc::new(vault.of(Origin::Label))];
        match &config.credentials.kubernetes {
            Some(kubernetes) => sources.push(Arc::new(Kubernetes::start(root, &key, kubernetes)?)),
            None => Kubernetes::forget(root).context("forget Kubernetes secrets")?,
        }
        if let Some(plugins) = &config.credentials.plugins {
            sources.push(Arc::new(Plugins::load(plugins).context("kubelet's credential provider plugins")?));
        }
        sources.push(Arc::new(DockerConfig::new(config.registry.docker_config.clone())));
        sources.push(Arc::new(vault.of(Origin::Cri)));
        Ok(Arc::new(Self { sources, vault }))
    }

    /// Takes credentials out of snapshots' labels.
    pub fn told(&self) -> Told {
        Told::new(Arc::clone(&self.vault))
    }

    /// Passes kubelet's requests about images on to containerd, which listens at `containerd`.
    pub fn image_proxy(&self, containerd: &Path) -> Result<ImageProxy> {
        ImageProxy::new(containerd, Arc::clone(&self.vault))
    }
}

impl CredentialSource for Credentials {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        async {
            let mut all = Found::default();
            for source in &self.sources {
                let Found { credentials, problem } = source.find(subject).await;
                for credential in credentials {
                    if !all.credentials.contains(&credential) {
                        all.credentials.push(credential);
                    }
                }
                all.problem = match (all.problem, problem) {
                    (Some(one), Some(other)) => Some(format!("{one}; {other}")),
                    (one, other) => one.or(other),
                };
            }
            all
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KubernetesConfig, PluginsConfig};
    use clipper_registry::Credential;
    use clipper_tests::kubernetes::ApiServer;
    use std::fs;

    fn password(password: &str) -> Credential {
        Credential::Password { user: "me".into(), password: password.into() }
    }

    /// A node where every source knows something about `r.example/team/app`, without the first `without` of them.
    async fn asked(root: &Path, api: &ApiServer, without: usize) -> Vec<Credential> {
        let mut config = Config::default();
        let subject = Subject::new("r.example", "team/app");
        if without < 2 {
            let kubeconfig = Some(api.kubeconfig().unwrap());
            config.credentials.kubernetes = Some(KubernetesConfig { kubeconfig, ..KubernetesConfig::default() });
        }
        if without < 3 {
            let script = r#"echo '{"kind": "CredentialProviderResponse", "cacheKeyType": "Image",
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "auth": {"r.example": {"username": "me", "password": "plugin"}}}'"#;
            let plugins = serde_json::json!({
                "apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
                "providers": [{
                    "name": "sh", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "matchImages": ["r.example"],
                    "defaultCacheDuration": "1h", "args": ["-c", script],
                }],
            });
            fs::write(root.join("plugins.json"), plugins.to_string()).unwrap();
            config.credentials.plugins =
                Some(PluginsConfig { config: root.join("plugins.json"), bin_dir: "/bin".into() });
        }
        let logins = if without < 4 { r#"{"r.example": {"username": "me", "password": "docker"}}"# } else { "{}" };
        fs::write(root.join("config.json"), format!(r#"{{"auths": {logins}}}"#)).unwrap();
        config.registry.docker_config = Some(root.join("config.json"));
        let credentials = Credentials::open(root, &config).unwrap();
        if without < 1 {
            credentials.vault.put(Origin::Label, &subject, password("label")).await;
        }
        if without < 5 {
            credentials.vault.put(Origin::Cri, &subject, password("cri")).await;
        }
        let found = credentials.find(&subject).await;
        assert_eq!(found.problem, None);
        found.credentials
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_source_wins_over_those_behind_it() {
        let api = ApiServer::start().unwrap();
        api.put_login("team", "pull", "https://r.example/v1/", "me", "kubernetes");
        let order = ["label", "kubernetes", "plugin", "docker", "cri"].map(password);
        for without in 0..=order.len() {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(asked(root.path(), &api, without).await, order[without..]);
        }
    }

    #[tokio::test]
    async fn what_is_no_longer_configured_is_no_longer_kept() {
        let root = tempfile::tempdir().unwrap();
        let kept = root.path().join("credentials.kubernetes");
        fs::write(&kept, "whatever").unwrap();
        Credentials::open(root.path(), &Config::default()).unwrap();
        assert!(!kept.exists());
    }
}
