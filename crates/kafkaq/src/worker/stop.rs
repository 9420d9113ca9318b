//! How a handler is told that its execution is to end.

use crate::LostReason;
use std::sync::Arc;
use tokio::sync::watch;

/// Why an execution is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The lease is lost: somebody else executes the task, or will. Whatever is done from now on may be done twice.
    LeaseLost,
    /// The task was cancelled.
    Cancelled,
    /// The time that an execution may take is over.
    TimedOut,
    /// The worker stops. A handler that ends in time ends its task as ever; one that doesn't is given back, which
    /// counts as no failure.
    ShuttingDown,
}

impl StopReason {
    pub(super) fn of(lost: LostReason) -> Self {
        match lost {
            LostReason::Cancelled => StopReason::Cancelled,
            _ => StopReason::LeaseLost,
        }
    }
}

/// Tells a handler to end its execution. Cheap to clone, and to be handed on to whatever the handler starts.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<Option<StopReason>>>);

impl Stop {
    pub(super) fn new() -> Self {
        Stop(Arc::new(watch::Sender::new(None)))
    }

    /// The first reason stays, but that the worker stops is less than all others.
    pub(crate) fn tell(&self, reason: StopReason) {
        self.0.send_if_modified(|told| {
            let is_news = matches!(told, None | Some(StopReason::ShuttingDown)) && *told != Some(reason);
            if is_news {
                *told = Some(reason);
            }
            is_news
        });
    }

    /// Returns why the execution is to end; `None` while it may go on.
    #[must_use]
    pub fn reason(&self) -> Option<StopReason> {
        *self.0.borrow()
    }

    /// Whether the execution is to end.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.reason().is_some()
    }

    /// Waits until the execution is to end, and returns why. Cancel-safe; made for a `select!` beside the work.
    pub async fn requested(&self) -> StopReason {
        self.until(|_| true).await
    }

    /// Waits for such a reason.
    pub(super) async fn until(&self, is_it: impl Fn(StopReason) -> bool) -> StopReason {
        let mut told = self.0.subscribe();
        loop {
            if let Some(reason) = told.borrow_and_update().filter(|reason| is_it(*reason)) {
                return reason;
            }
            // The sender lives as long as this.
            let _ = told.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_stays_unless_it_was_only_the_worker() {
        let stop = Stop::new();
        assert!(!stop.is_requested());
        stop.tell(StopReason::ShuttingDown);
        assert_eq!(stop.requested().await, StopReason::ShuttingDown);
        stop.tell(StopReason::LeaseLost);
        stop.tell(StopReason::TimedOut);
        stop.tell(StopReason::ShuttingDown);
        assert_eq!(stop.requested().await, StopReason::LeaseLost);
    }
}
