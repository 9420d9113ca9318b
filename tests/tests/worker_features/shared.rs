//! Shared by the cases: tasks, queues with long leases, and waiting.

use kafkaq::{
    JobStatus, Queue, QueueBuilder, TaskId,
    worker::{Backoff, Ctx, TaskType, Worker, WorkerBuilder, WorkerHandle, WorkerReport},
};
use kafkaq_tests::{Built, PATIENCE, Pair};
use serde::{Deserialize, Serialize};
use std::{
    future::{Ready, ready},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::time::sleep;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A task with a number, whose meaning is up to the case.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Number(pub(crate) u32);

impl TaskType for Number {
    const KIND: &'static str = "number";
}

impl From<Number> for u32 {
    fn from(number: Number) -> u32 {
        number.0
    }
}

/// A task of another kind.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Other(pub(crate) u32);

impl TaskType for Other {
    const KIND: &'static str = "other";
}

impl From<Other> for u32 {
    fn from(other: Other) -> u32 {
        other.0
    }
}

/// Returns a queue for cases in which no lease may expire, however busy the machine is.
pub(crate) fn unhurried(pair: &Pair) -> QueueBuilder {
    pair.queue().lease_duration(60 * SECOND)
}

pub(crate) async fn build(pair: &Pair) -> Queue {
    unhurried(pair).built().await
}

/// A worker that retries after a second.
pub(crate) fn worker(queue: &Queue) -> WorkerBuilder {
    Worker::builder(queue.clone()).retry(Backoff::fixed(SECOND).jitter(false))
}

pub(crate) async fn stop(mut running: WorkerHandle) -> WorkerReport {
    running.stop();
    running.stopped().await.unwrap()
}

pub(crate) async fn until_status(queue: &Queue, id: &TaskId, wanted: JobStatus) {
    let begun = Instant::now();
    while !queue.jobs().get(id).await.is_ok_and(|info| info.status == wanted) {
        let patient = begun.elapsed() < PATIENCE;
        assert!(patient, "{id} is not {wanted:?}: {:?}", queue.jobs().get(id).await);
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the group has finished every record that the publishers of these queues have appended. Then duplicate
/// records have been considered as well.
pub(crate) async fn until_all_finished(pair: &Pair, queues: &[&Queue]) {
    let begun = Instant::now();
    let mut published = 0;
    for queue in queues {
        let publishes = queue.stats().await.publishes;
        published += i64::try_from(publishes.items - publishes.failed).unwrap();
    }
    loop {
        let finished = pair.committed(6).await;
        if finished >= published {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{finished} of {published} records are finished");
        sleep(Duration::from_millis(200)).await;
    }
}

/// An execution that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) id: TaskId,
    pub(crate) attempt: u32,
    pub(crate) number: u32,
    pub(crate) at: Instant,
}

/// The executions that have begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Arc<Mutex<Vec<Run>>>);

impl Runs {
    pub(crate) fn note<S>(&self, ctx: &Ctx<S>, number: u32) {
        let run = Run { id: ctx.id().clone(), attempt: ctx.attempt(), number, at: Instant::now() };
        self.0.lock().unwrap().push(run);
    }

    /// A handler that notes each execution, and does nothing else.
    pub(crate) fn handler<T: Into<u32>>(&self) -> impl Fn(Ctx, T) -> Ready<()> + use<T> {
        let runs = self.clone();
        move |ctx, task| {
            runs.note(&ctx, task.into());
            ready(())
        }
    }

    pub(crate) fn all(&self) -> Vec<Run> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Returns the numbers in order.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let mut numbers: Vec<_> = self.all().iter().map(|run| run.number).collect();
        numbers.sort_unstable();
        numbers
    }
}
