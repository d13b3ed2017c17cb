//! The sources of one blob, in the order in which they are tried.
use crate::source::Source;
use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering},
};

/// Most sources kept for one blob.
const MAX: usize = 8;

/// Sources that should all give the same bytes. The one that worked last comes first.
pub(crate) struct Sources {
    list: RwLock<Vec<Arc<dyn Source>>>,
    preferred: AtomicUsize,
}

/// One of them, and its number.
pub(crate) struct Picked {
    pub(crate) number: usize,
    pub(crate) source: Arc<dyn Source>,
}

impl Sources {
    pub(crate) fn new(first: Option<Arc<dyn Source>>) -> Self {
        Self { list: RwLock::new(first.into_iter().collect()), preferred: AtomicUsize::new(0) }
    }

    /// Adds an alternative, unless it is known already or there are plenty.
    pub(crate) fn add(&self, source: Arc<dyn Source>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let name = source.describe();
        if list.len() < MAX && list.iter().all(|known| known.describe() != name) {
            list.push(source);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The source for the `attempt`th attempt, counted from 0.
    pub(crate) fn pick(&self, attempt: usize) -> Option<Picked> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let number = self.preferred.load(Ordering::Relaxed).wrapping_add(attempt).checked_rem(list.len())?;
        Some(Picked { number, source: Arc::clone(list.get(number)?) })
    }

    /// Source `number` works: it comes first from now on.
    pub(crate) fn prefer(&self, number: usize) {
        self.preferred.store(number, Ordering::Relaxed);
    }
}
