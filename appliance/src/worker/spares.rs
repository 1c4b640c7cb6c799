//! Memory that stages hand on and get back: empty vectors that keep their capacity.

use std::sync::{Mutex, PoisonError};

/// Things that wait to be used again. Never more than were in use at once, so the queues between the stages bound them.
pub(crate) struct Spares<T> {
    kept: Mutex<Vec<T>>,
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self { kept: Mutex::default() }
    }
}

impl<T> Spares<T> {
    /// One that was given back, or what `make` makes.
    pub(crate) fn take(&self, make: impl FnOnce() -> T) -> T {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(make)
    }

    /// Keeps one for the next who asks.
    pub(crate) fn give(&self, one: T) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }
}
