//! Which tasks have been executed, and the loops that execute them.

use super::{number_of, say_begin};
use futures_util::future::join_all;
use kafkaq::{Job, Queue};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, time::sleep};

/// How a side takes jobs.
#[derive(Clone, Copy)]
pub(super) struct Work {
    /// How many jobs run at once.
    pub(super) jobs: usize,
    /// The most jobs that one call takes.
    pub(super) batch: usize,
    /// How long each takes.
    pub(super) hold: Duration,
}

/// Starts loops that execute tasks.
pub(super) fn work(queue: &Queue, executions: Executions, work: Work) -> Arc<Executions> {
    let executions = Arc::new(executions);
    for _ in 0..work.jobs.div_ceil(work.batch) {
        let (queue, executions) = (queue.clone(), executions.clone());
        if work.batch == 1 {
            tokio::spawn(async move {
                while let Ok(job) = queue.get_job().await {
                    execute(job, &executions, work.hold).await;
                }
            });
        } else {
            tokio::spawn(async move {
                while let Ok(jobs) = queue.get_jobs(work.batch).await {
                    join_all(jobs.into_iter().map(|job| execute(job, &executions, work.hold))).await;
                }
            });
        }
    }
    executions
}

async fn execute(job: Job, executions: &Executions, hold: Duration) {
    let Ok(number) = number_of(job.payload()) else { return };
    executions.begin(number);
    if !hold.is_zero() {
        sleep(hold).await;
    }
    // A task whose `done` fails is executed again.
    let _ = job.done().await;
    executions.end(number);
}

/// Which tasks have been executed.
pub(super) struct Executions {
    pub(super) epoch: Instant,
    /// When the first execution of each task started, if it is needed: it takes 16 MB per million tasks.
    pub(super) begun: Vec<OnceLock<Duration>>,
    /// A bit for each task that has ended.
    ended: Vec<AtomicU64>,
    first: OnceLock<Duration>,
    pub(super) executions: AtomicUsize,
    left: AtomicUsize,
    all: Notify,
}

pub(super) struct Executed {
    pub(super) took: Duration,
    pub(super) executions: usize,
}

impl Executions {
    pub(super) fn new(tasks: usize, timed: bool) -> Executions {
        Executions {
            epoch: Instant::now(),
            begun: (0..if timed { tasks } else { 0 }).map(|_| OnceLock::new()).collect(),
            ended: (0..tasks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            first: OnceLock::new(),
            executions: AtomicUsize::new(0),
            left: AtomicUsize::new(tasks),
            all: Notify::new(),
        }
    }

    pub(super) fn begin(&self, number: usize) {
        let now = self.epoch.elapsed();
        self.executions.fetch_add(1, Relaxed);
        if self.first.set(now).is_ok() {
            say_begin();
        }
        if let Some(begun) = self.begun.get(number) {
            let _ = begun.set(now);
        }
    }

    pub(super) fn end(&self, number: usize) {
        let bit = 1 << (number % 64);
        let is_first =
            self.ended.get(number / 64).is_some_and(|ended| ended.fetch_or(bit, Relaxed) & bit == 0);
        if is_first && self.left.fetch_sub(1, Relaxed) == 1 {
            self.all.notify_one();
        }
    }

    /// Waits until every task has been executed.
    pub(super) async fn all(&self) -> Executed {
        self.all.notified().await;
        let first = self.first.get().copied().unwrap_or_default();
        Executed { took: self.epoch.elapsed() - first, executions: self.executions.load(Relaxed) }
    }
}
