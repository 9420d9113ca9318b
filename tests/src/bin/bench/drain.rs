//! Tasks of 100 bytes, and how long it takes until many are done.

use kafkaq::{Queue, Task};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, task::JoinSet};

pub(crate) fn task() -> Task {
    Task::new(vec![b'x'; 100])
}

/// A task that carries a time.
pub(crate) fn stamped(at: Duration) -> Task {
    let mut payload = vec![b'x'; 100];
    payload[..8].copy_from_slice(&(at.as_nanos() as u64).to_le_bytes());
    Task::new(payload)
}

/// The time that a task carries.
pub(crate) fn stamp(payload: &[u8]) -> Duration {
    Duration::from_nanos(payload.first_chunk().map_or(0, |b| u64::from_le_bytes(*b)))
}

/// Counts tasks until all are done.
pub(crate) struct Countdown {
    left: AtomicUsize,
    over: Notify,
}

impl Countdown {
    pub(crate) fn from(tasks: usize) -> Arc<Self> {
        Arc::new(Countdown { left: AtomicUsize::new(tasks), over: Notify::new() })
    }

    /// Another task is done.
    pub(crate) fn one(&self) {
        if self.left.fetch_sub(1, Relaxed) == 1 {
            self.over.notify_one();
        }
    }

    /// Waits until all are done. For one caller.
    pub(crate) async fn over(&self) {
        self.over.notified().await;
    }
}

/// How long `loops` around `get_job` take to do so many tasks.
pub(crate) async fn drain(queue: &Queue, loops: usize, tasks: usize) -> Duration {
    let countdown = Countdown::from(tasks);
    let start = Instant::now();
    let mut working: JoinSet<()> = (0..loops).map(|_| work(queue.clone(), countdown.clone())).collect();
    countdown.over().await;
    let took = start.elapsed();
    // They wait for jobs by now, and a waiting loop that goes away takes none with it.
    working.shutdown().await;
    took
}

async fn work(queue: Queue, countdown: Arc<Countdown>) {
    while let Ok(job) = queue.get_job().await {
        if job.done().await.is_ok() {
            countdown.one();
        }
    }
}
