//! The report of a worker.

use crate::TaskId;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// How executions have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    Retried,
    Snoozed,
    DeadLettered,
    Expired,
    Released,
    Lost,
    Unconfirmed,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    endings: [AtomicU64; 8],
    pub(super) panicked: AtomicU64,
    pub(super) timed_out: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, ending: Ending) {
        self.endings[ending as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn report(&self, ran: Duration) -> WorkerReport {
        let of = |ending: Ending| self.endings[ending as usize].load(Relaxed);
        WorkerReport {
            done: of(Ending::Done),
            retried: of(Ending::Retried),
            snoozed: of(Ending::Snoozed),
            dead_lettered: of(Ending::DeadLettered),
            expired: of(Ending::Expired),
            released: of(Ending::Released),
            lost: of(Ending::Lost),
            unconfirmed: of(Ending::Unconfirmed),
            panicked: self.panicked.load(Relaxed),
            timed_out: self.timed_out.load(Relaxed),
            ran,
        }
    }
}

/// How one execution has ended.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "testing"), allow(dead_code))]
pub(crate) struct Finished {
    pub(crate) id: TaskId,
    pub(crate) ending: Ending,
    /// Why it was retried or dead-lettered.
    pub(crate) reason: Option<String>,
}

/// Called for each execution that has ended.
pub(crate) type Observer = Arc<dyn Fn(Finished) + Send + Sync>;

/// Counts of a worker's executions. Each execution is counted once in the first group of fields, up to `unconfirmed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReport {
    /// Executions that completed their task.
    pub done: u64,
    /// Failed executions whose task is executed again.
    pub retried: u64,
    /// Executions whose task is executed again, without a failure.
    pub snoozed: u64,
    /// Executions after which the task was dead-lettered.
    pub dead_lettered: u64,
    /// Tasks that were dropped because they had expired.
    pub expired: u64,
    /// Tasks that were given back because the worker stopped, or because the lock of their key was lost.
    pub released: u64,
    /// Executions whose lease was lost, or whose task was cancelled.
    pub lost: u64,
    /// Executions whose outcome the store or the log did not confirm: some of these tasks are executed again.
    pub unconfirmed: u64,
    /// Executions that panicked.
    pub panicked: u64,
    /// Executions that took longer than their timeout.
    pub timed_out: u64,
    /// How long the worker ran.
    pub ran: Duration,
}

impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} done in {:.1?}", self.done, self.ran)?;
        let others = [
            (self.retried, "retried"),
            (self.snoozed, "snoozed"),
            (self.dead_lettered, "dead-lettered"),
            (self.expired, "expired"),
            (self.released, "given back"),
            (self.lost, "lost"),
            (self.unconfirmed, "unconfirmed"),
            (self.panicked, "panicked"),
            (self.timed_out, "timed out"),
        ];
        others.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, what)| write!(f, ", {n} {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_only_what_happened() {
        let counters = Counters::default();
        counters.count(Ending::Done);
        counters.count(Ending::Unconfirmed);
        counters.panicked.fetch_add(2, Relaxed);
        let report = counters.report(Duration::from_millis(1500));
        assert_eq!(report.to_string(), "1 done in 1.5s, 1 unconfirmed, 2 panicked");
    }
}
