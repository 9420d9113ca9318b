//! Settings of a kind of task.

use super::Backoff;
use std::time::Duration;

/// Settings of one kind of task, where they differ from the worker's.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(super) backoff: Option<Backoff>,
    pub(super) timeout: Option<Duration>,
    pub(super) concurrency: Option<usize>,
    pub(super) per_second: Option<f64>,
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

    /// When a task of the kind that has failed is tried again.
    #[must_use]
    pub fn retry(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }
}
