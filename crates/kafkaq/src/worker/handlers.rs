//! One interface for all kinds of handlers.

use super::{
    batch,
    context::Ctx,
    failure::{IntoOutcome, Outcome},
    panics,
    typed::{self, TaskType},
};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

/// An execution that has not started.
pub(super) enum Executing {
    Async(Pin<Box<dyn Future<Output = Ended> + Send>>),
    /// It blocks its thread.
    Blocking(Box<dyn FnOnce() -> Ended + Send>),
}

/// How a handler returned.
#[derive(Debug)]
pub(super) enum Ended {
    Returned(Outcome),
    Panicked(String),
    /// It has not started, which is never a failure. The task is snoozed for this long, or given back.
    NotStarted(Option<Duration>),
}

impl Ended {
    /// Returns the failure of an execution whose time was up before this began.
    pub(super) fn timed_out_before(what: &str) -> Self {
        Ended::Returned(Outcome::Retry { delay: None, reason: format!("timed out before its {what} began") })
    }
}

/// Executes a task whose payload has this version.
pub(super) type Handler<S> = Arc<dyn Fn(Ctx<S>, u16) -> Executing + Send + Sync>;

/// An async handler of typed tasks, on the worker's threads.
pub(super) fn typed<S, T, F, Fut>(handler: F) -> Handler<S>
where
    S: Send + Sync + 'static,
    T: TaskType,
    F: Fn(Ctx<S>, T) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    let handler = Arc::new(handler);
    Arc::new(move |ctx, version| {
        let handler = handler.clone();
        execute(async move {
            match typed::decode(version, &ctx.execution().job) {
                Ok(task) => handler(ctx, task).await.into_outcome(),
                Err(reason) => Outcome::Reject(reason),
            }
        })
    })
}

/// The handler of tasks without a known type.
pub(super) fn untyped<S, F, Fut>(handler: F) -> Handler<S>
where
    S: Send + Sync + 'static,
    F: Fn(Ctx<S>) -> Fut + Send + Sync + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoOutcome,
{
    let handler = Arc::new(handler);
    Arc::new(move |ctx, _| {
        let handler = handler.clone();
        execute(async move { handler(ctx).await.into_outcome() })
    })
}

fn execute(handler: impl Future<Output = Outcome> + Send + 'static) -> Executing {
    Executing::Async(Box::pin(async move { panics::caught(handler).await.into() }))
}

impl From<Result<Outcome, String>> for Ended {
    fn from(caught: Result<Outcome, String>) -> Self {
        caught.map_or_else(Ended::Panicked, Ended::Returned)
    }
}

/// A blocking handler of typed tasks, on the runtime's threads for blocking work.
pub(super) fn blocking<S, T, F, R>(handler: F) -> Handler<S>
where
    S: Send + Sync + 'static,
    T: TaskType,
    F: Fn(Ctx<S>, T) -> R + Send + Sync + 'static,
    R: IntoOutcome,
{
    let handler = Arc::new(handler);
    Arc::new(move |ctx: Ctx<S>, version| {
        let handler = handler.clone();
        Executing::Blocking(Box::new(move || {
            let run = || match typed::decode(version, &ctx.execution().job) {
                Ok(task) => handler(ctx, task).into_outcome(),
                Err(reason) => Outcome::Reject(reason),
            };
            panics::caught_blocking(run).into()
        }))
    })
}

/// A batch handler.
pub(super) fn batch<S, T, F, Fut, R>(max: usize, wait: Duration, handler: F) -> Handler<S>
where
    S: Send + Sync + 'static,
    T: TaskType,
    F: Fn(Vec<(Ctx<S>, T)>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Vec<R>> + Send + 'static,
    R: IntoOutcome + Send + 'static,
{
    let batches = Arc::new(batch::Batches::new(max, wait, handler));
    Arc::new(move |ctx: Ctx<S>, version| {
        let batches = batches.clone();
        Executing::Async(Box::pin(async move {
            match panics::caught_blocking(|| typed::decode(version, &ctx.execution().job)) {
                Ok(Ok(task)) => batches.execute(ctx, task).await,
                Ok(Err(reason)) => Ended::Returned(Outcome::Reject(reason)),
                Err(told) => Ended::Panicked(told),
            }
        }))
    })
}
