//! Batch handlers. Each execution passes its task to a collector, and waits for its outcome.

use super::{
    context::Ctx,
    failure::{IntoOutcome, Outcome},
    handlers::Ended,
    panics,
    stop::StopReason,
};
use crate::sync::lock;
use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};
use tokio::{sync::oneshot, task::AbortHandle};

type Run<S, T> = dyn Fn(Vec<(Ctx<S>, T)>) -> Pin<Box<dyn Future<Output = Vec<Outcome>> + Send>> + Send + Sync;

pub(super) struct Batches<S, T> {
    max: usize,
    wait: Duration,
    run: Arc<Run<S, T>>,
    collected: Mutex<Collected<S, T>>,
}

struct Collected<S, T> {
    batch: Batch<S, T>,
    /// Counts batches, so that a timer knows whether its own is still being collected.
    number: u64,
}

struct Batch<S, T> {
    tasks: Vec<(Ctx<S>, T)>,
    waiting: Vec<oneshot::Sender<Ended>>,
    running: Arc<Running>,
}

impl<S, T> Default for Batch<S, T> {
    fn default() -> Self {
        Batch { tasks: Vec::new(), waiting: Vec::new(), running: Arc::default() }
    }
}

/// Shared by the executions of a batch. When the last one is given up, the handler is dropped.
#[derive(Default)]
struct Running(OnceLock<AbortHandle>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(handler) = self.0.get() {
            handler.abort();
        }
    }
}

impl<S, T> Collected<S, T> {
    /// Takes the batch that is being collected: the next task starts another one.
    fn take(&mut self) -> Batch<S, T> {
        self.number += 1;
        std::mem::take(&mut self.batch)
    }
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
        let collected = Collected { batch: Batch::default(), number: 0 };
        Batches { max: max.max(1), wait, run: Arc::new(run), collected: Mutex::new(collected) }
    }

    pub(super) async fn execute(self: Arc<Self>, ctx: Ctx<S>, task: T) -> Ended {
        let execution = ctx.stop().execution().clone();
        execution.waits_first();
        let (tell, mut told) = oneshot::channel();
        let (number, is_first, full, _running) = {
            let collected = &mut *lock(&self.collected);
            let (number, running) = (collected.number, collected.batch.running.clone());
            collected.batch.tasks.push((ctx, task));
            collected.batch.waiting.push(tell);
            let n = collected.batch.tasks.len();
            // Under the same lock, since otherwise others could be added to it.
            (number, n == 1, (n >= self.max).then(|| collected.take()), running)
        };
        if let Some(batch) = full {
            self.begin(batch);
        } else if is_first {
            // In a task of its own, so that an execution that is given up doesn't affect the others.
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(this.wait).await;
                this.complete(number);
            });
        }
        let ended = tokio::select! {
            biased;
            ended = &mut told => ended,
            _ = execution.stop_requested(|reason| reason == StopReason::ShuttingDown) => {
                // The batch is complete.
                self.complete(number);
                told.await
            }
        };
        ended.unwrap_or_else(|_| Ended::Panicked("the batch handler was dropped".to_owned()))
    }

    /// Starts the batch with this number, if it is still being collected.
    fn complete(&self, number: u64) {
        let batch = {
            let collected = &mut *lock(&self.collected);
            (collected.number == number).then(|| collected.take())
        };
        if let Some(batch) = batch {
            self.begin(batch);
        }
    }

    fn begin(&self, batch: Batch<S, T>) {
        let Batch { tasks, waiting, running } = batch;
        // Executions that were given up meanwhile, or are about to be, are executed again elsewhere.
        let (mut wanted, mut tellers) = (Vec::with_capacity(tasks.len()), Vec::with_capacity(tasks.len()));
        for ((ctx, task), tell) in tasks.into_iter().zip(waiting) {
            match ctx.stop().reason() {
                None | Some(StopReason::ShuttingDown) if !tell.is_closed() => {
                    ctx.execution().time_begins();
                    wanted.push((ctx, task));
                    tellers.push(tell);
                }
                // Its time was up in a layer, before it got here.
                Some(StopReason::TimedOut) => drop(tell.send(Ended::timed_out_before("batch"))),
                _ => drop(tell.send(Ended::NotStarted(None))),
            }
        }
        if wanted.is_empty() {
            return;
        }
        let handler = tokio::spawn(run(self.run.clone(), wanted, tellers));
        let _ = running.0.set(handler.abort_handle());
    }
}

async fn run<S, T>(handler: Arc<Run<S, T>>, tasks: Vec<(Ctx<S>, T)>, waiting: Vec<oneshot::Sender<Ended>>) {
    let n = waiting.len();
    let tell_all = |waiting: Vec<oneshot::Sender<Ended>>, ended: &dyn Fn() -> Ended| {
        for tell in waiting {
            let _ = tell.send(ended());
        }
    };
    match panics::caught(async move { handler(tasks).await }).await {
        Ok(outcomes) if outcomes.len() == n => {
            for (tell, outcome) in waiting.into_iter().zip(outcomes) {
                let _ = tell.send(Ended::Returned(outcome));
            }
        }
        // It is unknown which outcome belongs to which task.
        Ok(outcomes) => {
            let reason = format!("the batch handler returned {} outcomes for {n} tasks", outcomes.len());
            tell_all(waiting, &|| Ended::Returned(Outcome::Retry { delay: None, reason: reason.clone() }));
        }
        Err(told) => tell_all(waiting, &|| Ended::Panicked(told.clone())),
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::{super::context::tests::execution, *};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::task::JoinSet;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn batch_size_is_bounded() {
        let largest = Arc::new(AtomicUsize::new(0));
        let seen = largest.clone();
        let batches = Arc::new(Batches::new(2, Duration::from_millis(100), move |tasks: Vec<(Ctx, ())>| {
            seen.fetch_max(tasks.len(), SeqCst);
            async move { vec![Outcome::Done; tasks.len()] }
        }));
        let mut executions = JoinSet::new();
        for _ in 0..50_000 {
            let ctx = Ctx::new(Arc::new(execution()), Arc::new(()));
            executions.spawn(batches.clone().execute(ctx, ()));
        }
        while let Some(ended) = executions.join_next().await {
            assert!(matches!(ended.unwrap(), Ended::Returned(Outcome::Done)));
        }
        assert_eq!(largest.load(SeqCst), 2);
    }
}
