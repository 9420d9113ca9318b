//! The queue: one member of the group that executes the tasks.

use crate::{
    Job, JobController, KeyLocks, Publisher, QueueBuilder, QueueStats,
    driver::{Driver, JobSlot, Shared},
};
use kafkaq_core::{Result, Task, TaskId};
use std::{fmt, sync::Arc, time::Duration};

/// A process's handle to a task queue. Cheap to clone; all clones are one member of the group. When the last clone is
/// dropped, it leaves the group in the background; use [`shutdown`](Queue::shutdown) to wait for that.
#[derive(Clone)]
pub struct Queue {
    inner: Arc<Inner>,
}

struct Inner {
    name: Arc<str>,
    publisher: Publisher,
    jobs: JobController,
    locks: KeyLocks,
    shared: Arc<Shared>,
    driver: Driver,
}

impl Queue {
    /// Returns a builder for the queue with this name: 1 to 120 of `A-Z a-z 0-9 . _ -`, without
    /// two dots in a row or one at its end.
    pub fn builder(name: impl Into<Arc<str>>) -> QueueBuilder {
        QueueBuilder::new(name.into())
    }

    pub(crate) fn new(
        name: Arc<str>,
        publisher: Publisher,
        jobs: JobController,
        locks: KeyLocks,
        shared: Arc<Shared>,
        driver: Driver,
    ) -> Self {
        Queue { inner: Arc::new(Inner { name, publisher, jobs, locks, shared, driver }) }
    }

    /// Returns the queue's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    #[cfg(feature = "worker")]
    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.inner.name.clone()
    }

    /// Returns how long a job may be held without being extended: see
    /// [`lease_duration`](QueueBuilder::lease_duration).
    #[must_use]
    pub fn lease_duration(&self) -> Duration {
        self.inner.driver.lease()
    }

    /// Returns the longest delay of a task: see [`max_delay`](QueueBuilder::max_delay).
    #[must_use]
    pub fn max_delay(&self) -> Duration {
        self.inner.shared.limits.delay
    }

    #[cfg(feature = "worker")]
    pub(crate) fn max_handouts(&self) -> u32 {
        self.inner.shared.limits.handouts
    }

    /// Publishes a task: see [`Publisher::publish`].
    ///
    /// # Errors
    /// See there.
    pub async fn publish(&self, task: Task) -> Result<TaskId> {
        self.inner.publisher.publish(task).await
    }

    /// Publishes tasks: see [`Publisher::publish_many`].
    pub async fn publish_many(&self, tasks: impl IntoIterator<Item = Task>) -> Vec<Result<TaskId>> {
        self.inner.publisher.publish_many(tasks).await
    }

    /// Returns a handle that only publishes. It keeps working after the queue has shut down.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.inner.publisher.clone()
    }

    /// Waits for a job. Callers are served in the order in which they began to wait. The first call makes the queue
    /// join its group. While that fails for temporary reasons, the call waits, and the reason is logged.
    /// *Cancel-safety:* safe. A dropped future has taken no job and blocks nobody else.
    ///
    /// # Errors
    /// `Closed` once the queue is shut down; otherwise the error that stopped reading the log permanently, or that
    /// keeps the queue from joining its group.
    pub async fn get_job(&self) -> Result<Job> {
        self.wait_for_job(1).await
    }

    /// Like [`get_job`](Queue::get_job), for a caller that wants `wanted` jobs.
    pub(crate) async fn wait_for_job(&self, wanted: usize) -> Result<Job> {
        self.inner.driver.want();
        let slot = self.inner.shared.take(wanted).await?;
        Ok(self.job(slot))
    }

    /// Takes a job if one is ready, without waiting. `None` means that there is none yet: a queue that has just joined
    /// its group, or that has handed out all its jobs, needs a moment to lease the next ones, which this call requests.
    ///
    /// # Errors
    /// The same as for [`get_job`](Queue::get_job).
    pub fn try_get_job(&self) -> Result<Option<Job>> {
        self.inner.driver.want();
        let ready = self.ready_job()?;
        if ready.is_none() {
            self.inner.shared.ready_queue.miss();
        }
        Ok(ready)
    }

    /// Returns a ready job.
    pub(crate) fn ready_job(&self) -> Result<Option<Job>> {
        let ready = self.inner.shared.try_take()?;
        Ok(ready.map(|slot| self.job(slot)))
    }

    /// Waits for a job, then takes others that are ready, up to `max` in total. A `max` of zero returns none
    /// immediately. *Cancel-safety:* as for [`get_job`](Queue::get_job).
    ///
    /// # Errors
    /// The same as for [`get_job`](Queue::get_job).
    pub async fn get_jobs(&self, max: usize) -> Result<Vec<Job>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        // Nothing is awaited after this, so a dropped future has taken nothing.
        let mut jobs = vec![self.wait_for_job(max).await?];
        while jobs.len() < max
            && let Ok(Some(job)) = self.ready_job()
        {
            jobs.push(job);
        }
        Ok(jobs)
    }

    fn job(&self, slot: Arc<JobSlot>) -> Job {
        self.inner.shared.meter.handed_out(&slot.ready);
        Job::new(slot, self.inner.shared.clone())
    }

    /// Returns statistics of this process's share of the queue. It visits every unfinished record that was read:
    /// calling it a few times per minute is cheap. Cancel-safe.
    pub async fn stats(&self) -> QueueStats {
        let shared = &self.inner.shared;
        let machine = shared.machine_stats().await;
        let publishes = self.inner.publisher.stats();
        QueueStats::new(machine, &shared.counters, publishes, shared.ready_queue.demand())
    }

    /// Returns a handle to query and cancel tasks.
    #[must_use]
    pub fn jobs(&self) -> JobController {
        self.inner.jobs.clone()
    }

    /// Returns locks per key, across all processes of the queue and its group. They outlive the queue.
    #[must_use]
    pub fn key_locks(&self) -> KeyLocks {
        self.inner.locks.clone()
    }

    /// Stops taking tasks, gives back what was not handed out, leaves the group after 0.3 s, so that others take over
    /// its partitions, and waits for running jobs until `limit` has passed. Their holders aren't notified. From now on,
    /// `get_job` fails with `Closed`. Calling it again is harmless; the shortest limit counts.
    ///
    /// The broker and the store are not closed, since other queues may share them.
    ///
    /// *Cancel-safety:* once polled, the queue shuts down, even if the future is dropped.
    ///
    /// # Errors
    /// `Timeout` if jobs were still running: their tasks are handed out again when their leases expire, which counts as
    /// a failure. Otherwise the error that stopped reading the log before.
    pub async fn shutdown(&self, limit: Duration) -> Result<()> {
        self.inner.driver.stop(limit).await
    }
}

/// A queue that may be gone.
#[cfg(feature = "metrics")]
pub(crate) struct WeakQueue(std::sync::Weak<Inner>);

#[cfg(feature = "metrics")]
impl Queue {
    pub(crate) fn downgrade(&self) -> WeakQueue {
        WeakQueue(Arc::downgrade(&self.inner))
    }
}

#[cfg(feature = "metrics")]
impl WeakQueue {
    pub(crate) fn upgrade(&self) -> Option<Queue> {
        self.0.upgrade().map(|inner| Queue { inner })
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.inner.name).finish_non_exhaustive()
    }
}
