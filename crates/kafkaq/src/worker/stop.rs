//! Tells a handler that its execution has to stop.

use super::context::Execution;
use crate::{LostReason, sync::until};
use std::{
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
};
use tokio::sync::Notify;

/// Why an execution has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The lease is lost: another worker executes the task, or will. Anything done from now on may be done twice.
    LeaseLost,
    /// The task was cancelled.
    Cancelled,
    /// The execution's timeout has passed.
    TimedOut,
    /// The worker is stopping. If the handler ends in time, its outcome counts as usual; otherwise the task is given
    /// back, which doesn't count as a failure.
    ShuttingDown,
}

impl StopReason {
    pub(super) fn of(lost: LostReason) -> Self {
        match lost {
            LostReason::Cancelled => StopReason::Cancelled,
            _ => StopReason::LeaseLost,
        }
    }

    pub(super) fn means_lost(self) -> bool {
        matches!(self, StopReason::LeaseLost | StopReason::Cancelled)
    }
}

/// What an execution has been told. The loss of the lease is read from its job.
#[derive(Debug, Default)]
pub(super) struct Signal {
    told: AtomicU8,
    news: Notify,
}

const REASONS: [StopReason; 4] =
    [StopReason::ShuttingDown, StopReason::TimedOut, StopReason::Cancelled, StopReason::LeaseLost];
/// A flag beside the reason, which is counted from 1.
const DROPPED: u8 = 0x80;

impl Signal {
    fn told(&self) -> Option<StopReason> {
        let code = self.told.load(SeqCst) & !DROPPED;
        code.checked_sub(1).and_then(|index| REASONS.get(usize::from(index)).copied())
    }
}

/// Signals a handler to end its execution. Cheap to clone; pass it on to whatever the handler starts.
#[derive(Clone)]
pub struct Stop(Arc<Execution>);

impl Stop {
    pub(super) fn new(execution: Arc<Execution>) -> Self {
        Stop(execution)
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.0
    }

    /// See [`Execution::tell`].
    pub(crate) fn tell(&self, reason: StopReason) {
        self.0.tell(reason);
    }

    /// Returns why the execution has to stop; `None` while it may continue.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        self.0.stop_reason()
    }

    /// Returns whether the execution has to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.reason().is_some()
    }

    /// Waits until the execution has to stop, and returns why. Cancel-safe; meant for a `select!` next to the work.
    pub async fn requested(&self) -> StopReason {
        self.0.stop_requested(|_| true).await
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stop").field(&self.reason()).finish()
    }
}

impl Execution {
    /// The first reason stays, except that any other reason replaces the worker's stop.
    pub(super) fn tell(&self, reason: StopReason) {
        let code = REASONS.iter().zip(1..).find_map(|(r, code)| (*r == reason).then_some(code)).unwrap_or(1);
        let news = self.signal.told.fetch_update(SeqCst, SeqCst, |told| {
            let is_news = matches!(told & !DROPPED, 0 | 1) && told & !DROPPED != code;
            is_news.then_some(told & DROPPED | code)
        });
        if news.is_ok() {
            self.signal.news.notify_waiters();
        }
    }

    /// Why the execution is to end.
    pub(super) fn stop_reason(&self) -> Option<StopReason> {
        let told = self.signal.told();
        if let None | Some(StopReason::ShuttingDown) = told
            && let Some(why) = self.job.loss()
        {
            self.tell(StopReason::of(why));
            return self.signal.told();
        }
        told
    }

    /// Makes the handler be dropped at its next await.
    pub(super) fn drop_handler(&self) {
        self.signal.told.fetch_or(DROPPED, SeqCst);
        self.signal.news.notify_waiters();
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.signal.told.load(SeqCst) & DROPPED != 0
    }

    /// Waits until the handler is to be dropped.
    pub(super) async fn dropped(&self) {
        until(&self.signal.news, || self.is_dropped().then_some(())).await;
    }

    /// Waits for such a reason.
    pub(super) async fn stop_requested(&self, is_it: impl Fn(StopReason) -> bool) -> StopReason {
        let mut lost = pin!(self.job.lost());
        let mut is_lost = false;
        loop {
            let mut news = pin!(self.signal.news.notified());
            // Listens before it looks, so that nothing is missed in between.
            news.as_mut().enable();
            if let Some(reason) = self.stop_reason().filter(|reason| is_it(*reason)) {
                return reason;
            }
            tokio::select! {
                () = news => {}
                _ = &mut lost, if !is_lost => is_lost = true,
            }
        }
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::{super::context::tests::execution, *};
    use futures_util::poll;

    #[tokio::test]
    async fn the_first_reason_stays_unless_it_was_only_the_worker() {
        let stop = Stop::new(Arc::new(execution()));
        assert!(!stop.is_requested());
        stop.0.tell(StopReason::ShuttingDown);
        assert_eq!(stop.requested().await, StopReason::ShuttingDown);
        let mut worse = pin!(stop.0.stop_requested(|reason| reason != StopReason::ShuttingDown));
        assert!(poll!(&mut worse).is_pending());
        stop.0.tell(StopReason::LeaseLost);
        stop.0.tell(StopReason::TimedOut);
        stop.0.tell(StopReason::ShuttingDown);
        assert_eq!(stop.requested().await, StopReason::LeaseLost);
        assert_eq!(worse.await, StopReason::LeaseLost);
    }

    #[tokio::test]
    async fn later_reason_does_not_revive_a_dropped_handler() {
        let execution = execution();
        let mut dropped = pin!(execution.dropped());
        execution.tell(StopReason::ShuttingDown);
        assert!(poll!(&mut dropped).is_pending());
        execution.drop_handler();
        execution.tell(StopReason::TimedOut);
        assert!(execution.is_dropped());
        assert_eq!(execution.stop_reason(), Some(StopReason::TimedOut));
        dropped.await;
    }
}
