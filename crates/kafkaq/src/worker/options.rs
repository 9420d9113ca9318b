//! Settings of a kind of task.

use super::{Backoff, TaskType, exclusive::KeyOf};
use bytes::Bytes;
use std::time::Duration;

/// Settings of one kind of task, where they differ from the worker's.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(super) backoff: Option<Backoff>,
    pub(super) timeout: Option<Duration>,
    pub(super) concurrency: Option<usize>,
    pub(super) per_second: Option<f64>,
    pub(super) exclusive: Option<KeyOf>,
}

impl Options {
    /// The worker's settings.
    #[must_use]
    pub fn new() -> Self {
        Options::default()
    }

    /// How long a handler may run, from its start. Then it is [told](super::Stop), and after the worker's
    /// [grace period](super::WorkerBuilder::grace) it is dropped. It has failed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many tasks of the kind are executed at once in this worker. Tasks beyond it wait in the worker, under their
    /// leases. When as many wait as the worker executes at once, it takes no more tasks of any kind: give a kind that
    /// is slow by intent a queue of its own.
    #[must_use]
    pub fn concurrency(mut self, n: usize) -> Self {
        self.concurrency = Some(n);
        self
    }

    /// How many tasks of the kind are started per second in this worker, evenly spaced. Tasks beyond it wait as with
    /// [`concurrency`](Options::concurrency).
    #[must_use]
    pub fn rate(mut self, per_second: f64) -> Self {
        self.per_second = Some(per_second);
        self
    }

    /// Executes one task at a time of those with the same [key](crate::Task::with_key), over all workers of the queue and its
    /// group, and over all kinds that say so. A task without a key is executed as ever. In no order, and not for
    /// [batches](super::WorkerBuilder::on_batch). The queue's `max_delay` must be 30 s or more. See
    /// [one at a time per key](super#one-at-a-time-per-key) for what is guaranteed and what it costs.
    #[must_use]
    pub fn one_at_a_time(mut self) -> Self {
        self.exclusive = Some(KeyOf::Task);
        self
    }

    /// As [`one_at_a_time`](Options::one_at_a_time), by a key that is made of the task. The payload is decoded once more for
    /// it. Kinds whose keys are equal exclude each other: put the kind into the key if they should not.
    #[must_use]
    pub fn exclusive_by<T: TaskType, K: Into<Bytes>>(
        mut self,
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Self {
        self.exclusive = Some(KeyOf::payload(key));
        self
    }

    /// When a task of the kind that has failed is tried again.
    #[must_use]
    pub fn retry(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }
}
