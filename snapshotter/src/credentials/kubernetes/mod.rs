//! Kubernetes secrets of type `kubernetes.io/dockerconfigjson` that carry a label: watched, and kept over a restart.
//!
//! ```text
//! ROOT/credentials.kubernetes    what is known, sealed
//! ```
mod api;
mod failure;
mod health;
mod pull_secret;
mod secrets;
#[cfg(test)]
mod tests;
mod watch;

use super::sealed::{Key, Sealed};
use crate::config::KubernetesConfig;
use anyhow::{Context, Result};
use clipper_registry::{CredentialSource, Found, Subject};
use futures::{FutureExt, future::BoxFuture};
use health::Health;
use secrets::{Scope, Secrets};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::task::AbortHandle;
use watch::Watch;

const MAGIC: &[u8; 8] = b"CLPRK8S1";
/// How long whoever knows no credential waits for the first answer of the API server since the start.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Changes that come together are written down together.
const SETTLE: Duration = Duration::from_millis(200);

/// The secrets of a cluster.
#[derive(Debug)]
pub struct Kubernetes {
    secrets: Arc<Secrets>,
    health: Arc<Health>,
    tasks: Vec<AbortHandle>,
}

impl Kubernetes {
    /// Begins to watch, with what an earlier life knew. Nothing is waited for.
    ///
    /// # Errors
    /// What was kept can't be read.
    pub fn start(root: &Path, key: &Arc<Key>, config: &KubernetesConfig) -> Result<Self> {
        let scopes = scopes(config);
        let file = Sealed::new(file(root), MAGIC, Arc::clone(key));
        let kept = file.read(|content| Secrets::parse(content, &scopes))?;
        let secrets = Arc::new(kept.unwrap_or_default());
        let health = Arc::new(Health::new(&scopes));
        let mut tasks = vec![tokio::spawn(keep(Arc::clone(&secrets), file)).abort_handle()];
        for scope in scopes {
            let (secrets, health) = (Arc::clone(&secrets), Arc::clone(&health));
            let watch = Watch { scope, kubeconfig: config.kubeconfig.clone(), secrets, health };
            tasks.push(tokio::spawn(watch.run()).abort_handle());
        }
        Ok(Self { secrets, health, tasks })
    }

    /// Forgets what an earlier life knew that still watched.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn forget(root: &Path) -> Result<()> {
        let file = file(root);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(file.display().to_string()),
            _ => Ok(()),
        }
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl CredentialSource for Kubernetes {
    fn find<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Found> {
        async {
            let mut credentials = self.secrets.find(subject);
            if credentials.is_empty() {
                self.health.tried(FIRST_ANSWER).await;
                credentials = self.secrets.find(subject);
            }
            let problem = if credentials.is_empty() { self.health.problem() } else { None };
            Found { credentials, problem }
        }
        .boxed()
    }
}

fn file(root: &Path) -> PathBuf {
    root.join("credentials.kubernetes")
}

/// A selector can't say "this label or that", and a path not "this namespace or that".
fn scopes(config: &KubernetesConfig) -> Vec<Scope> {
    let namespaces: BTreeSet<Option<String>> = match &config.namespaces[..] {
        [] => [None].into(),
        some => some.iter().cloned().map(Some).collect(),
    };
    let labels: BTreeSet<&String> = config.labels.iter().collect();
    let scope = |namespace: &Option<String>, label: &&String| Scope {
        namespace: namespace.clone(),
        label: String::clone(label),
    };
    namespaces.iter().flat_map(|namespace| labels.iter().map(move |label| scope(namespace, label))).collect()
}

/// Writes down what is known whenever it changes.
async fn keep(secrets: Arc<Secrets>, file: Sealed) {
    loop {
        secrets.changed().await;
        tokio::time::sleep(SETTLE).await;
        let (secrets, file) = (Arc::clone(&secrets), file.clone());
        let written = tokio::task::spawn_blocking(move || file.write(secrets.content()));
        if let Ok(Err(error)) = written.await {
            tracing::warn!(error = format!("{error:#}"), "Kubernetes secrets aren't kept over a restart");
        }
    }
}
