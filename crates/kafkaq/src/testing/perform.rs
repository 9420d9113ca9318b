//! Executes one task.

use super::{FakeJob, fail};
use crate::{
    Task, TaskId,
    worker::{
        Ctx, IntoOutcome, Outcome, StopReason, TaskType,
        direct::{Collected, Handler, kind},
    },
};
use bytes::Bytes;
use std::{fmt, future::Future, marker::PhantomData, sync::Arc};

/// Prepares to execute one task without a queue, as its first attempt.
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
    Perform { fake_job: FakeJob::new(task), failures: None, stop: None, state: Arc::new(()), of: PhantomData }
}

/// One execution that is about to start: see [`perform`].
#[must_use = "nothing is executed until `run` is called"]
pub struct Perform<T, S = ()> {
    fake_job: FakeJob,
    failures: Option<u32>,
    stop: Option<StopReason>,
    state: Arc<S>,
    of: PhantomData<fn(T)>,
}

impl<T: TaskType> Perform<T> {
    /// The state that the handler gets through [`Ctx::state`].
    pub fn state<S: Send + Sync + 'static>(self, state: S) -> Perform<T, S> {
        Perform {
            fake_job: self.fake_job,
            failures: self.failures,
            stop: self.stop,
            state: Arc::new(state),
            of: PhantomData,
        }
    }
}

impl<T: TaskType, S: Send + Sync + 'static> Perform<T, S> {
    /// The number of this hand-out of the task. Default: 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.fake_job.attempt = attempt;
        self
    }

    /// How many earlier executions have failed. Default: all of them.
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = Some(failures);
        self
    }

    /// The task's id. Default: `task`.
    pub fn id(mut self, id: TaskId) -> Self {
        self.fake_job.id = id;
        self
    }

    /// The name of the queue that the task came from. Default: `queue`.
    pub fn queue(mut self, name: impl Into<Arc<str>>) -> Self {
        self.fake_job.queue = name.into();
        self
    }

    /// The task's key.
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.fake_job.task = self.fake_job.task.with_key(key);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.fake_job.task = self.fake_job.task.with_header(name, value);
        self
    }

    /// Asks the handler to stop from the start, for this reason.
    pub fn stop(mut self, reason: StopReason) -> Self {
        self.stop = Some(reason);
        self
    }

    /// Executes the task as a worker would: it is encoded, decoded and handled. There is no timeout, and a panic of the
    /// handler is a [`Retry`](Outcome::Retry), as in a worker.
    pub async fn run<F, Fut>(mut self, handler: F) -> Performed<S>
    where
        F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        self.fake_job.failures = self.failures.unwrap_or_else(|| self.fake_job.attempt.saturating_sub(1));
        let enqueued = Collected::default();
        let state = self.state.clone();
        let (handling, stop) = Handler::new(handler).execute(self.fake_job, self.state, enqueued.clone());
        if let Some(reason) = self.stop {
            stop.tell(reason);
        }
        Performed { outcome: handling.await, enqueued: enqueued.tasks(), state }
    }
}

impl<T, S> fmt::Debug for Perform<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Perform")
            .field("fake_job", &self.fake_job)
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}

/// The result of an execution.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Performed<S = ()> {
    /// The outcome for the task.
    pub outcome: Outcome,
    /// The tasks that the handler enqueued with [`Ctx::enqueue`], in order, with ids.
    pub enqueued: Vec<Task>,
    /// The state as the handler left it.
    pub state: Arc<S>,
}

impl<S> Performed<S> {
    /// Returns the payloads of the enqueued tasks of one type.
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
