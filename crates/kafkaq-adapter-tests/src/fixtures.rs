//! Short constructors for keys, swaps and values.

use bytes::Bytes;
use kafkaq_core::{Key, LeaseStore, Result, Swap, Swapped};
use std::time::{Duration, Instant};

/// Generous: a loaded machine is slow, and a test that passes never waits this long.
const PATIENCE: Duration = Duration::from_secs(240);

/// The key of a task.
#[must_use]
pub fn key(id: &str) -> Key {
    Key::of(&["t", "emails", "kafkaq", id]).unwrap()
}

/// The keys of this many tasks.
#[must_use]
pub fn keys(n: usize) -> Vec<Key> {
    (0..n).map(|i| key(&format!("task-{i}"))).collect()
}

/// A value, as it is expected and read.
#[must_use]
pub fn value(text: &'static str) -> Option<Bytes> {
    Some(Bytes::from_static(text.as_bytes()))
}

/// A swap of a missing value.
#[must_use]
pub fn create(key: &Key, new: &'static str) -> Swap {
    Swap::new(key.clone(), None, value(new), None)
}

/// A swap of one value for another.
#[must_use]
pub fn replace(key: &Key, expect: &'static str, new: &'static str) -> Swap {
    Swap::new(key.clone(), value(expect), value(new), None)
}

/// A swap that removes a value.
#[must_use]
pub fn remove(key: &Key, expect: &'static str) -> Swap {
    Swap::new(key.clone(), value(expect), None, None)
}

/// Returns the outcome of a single swap.
///
/// # Errors
/// The store's.
pub async fn one(store: &dyn LeaseStore, swap: Swap) -> Result<Swapped> {
    store.swap(&[swap]).await.pop().unwrap()
}

/// Returns the stored value.
///
/// # Errors
/// The store's.
pub async fn read(store: &dyn LeaseStore, key: &Key) -> Result<Option<Bytes>> {
    store.get(std::slice::from_ref(key)).await.pop().unwrap()
}

/// Waits until `check` returns `true`.
pub async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !check().await {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
