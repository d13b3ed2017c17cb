//! Whether secrets can be read: told once per change, and waited for a moment by whoever comes first.
use super::{failure::Failure, secrets::Scope};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// How all scopes are.
#[derive(Debug)]
pub struct Health {
    scopes: Mutex<Scopes>,
    /// How many haven't been tried yet.
    untried: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Scopes {
    untried: BTreeSet<Scope>,
    failing: BTreeMap<Scope, Failure>,
}

impl Health {
    /// Of scopes that nothing is known of yet.
    pub fn new(scopes: &[Scope]) -> Self {
        let untried: BTreeSet<Scope> = scopes.iter().cloned().collect();
        let count = untried.len();
        Self { scopes: Mutex::new(Scopes { untried, failing: BTreeMap::new() }), untried: watch::Sender::new(count) }
    }

    /// The server has answered.
    pub fn works(&self, scope: &Scope) {
        let mut scopes = self.lock();
        if scopes.untried.remove(scope) {
            tracing::info!(%scope, "Kubernetes secrets are watched");
        }
        if scopes.failing.remove(scope).is_some() && scopes.failing.is_empty() {
            tracing::info!("Kubernetes secrets can be read again");
        }
        self.untried.send_replace(scopes.untried.len());
    }

    /// Something went wrong; it will be tried again.
    pub fn fails(&self, scope: &Scope, failure: Failure) {
        let mut scopes = self.lock();
        scopes.untried.remove(scope);
        if !scopes.failing.values().any(|known| known.is_like(&failure)) {
            tracing::warn!(
                %scope,
                problem = %failure,
                "Kubernetes secrets can't be read just now; those that are known stay in use"
            );
        }
        scopes.failing.insert(scope.clone(), failure);
        self.untried.send_replace(scopes.untried.len());
    }

    /// Waits until all have been tried, but not for long.
    pub async fn tried(&self, limit: Duration) {
        let mut untried = self.untried.subscribe();
        // Whether that came about or the time is up is the same to whoever asks.
        let _ = tokio::time::timeout(limit, untried.wait_for(|count| *count == 0)).await;
    }

    /// What is wrong, if anything is.
    pub fn problem(&self) -> Option<String> {
        self.lock().failing.values().next().map(|failure| format!("Kubernetes secrets can't be read: {failure}"))
    }

    fn lock(&self) -> MutexGuard<'_, Scopes> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
