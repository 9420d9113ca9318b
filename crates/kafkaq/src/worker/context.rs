//! What a handler knows of its execution.

use super::{
    enqueue::{Enqueue, Target},
    stop::Stop,
    typed::TaskType,
};
use crate::{FailureRecord, Headers, Job, LeaseToken, TaskId};
use bytes::Bytes;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// An execution of a task, as its handler sees it, with the worker's state. Cheap to clone.
pub struct Ctx<S = ()> {
    execution: Arc<Execution>,
    state: Arc<S>,
}

pub(super) struct Execution {
    task: crate::Task,
    id: TaskId,
    attempt: u32,
    failures: u32,
    history: Vec<FailureRecord>,
    token: LeaseToken,
    published: SystemTime,
    /// In milliseconds since 1970. Renewals move it.
    deadline: AtomicU64,
    stop: Stop,
    target: Target,
    /// How many tasks the handler has enqueued.
    children: AtomicU32,
}

impl Execution {
    pub(super) fn new(job: &Job, target: Target) -> Self {
        Execution {
            task: job.task(),
            id: job.id().clone(),
            attempt: job.attempt(),
            failures: job.failures(),
            history: job.history(),
            token: job.token(),
            published: job.published(),
            deadline: AtomicU64::new(millis(job.deadline())),
            stop: Stop::new(),
            target,
            children: AtomicU32::new(0),
        }
    }

    /// An execution without a job.
    #[cfg(feature = "testing")]
    pub(super) fn of(made_up: super::direct::MadeUp, target: Target) -> Self {
        Execution {
            task: made_up.task,
            id: made_up.id,
            attempt: made_up.attempt,
            failures: made_up.failures,
            history: Vec::new(),
            token: made_up.token,
            published: made_up.published,
            deadline: AtomicU64::new(millis(made_up.deadline)),
            stop: Stop::new(),
            target,
            children: AtomicU32::new(0),
        }
    }

    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    pub(super) fn id(&self) -> &TaskId {
        &self.id
    }

    pub(super) fn headers(&self) -> &Headers {
        self.task.headers()
    }

    pub(super) fn renewed(&self, until: SystemTime) {
        self.deadline.store(millis(until), Relaxed);
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<S> Ctx<S> {
    pub(super) fn new(execution: Arc<Execution>, state: Arc<S>) -> Self {
        Ctx { execution, state }
    }

    /// The same execution without the state.
    pub(super) fn stateless(self) -> Ctx {
        Ctx { execution: self.execution, state: Arc::new(()) }
    }

    /// What was given to [`WorkerBuilder::state`](super::WorkerBuilder::state).
    #[must_use]
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.execution.id
    }

    /// The payload as it was published.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        self.execution.task.payload()
    }

    /// The task's key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.execution.task.key()
    }

    /// The task's headers, without kafkaq's own.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.execution.task.headers()
    }

    /// Which hand-out of the task this is, from 1: see [`Job::attempt`].
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.execution.attempt
    }

    /// How many earlier executions have failed: see [`Job::failures`].
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.execution.failures
    }

    /// The last of these failures, oldest first: five at the most.
    #[must_use]
    pub fn history(&self) -> &[FailureRecord] {
        &self.execution.history
    }

    /// The token of this execution's lease: see [`LeaseToken`] for what to store with it.
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.execution.token
    }

    /// When the task was published first.
    #[must_use]
    pub fn published(&self) -> SystemTime {
        self.execution.published
    }

    /// Until when the lease holds. The worker renews it while the handler runs.
    #[must_use]
    pub fn deadline(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.execution.deadline.load(Relaxed))
    }

    /// Tells when the execution is to end, and why.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.execution.stop
    }

    /// Begins to publish a task that follows from this one. Its id is made of this task's id and the number of tasks
    /// that the handler has enqueued before it, so a handler that runs twice, and enqueues in the same order, publishes
    /// each once. [`id`](Enqueue::id) gives it another.
    pub fn enqueue<T: TaskType>(&self, value: T) -> Enqueue {
        let n = self.execution.children.fetch_add(1, Relaxed);
        let enqueue = Enqueue::new(self.execution.target.clone(), &value);
        match child_id(&self.execution.id, n) {
            Some(id) => enqueue.id(id),
            None => enqueue,
        }
    }
}

/// The id of the `n`th task that was enqueued by the execution of another.
fn child_id(parent: &TaskId, n: u32) -> Option<TaskId> {
    let name = format!("{parent}/{n}");
    let id = if name.len() <= TaskId::MAX_LEN {
        name
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
    };
    TaskId::new(id).ok()
}

impl<S> Clone for Ctx<S> {
    fn clone(&self) -> Self {
        Ctx { execution: self.execution.clone(), state: self.state.clone() }
    }
}

impl<S> fmt::Debug for Ctx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("id", self.id())
            .field("attempt", &self.attempt())
            .field("stop", &self.stop().reason())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_children_are_the_same_each_time_and_short_enough() {
        let short = TaskId::new("order-17").unwrap();
        assert_eq!(child_id(&short, 0).unwrap().as_str(), "order-17/0");
        let long = TaskId::new("x".repeat(TaskId::MAX_LEN)).unwrap();
        let ids: Vec<_> = (0..3).map(|n| child_id(&long, n).unwrap()).collect();
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        assert_eq!(ids[1], child_id(&long, 1).unwrap());
    }
}
