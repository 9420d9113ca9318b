//! Executing one task.

use super::fail;
use crate::{
    LeaseToken, Task, TaskId,
    driver::system_now,
    worker::{
        Ctx, Facts, IntoOutcome, Outcome, StopReason, TaskType,
        direct::{Collected, Handler, kind},
    },
};
use bytes::Bytes;
use std::{fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

/// How long made-up leases last.
const LEASE: Duration = Duration::from_secs(60);

/// Begins to execute one task without a queue, as its first attempt.
///
/// ```
/// use kafkaq::{testing::perform, worker::{Ctx, Failure, Outcome, TaskType}};
/// use serde::{Deserialize, Serialize};
/// use std::time::Duration;
///
/// #[derive(Serialize, Deserialize)]
/// struct SendEmail {
///     to: String,
/// }
///
/// impl TaskType for SendEmail {
///     const KIND: &'static str = "send_email";
/// }
///
/// async fn send_email(ctx: Ctx, _: SendEmail) -> Result<(), Failure> {
///     if ctx.attempt() < 3 {
///         return Err(Failure::snooze(Duration::from_secs(60)));
///     }
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let task = SendEmail { to: "ada@example.org".into() };
/// let performed = perform(task).attempt(3).run(send_email).await;
/// assert_eq!(performed.outcome, Outcome::Done);
/// # }
/// ```
///
/// # Panics
/// If the task can't be encoded.
#[track_caller]
pub fn perform<T: TaskType>(task: T) -> Perform<T> {
    let task = task.to_task().unwrap_or_else(|e| fail(e));
    Perform { facts: facts(task), failures: None, stop: None, state: Arc::new(()), of: PhantomData }
}

/// One execution that is about to begin: see [`perform`].
#[must_use = "nothing is executed until `run` is called"]
pub struct Perform<T, S = ()> {
    facts: Facts,
    failures: Option<u32>,
    stop: Option<StopReason>,
    state: Arc<S>,
    of: PhantomData<fn(T)>,
}

impl<T: TaskType> Perform<T> {
    /// What the handler gets by [`Ctx::state`].
    pub fn state<S: Send + Sync + 'static>(self, state: S) -> Perform<T, S> {
        Perform {
            facts: self.facts,
            failures: self.failures,
            stop: self.stop,
            state: Arc::new(state),
            of: PhantomData,
        }
    }
}

impl<T: TaskType, S: Send + Sync + 'static> Perform<T, S> {
    /// Which hand-out of the task this is. Default: 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.facts.attempt = attempt;
        self
    }

    /// How many earlier executions have failed. Default: all of them.
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = Some(failures);
        self
    }

    /// The task's id. Default: `task`.
    pub fn id(mut self, id: TaskId) -> Self {
        self.facts.id = id;
        self
    }

    /// The name of the queue that the task came from. Default: `queue`.
    pub fn queue(mut self, name: impl Into<Arc<str>>) -> Self {
        self.facts.queue = name.into();
        self
    }

    /// The task's key.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.facts.task = self.facts.task.with_key(key);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.facts.task = self.facts.task.with_header(name, value);
        self
    }

    /// Tells the handler from the beginning to end its execution, for this reason.
    pub fn stop(mut self, reason: StopReason) -> Self {
        self.stop = Some(reason);
        self
    }

    /// Executes the task: encoded, decoded and handled, as a worker would. There is no timeout, and a panic of the
    /// handler is a [`Retry`](Outcome::Retry), as in a worker.
    pub async fn run<F, Fut>(mut self, handler: F) -> Performed<S>
    where
        F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.facts.failures = self.failures.unwrap_or_else(|| self.facts.attempt.saturating_sub(1));
        let enqueued = Collected::default();
        let state = self.state.clone();
        let (handling, stop) = Handler::new(handler).execute(self.facts, self.state, enqueued.clone());
        if let Some(reason) = self.stop {
            stop.tell(reason);
        }
        Performed { outcome: handling.await, enqueued: enqueued.tasks(), state }
    }
}

impl<T, S> fmt::Debug for Perform<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Perform")
            .field("facts", &self.facts)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// What an execution has come to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Performed<S = ()> {
    /// What is to become of the task.
    pub outcome: Outcome,
    /// What the handler has enqueued by [`Ctx::enqueue`], in order, with ids.
    pub enqueued: Vec<Task>,
    /// What the handler has left of its state.
    pub state: Arc<S>,
}

impl<S> Performed<S> {
    /// Returns the payloads of the tasks of one type that were enqueued.
    ///
    /// # Panics
    /// If a payload of that type can't be decoded.
    #[track_caller]
    #[must_use]
    pub fn enqueued_of<T: TaskType>(&self) -> Vec<T> {
        let of_type = self.enqueued.iter().filter(|task| kind(task.headers()) == Some(T::KIND));
        of_type.map(|task| T::decode(task.payload()).unwrap_or_else(|e| fail(e))).collect()
    }
}

/// The first execution of a task.
pub(super) fn facts(task: Task) -> Facts {
    let now = system_now();
    Facts {
        id: TaskId::from_parts("task".to_owned()),
        task,
        attempt: 1,
        failures: 0,
        history: Vec::new(),
        token: LeaseToken { process: [1; 16], number: 1 },
        published: now,
        deadline: now + LEASE,
        queue: "queue".into(),
    }
}
