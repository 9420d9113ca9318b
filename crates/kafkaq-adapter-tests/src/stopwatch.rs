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

/// Measures how long something took, in steps that a task of the same runtime has slept. If the machine stalls or is
/// overloaded, the steps are late as well: so something that exceeds a limit has really waited, and was not just
/// starved of CPU time.
#[derive(Debug)]
pub struct Stopwatch {
    steps: Arc<AtomicU32>,
    task: AbortHandle,
}

impl Stopwatch {
    /// Starts now.
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

    /// Returns the time since the start, never more than by the clock.
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
