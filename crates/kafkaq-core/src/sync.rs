//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks even if a thread panicked while holding the lock: no critical section of kafkaq leaves a value in an
/// inconsistent state.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
