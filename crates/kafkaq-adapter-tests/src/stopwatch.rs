//! Measures time for limits that also hold on a busy machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{task::AbortHandle, time::sleep};

const STEP: Duration = Duration::from_millis(10);

/// Measures how long something took at the most, in steps that a task of the same runtime has slept. If the machine
/// stands still, or lets everybody wait for the processor, the steps are late as well: so what fails a limit has
/// waited for something, and was not just kept waiting.
#[derive(Debug)]
pub struct Stopwatch {
    steps: Arc<AtomicU32>,
    task: AbortHandle,
}

impl Stopwatch {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        let steps = Arc::<AtomicU32>::default();
        let count = steps.clone();
        let task = tokio::spawn(async move {
            loop {
                sleep(STEP).await;
                count.fetch_add(1, Relaxed);
            }
        });
        Stopwatch { steps, task: task.abort_handle() }
    }

    /// Never more than has passed by the clock.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.steps.load(Relaxed) * STEP
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
