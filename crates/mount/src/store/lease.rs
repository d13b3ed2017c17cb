//! Who uses which layers: what is leased isn't reclaimed.
use crate::layer::LayerId;
use clipper_format::Digest;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// The layers in use by images of this process, and which device each known layer lies on.
#[derive(Default)]
pub(super) struct Leases {
    state: Mutex<LeaseState>,
    /// Told when a layer that was only kept for its leases has none any more.
    released: Notify,
}

#[derive(Default)]
pub(super) struct LeaseState {
    uses: HashMap<LayerId, usize>,
    /// Whether the last reclaiming left leased layers alone that nothing else needs.
    held_back: bool,
    /// Device keys of layers whose index was read since the start.
    pub(super) device_keys: HashMap<LayerId, Digest>,
}

/// Keeps layers from being reclaimed until it is dropped.
pub(crate) struct Lease {
    leases: Arc<Leases>,
    layers: Vec<LayerId>,
}

impl Leases {
    /// Takes a lease on `layers`, whether or not any of it is on disk yet. Waits while something is being reclaimed.
    pub(super) fn take(self: &Arc<Self>, layers: Vec<LayerId>) -> Lease {
        let mut state = self.lock();
        for layer in &layers {
            *state.uses.entry(*layer).or_default() += 1;
        }
        drop(state);
        Lease { leases: Arc::clone(self), layers }
    }

    /// Waits until there may be something to reclaim that a lease held back before.
    pub(super) async fn released(&self) {
        self.released.notified().await;
    }

    /// The state; nobody can take a lease meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseState {
    /// Adds the leased layers to those that are needed; the others are about to be reclaimed.
    pub(super) fn add_to(&mut self, needed: &mut HashSet<LayerId>) {
        let before = needed.len();
        needed.extend(self.uses.keys());
        self.held_back = needed.len() > before;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.lock();
        for layer in &self.layers {
            if let Some(uses) = state.uses.get_mut(layer) {
                *uses -= 1;
                if *uses == 0 {
                    state.uses.remove(layer);
                    if std::mem::take(&mut state.held_back) {
                        self.leases.released.notify_one();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_leased_until_its_last_lease_is_dropped() {
        let layer = |n: &[u8]| LayerId { index: Digest::of(b"index"), layer: Digest::of(n) };
        let leases = Arc::new(Leases::default());
        let first = leases.take(vec![layer(b"a"), layer(b"b"), layer(b"a")]);
        let second = leases.take(vec![layer(b"b")]);
        let leased = || {
            let mut layers = HashSet::new();
            leases.lock().add_to(&mut layers);
            layers
        };
        drop(first);
        assert_eq!(leased(), HashSet::from([layer(b"b")]));
        drop(second);
        assert_eq!(leased(), HashSet::new());
    }

    #[test]
    fn who_waits_hears_of_layers_that_only_a_lease_held_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let layer = |n: &[u8]| LayerId { index: Digest::of(b"index"), layer: Digest::of(n) };
        let leases = Arc::new(Leases::default());
        let heard = || {
            let soon = std::time::Duration::from_millis(20);
            runtime.block_on(async { tokio::time::timeout(soon, leases.released()).await.is_ok() })
        };
        let lease = leases.take(vec![layer(b"a")]);
        leases.lock().add_to(&mut HashSet::from([layer(b"a")]));
        drop(lease);
        assert!(!heard(), "something else needs it");
        let lease = leases.take(vec![layer(b"a")]);
        leases.lock().add_to(&mut HashSet::from([layer(b"b")]));
        assert!(!heard(), "it is still leased");
        drop(lease);
        assert!(heard());
        drop(leases.take(vec![layer(b"a")]));
        assert!(!heard(), "nothing was held back since");
    }
}
