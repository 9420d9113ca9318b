//! The context of an execution, for its handler.

use super::{
    enqueue::{Enqueue, Target},
    stop::{Signal, Stop},
    typed::TaskType,
};
use crate::{
    FailureRecord, Headers, JobView, LeaseToken, TaskId,
    clock::{system_time, wall},
    sync::lock,
};
use bytes::Bytes;
use kafkaq_core::Wall;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};
use tokio::time::Instant;
use uuid::Uuid;

/// An execution of a task, as its handler sees it, with the worker's state. Cheap to clone.
pub struct Ctx<S = ()> {
    stop: Stop,
    state: Arc<S>,
}

pub(super) struct Execution {
    pub(super) job: JobView,
    /// The queue's name.
    queue: Arc<str>,
    /// In milliseconds since 1970. Renewals extend it.
    deadline: AtomicU64,
    pub(super) signal: Signal,
    time: Mutex<Time>,
    /// The number of the queue that the task came from.
    pub(super) source: usize,
    target: Target,
    /// How many tasks with each content the handler has enqueued.
    children: Mutex<HashMap<Uuid, u32>>,
}

/// The time limit of an execution.
#[derive(Default)]
struct Time {
    since: Option<Instant>,
    /// Whether it waits for its key or its batch, before its handler starts.
    waits: bool,
}

impl Execution {
    pub(super) fn new(
        job: JobView,
        deadline: SystemTime,
        queue: Arc<str>,
        source: usize,
        target: Target,
    ) -> Self {
        Execution {
            job,
            queue,
            source,
            deadline: AtomicU64::new(wall(deadline).0),
            signal: Signal::default(),
            time: Mutex::default(),
            target,
            children: Mutex::default(),
        }
    }

    /// Records that it waits first: its time limit doesn't count until [`Execution::time_begins`].
    pub(super) fn waits_first(&self) {
        *lock(&self.time) = Time { since: None, waits: true };
    }

    /// Records that it no longer waits.
    pub(super) fn time_begins(&self) {
        *lock(&self.time) = Time { since: Some(Instant::now()), waits: false };
    }

    /// Records that it starts, perhaps by waiting.
    pub(super) fn starts(&self, now: Instant) {
        let time = &mut *lock(&self.time);
        if !time.waits && time.since.is_none() {
            time.since = Some(now);
        }
    }

    /// Since when its time limit counts.
    pub(super) fn time_since(&self) -> Option<Instant> {
        lock(&self.time).since
    }

    pub(super) fn renewed(&self, until: SystemTime) {
        self.deadline.store(wall(until).0, Relaxed);
    }
}

impl<S> Ctx<S> {
    pub(super) fn new(execution: Arc<Execution>, state: Arc<S>) -> Self {
        Ctx { stop: Stop::new(execution), state }
    }

    /// The same execution without the state.
    pub(super) fn stateless(self) -> Ctx {
        Ctx { stop: self.stop, state: Arc::new(()) }
    }

    pub(super) fn execution(&self) -> &Execution {
        self.stop.execution()
    }

    fn job(&self) -> &JobView {
        &self.execution().job
    }

    /// The state that was passed to [`WorkerBuilder::state`](super::WorkerBuilder::state).
    #[must_use]
    pub fn state(&self) -> &S {
        &self.state
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        self.job().id()
    }

    /// The name of the queue that the task came from.
    #[must_use]
    pub fn queue(&self) -> &str {
        &self.execution().queue
    }

    /// The payload as it was published.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        self.job().payload()
    }

    /// The task's key.
    #[must_use]
    pub fn key(&self) -> Option<&Bytes> {
        self.job().key()
    }

    /// The task's headers, without kafkaq's own.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.job().headers()
    }

    /// The number of this hand-out of the task, from 1: see [`JobView::attempt`].
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.job().attempt()
    }

    /// How many earlier executions have failed: see [`JobView::failures`].
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.job().failures()
    }

    /// The last of these failures, oldest first: at most five.
    #[must_use]
    pub fn history(&self) -> Vec<FailureRecord> {
        self.job().history()
    }

    /// The token of this execution's lease: see [`LeaseToken`] for what to store with it.
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.job().token()
    }

    /// When the task was first published.
    #[must_use]
    pub fn published(&self) -> SystemTime {
        self.job().published()
    }

    /// When the lease expires. The worker renews it while the handler runs.
    #[must_use]
    pub fn deadline(&self) -> SystemTime {
        system_time(Wall(self.execution().deadline.load(Relaxed)))
    }

    /// Signals when the execution has to stop, and why.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Publishes a follow-up task to the queue that this one came from. Its id is derived from this task's id, its kind
    /// and its payload, so a handler that runs twice publishes it once, as long as the id is
    /// [remembered](crate::QueueBuilder::done_retention). Several equal ones are numbered, so they remain several
    /// tasks.
    ///
    /// A handler that continues by [snoozing](super::Outcome::Snooze) or retrying, and publishes the same again each
    /// time, has to set a different [`id`](Enqueue::id).
    pub fn enqueue<T: TaskType>(&self, value: T) -> Enqueue {
        let enqueue = Enqueue::new(self.execution().target.clone(), &value);
        match enqueue.payload().and_then(|payload| self.execution().child_id(T::KIND, payload)) {
            Some(id) => enqueue.id(id),
            None => enqueue,
        }
    }
}

impl Execution {
    /// The id of a task that the handler enqueues.
    fn child_id(&self, kind: &str, payload: &[u8]) -> Option<TaskId> {
        let content = content_hash(&[self.job.id().as_str().as_bytes(), kind.as_bytes(), payload]);
        let n = {
            let mut children = lock(&self.children);
            let n = children.entry(content).or_default();
            *n += 1;
            *n
        };
        child_id(self.job.id(), content, n)
    }
}

/// The parts with their lengths, so that none runs into the next.
fn content_hash(parts: &[&[u8]]) -> Uuid {
    let mut all = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &all)
}

/// The id of the `n`th child with this content.
fn child_id(parent: &TaskId, content: Uuid, n: u32) -> Option<TaskId> {
    let own = format!("{}-{n}", content.simple());
    let readable = format!("{parent}/{own}");
    TaskId::new(if readable.len() <= TaskId::MAX_LEN { readable } else { own }).ok()
}

impl<S> Clone for Ctx<S> {
    fn clone(&self) -> Self {
        Ctx { stop: self.stop.clone(), state: self.state.clone() }
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
pub(super) mod tests {
    use super::*;

    #[cfg(feature = "testing")]
    pub(in crate::worker) fn execution() -> Execution {
        let job = crate::testing::FakeJob::new(crate::Task::new("payload")).job();
        Execution::new(job, SystemTime::UNIX_EPOCH, "queue".into(), 0, Target::Collected(Default::default()))
    }

    #[test]
    fn ids_of_children_depend_on_parent_and_content_and_are_short_enough() {
        let id = |parent: &str, parts: &[&[u8]], n| {
            child_id(&TaskId::new(parent).unwrap(), content_hash(parts), n).unwrap()
        };
        let one = id("order-17", &[b"mail", b"ada"], 1);
        assert_eq!(one, id("order-17", &[b"mail", b"ada"], 1));
        for other in [
            id("order-17", &[b"mail", b"ada"], 2),
            id("order-17", &[b"mail", b"grace"], 1),
            id("order-17", &[b"maila", b"da"], 1),
            id("order-18", &[b"mail", b"ada"], 1),
        ] {
            assert_ne!(one, other);
        }
        assert!(one.as_str().starts_with("order-17/"));
        let long = id(&"x".repeat(TaskId::MAX_LEN), &[b"mail"], u32::MAX);
        assert!(long.as_str().len() <= TaskId::MAX_LEN);
    }
}
