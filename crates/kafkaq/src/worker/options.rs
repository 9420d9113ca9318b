//! Settings per kind of task.

use super::{Backoff, TaskType, exclusive::KeyOf};
use bytes::Bytes;
use std::time::Duration;

/// Settings of one kind of task that override the worker's.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(super) backoff: Option<Backoff>,
    pub(super) timeout: Option<Duration>,
    pub(super) concurrency: Option<usize>,
    pub(super) per_second: Option<f64>,
    pub(super) exclusive: Option<KeyOf>,
}

impl Options {
    /// Creates options that override nothing.
    #[must_use]
    pub fn new() -> Self {
        Options::default()
    }

    /// How long a handler may run, from its start. Then it is [told](super::Stop) to stop, and dropped after the
    /// worker's [grace period](super::WorkerBuilder::grace). This counts as a failure.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many tasks of the kind are executed concurrently in this worker. Excess tasks wait in the worker, under
    /// their leases. When as many wait as the worker executes concurrently, it takes no more tasks of any kind: use a
    /// separate queue for a kind that is intentionally slow.
    #[must_use]
    pub fn concurrency(mut self, n: usize) -> Self {
        self.concurrency = Some(n);
        self
    }

    /// How many tasks of the kind are started per second in this worker, evenly spaced. Excess tasks wait as with
    /// [`concurrency`](Options::concurrency).
    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        self.per_second = Some(per_second);
        self
    }

    /// Executes tasks with the same [key](crate::Task::with_key) one at a time, across all workers of the queue and its
    /// group, and across all kinds with this option. Tasks without a key are unaffected. There is no order, and it
    /// isn't available for [batches](super::WorkerBuilder::on_batch). See
    /// [one at a time per key](super#one-at-a-time-per-key) for what is guaranteed and what it costs.
    #[must_use]
    pub fn one_at_a_time(mut self) -> Self {
        self.exclusive = Some(KeyOf::Task);
        self
    }

    /// Like [`one_at_a_time`](Options::one_at_a_time), with a key derived from the task. The payload is decoded an
    /// additional time for it. Kinds with equal keys exclude each other: include the kind in the key if they should
    /// not.
    #[must_use]
    pub fn exclusive_by<T: TaskType, K: Into<Bytes>>(
        mut self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Self {
        self.exclusive = Some(KeyOf::payload(key));
        self
    }

    /// When a failed task of the kind is retried.
    #[must_use]
    pub fn retry(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }
}
