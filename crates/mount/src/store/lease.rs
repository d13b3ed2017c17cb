//! Who uses which layers: what is leased isn't reclaimed.
use crate::layer::LayerId;
use clipper_format::Digest;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The layers in use by images of this process, and which device each known layer lies on.
#[derive(Default)]
pub(super) struct Leases {
    state: Mutex<LeaseState>,
}

#[derive(Default)]
pub(super) struct LeaseState {
    uses: HashMap<LayerId, usize>,
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

    /// The state; nobody can take a lease meanwhile.
    pub(super) fn lock(&self) -> MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeaseState {
    /// The leased layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = LayerId> {
        self.uses.keys().copied()
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
        drop(first);
        assert_eq!(leases.lock().layers().collect::<Vec<_>>(), [layer(b"b")]);
        drop(second);
        assert_eq!(leases.lock().layers().count(), 0);
    }
}
