//! Handlers of several tasks at once. Each execution hands its task over to whoever collects, and waits for its outcome.

use super::{
    context::Ctx,
    failure::{IntoOutcome, Outcome},
    handlers::Ended,
    panics,
};
use crate::sync::lock;
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::oneshot;

type Run<S, T> = dyn Fn(Vec<(Ctx<S>, T)>) -> Pin<Box<dyn Future<Output = Vec<Outcome>> + Send>> + Send + Sync;

pub(super) struct Batches<S, T> {
    max: usize,
    wait: Duration,
    run: Arc<Run<S, T>>,
    collected: Mutex<Collected<S, T>>,
}

struct Collected<S, T> {
    tasks: Vec<(Ctx<S>, T)>,
    waiting: Vec<oneshot::Sender<Ended>>,
    /// Counts batches, so that a timer knows whether its own is still being collected.
    number: u64,
}

impl<S: Send + Sync + 'static, T: Send + 'static> Batches<S, T> {
    pub(super) fn new<F, Fut, R>(max: usize, wait: Duration, handler: F) -> Self
    where
        F: Fn(Vec<(Ctx<S>, T)>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Vec<R>> + Send + 'static,
        R: IntoOutcome + Send + 'static,
    {
        let run = move |tasks: Vec<(Ctx<S>, T)>| {
            let handled = handler(tasks);
            let outcomes = async move { handled.await.into_iter().map(R::into_outcome).collect::<Vec<_>>() };
            Box::pin(outcomes) as Pin<Box<dyn Future<Output = Vec<Outcome>> + Send>>
        };
        let collected = Collected { tasks: Vec::new(), waiting: Vec::new(), number: 0 };
        Batches { max: max.max(1), wait, run: Arc::new(run), collected: Mutex::new(collected) }
    }

    pub(super) async fn execute(self: Arc<Self>, ctx: Ctx<S>, task: T) -> Ended {
        let (tell, told) = oneshot::channel();
        let (full, first) = {
            let mut collected = lock(&self.collected);
            collected.tasks.push((ctx, task));
            collected.waiting.push(tell);
            let first = (collected.tasks.len() == 1).then_some(collected.number);
            let full = (collected.tasks.len() >= self.max).then(|| collected.take());
            (full, first)
        };
        // On tasks of their own, so that an execution that is given up takes no other with it.
        if let Some(batch) = full {
            tokio::spawn(run(self.run.clone(), batch));
        } else if let Some(number) = first {
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(this.wait).await;
                let batch = {
                    let mut collected = lock(&this.collected);
                    (collected.number == number).then(|| collected.take())
                };
                if let Some(batch) = batch {
                    run(this.run.clone(), batch).await;
                }
            });
        }
        let gone = |_| Ended::Panicked("the batch handler was dropped".to_owned());
        told.await.unwrap_or_else(gone)
    }
}

type Batch<S, T> = (Vec<(Ctx<S>, T)>, Vec<oneshot::Sender<Ended>>);

impl<S, T> Collected<S, T> {
    fn take(&mut self) -> Batch<S, T> {
        self.number += 1;
        (std::mem::take(&mut self.tasks), std::mem::take(&mut self.waiting))
    }
}

async fn run<S, T>(handler: Arc<Run<S, T>>, (tasks, waiting): Batch<S, T>) {
    let n = waiting.len();
    let handled = panics::caught(async move { handler(tasks).await }).await;
    let mut outcomes = match handled {
        Ok(outcomes) => outcomes.into_iter(),
        Err(told) => {
            for tell in waiting {
                let _ = tell.send(Ended::Panicked(told.clone()));
            }
            return;
        }
    };
    let returned = outcomes.len();
    for tell in waiting {
        let missing = || Outcome::Retry {
            delay: None,
            reason: format!("the batch handler returned {returned} outcomes for {n} tasks"),
        };
        let _ = tell.send(Ended::Returned(outcomes.next().unwrap_or_else(missing)));
    }
}
