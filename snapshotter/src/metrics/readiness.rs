//! Whether the daemon is ready, and what it waits for if it isn't.
use crate::node::Node;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by whoever changes it and whoever is asked. At first: not ready.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<State>>);

enum State {
    Waiting(&'static str),
    Ready(Arc<Node>),
}

impl Default for State {
    fn default() -> Self {
        Self::Waiting("starting")
    }
}

impl Readiness {
    /// Not ready: it waits for this.
    pub fn wait_for(&self, what: &'static str) {
        *self.state() = State::Waiting(what);
    }

    /// Ready; `node` has the figures.
    pub fn ready(&self, node: Arc<Node>) {
        *self.state() = State::Ready(node);
    }

    /// The node, or what is waited for.
    pub fn node(&self) -> Result<Arc<Node>, &'static str> {
        match &*self.state() {
            State::Waiting(what) => Err(what),
            State::Ready(node) => Ok(Arc::clone(node)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that could panic happens under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
