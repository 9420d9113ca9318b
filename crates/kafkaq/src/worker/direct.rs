//! Executes tasks without a queue, for [`testing`](crate::testing).

use super::{
    context::{Ctx, Execution},
    enqueue::Target,
    failure::{IntoOutcome, Outcome},
    handlers::{self, Ended, Executing},
    headers, panics,
    stop::Stop,
    typed::TaskType,
};
use crate::{
    Headers, Result, Task, TaskId,
    once_per::Window,
    sync::lock,
    testing::{FakeJob, suspend},
};
use kafkaq_core::Wall;
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

/// The tasks that executions have enqueued. As in a log, they stay, whatever the outcome of the execution.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collected(Arc<Mutex<Vec<Task>>>);

impl Collected {
    /// Two await points, since the task may be durable before its publisher knows it.
    pub(super) async fn add(&self, task: Task) -> Result<TaskId> {
        suspend(|| "before a task is enqueued".to_owned()).await;
        let id = {
            let mut tasks = lock(&self.0);
            let id = match (task.id(), task.once_per()) {
                (Some(id), _) => id.clone(),
                // All executions are in one window, so that they can be compared.
                (None, Some((key, window))) => Window::at(Wall(0), key, window, Duration::ZERO)?.id,
                (None, None) => TaskId::new(format!("enqueued-{}", tasks.len()))?,
            };
            if tasks.iter().all(|earlier| earlier.id() != Some(&id)) {
                tasks.push(task.with_id(id.clone()));
            }
            id
        };
        suspend(|| "after a task was enqueued".to_owned()).await;
        Ok(id)
    }

    /// The tasks, in the order in which they were enqueued. Each has its own id.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        lock(&self.0).clone()
    }
}

/// A handler of typed tasks. Its panics count as failures.
pub(crate) struct Handler<S>(handlers::Handler<S>, u16);

pub(crate) type Handling = Pin<Box<dyn Future<Output = Outcome> + Send>>;

impl<S: Send + Sync + 'static> Handler<S> {
    pub(crate) fn new<T, F, Fut>(handler: F) -> Self
    where
        T: TaskType,
        F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoOutcome,
    {
        panics::remember_places();
        Handler(handlers::typed(handler), T::VERSION)
    }

    pub(crate) fn execute(&self, fake_job: FakeJob, state: Arc<S>, enqueued: Collected) -> (Handling, Stop) {
        let (job, deadline, target) = (fake_job.job(), fake_job.deadline(), Target::Collected(enqueued));
        let execution = Arc::new(Execution::new(job, deadline, fake_job.queue, 0, target));
        let stop = Stop::new(execution.clone());
        let handling = (self.0)(Ctx::new(execution, state), self.1);
        let handling = Box::pin(async move {
            let ended = match handling {
                Executing::Async(handling) => handling.await,
                Executing::Blocking(handling) => handling(),
            };
            match ended {
                Ended::Returned(outcome) => outcome,
                Ended::Panicked(reason) => Outcome::Retry { delay: None, reason },
                Ended::NotStarted(delay) => Outcome::Snooze(delay.unwrap_or_default()),
            }
        });
        (handling, stop)
    }
}

/// The kind of a task, if it has one.
pub(crate) fn kind(headers: &Headers) -> Option<&str> {
    headers::kind(headers).map(|(kind, _)| kind)
}
