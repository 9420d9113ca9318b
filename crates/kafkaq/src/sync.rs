//! Locking, in one place.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even if a thread has panicked while it held the lock: no critical section of this crate leaves a value half
/// changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
