//! Counters and histograms. Their handles are created once, with the recorder that is installed then.

use super::{names, names::Metric};
use kafkaq_core::{
    Effect, History, LostReason, Result, TaskId,
    machine::{Answer, Command, DeadReason, Ready},
};
use metrics::{Counter, Histogram};
use std::time::Duration;

/// Counts published tasks.
#[derive(Debug)]
pub(crate) struct PublishMeter {
    published: Counter,
    not_applied: Counter,
    unknown: Counter,
}

impl PublishMeter {
    pub(crate) fn new(queue: &str) -> Self {
        names::describe();
        let errors = |effect| names::PUBLISH_ERRORS.counter(queue, &[("effect", effect)]);
        PublishMeter {
            published: names::PUBLISHED.counter(queue, &[]),
            not_applied: errors("not_applied"),
            unknown: errors("unknown"),
        }
    }

    pub(crate) fn published(&self, outcomes: &[Result<TaskId>]) {
        for outcome in outcomes {
            match outcome.as_ref().map_err(|e| e.effect()) {
                Ok(_) => &self.published,
                Err(Effect::NotApplied) => &self.not_applied,
                Err(_) => &self.unknown,
            }
            .increment(1);
        }
    }
}

/// Measures the calls of one kind to a backend.
#[derive(Debug)]
pub(crate) struct CallMeter {
    seconds: Histogram,
    items: Counter,
    errors: Counter,
}

impl CallMeter {
    pub(crate) fn new(queue: &str, call: &'static str) -> Self {
        let labels = &[("call", call)];
        CallMeter {
            seconds: names::CALL_SECONDS.histogram(queue, labels),
            items: names::CALL_ITEMS.counter(queue, labels),
            errors: names::CALL_ERRORS.counter(queue, labels),
        }
    }

    pub(crate) fn ended(&self, took: Duration, items: usize, failed: usize) {
        self.seconds.record(took);
        self.items.increment(items as u64);
        self.errors.increment(failed as u64);
    }
}

/// Counters of one metric, one per value of a label.
#[derive(Debug)]
struct Family<const N: usize>([Counter; N]);

impl<const N: usize> Family<N> {
    fn new(metric: Metric, queue: &str, label: &'static str, values: [&'static str; N]) -> Self {
        Family(values.map(|value| metric.counter(queue, &[(label, value)])))
    }

    fn count(&self, value: usize) {
        if let Some(counter) = self.0.get(value) {
            counter.increment(1);
        }
    }
}

/// How a job ended, as far as its holder knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobEnding {
    Done,
    Retried,
    Snoozed,
    Released,
    DeadLettered,
    Lost,
    Unconfirmed,
    Dropped,
}

/// Counts the outcomes of jobs.
#[derive(Debug)]
pub(crate) struct JobMeter {
    handed_out: Counter,
    redelivered: Family<3>,
    ended: Family<8>,
    lost: Family<3>,
    dead: Family<4>,
}

impl JobMeter {
    pub(crate) fn new(queue: &str) -> Self {
        names::describe();
        JobMeter {
            handed_out: names::HANDED_OUT.counter(queue, &[]),
            redelivered: Family::new(
                names::REDELIVERED,
                queue,
                "cause",
                ["failed", "lease_expired", "given_back"],
            ),
            // In the order of `JobEnding`.
            ended: Family::new(
                names::JOBS_ENDED,
                queue,
                "ending",
                ["done", "retried", "snoozed", "released", "dead_lettered", "lost", "unconfirmed", "dropped"],
            ),
            lost: Family::new(names::LEASES_LOST, queue, "reason", ["taken_over", "cancelled", "dead"]),
            // In the order of `DeadReason`.
            dead: Family::new(
                names::DEAD_LETTERS,
                queue,
                "reason",
                ["rejected", "failures", "handouts", "unreadable"],
            ),
        }
    }

    pub(crate) fn handed_out(&self, ready: &Ready) {
        self.handed_out.increment(1);
        if ready.attempt > 1 {
            let last = ready.history.entries().pop().filter(|failed| failed.attempt + 1 == ready.attempt);
            self.redelivered.count(match last {
                Some(failed) if failed.reason == History::LEASE_RAN_OUT => 1,
                Some(_) => 0,
                None => 2,
            });
        }
    }

    /// Returns how a job ends with this command, if it is confirmed.
    pub(crate) fn asked(&self, command: &Command) -> JobEnding {
        match command {
            Command::Retry(..) => JobEnding::Retried,
            Command::Snooze(_) => JobEnding::Snoozed,
            Command::Release => JobEnding::Released,
            Command::Reject(_) => JobEnding::DeadLettered,
            Command::Done | Command::Extend(_) | Command::Abandoned => JobEnding::Done,
        }
    }

    pub(crate) fn answered(&self, asked: JobEnding, answer: &Answer) {
        self.ended(match answer {
            Answer::Ok | Answer::Extended(_) => asked,
            Answer::DeadLettered => JobEnding::DeadLettered,
            Answer::Lost(_) => JobEnding::Lost,
            Answer::Failed(_) => JobEnding::Unconfirmed,
        });
    }

    /// Counts a job that was dropped by its holder.
    pub(crate) fn dropped(&self, is_lost: impl FnOnce() -> bool) {
        self.ended(if is_lost() { JobEnding::Lost } else { JobEnding::Dropped });
    }

    fn ended(&self, ending: JobEnding) {
        self.ended.count(ending as usize);
    }

    pub(crate) fn lease_lost(&self, reason: LostReason) {
        match reason {
            LostReason::TakenOver => self.lost.count(0),
            LostReason::Cancelled => self.lost.count(1),
            LostReason::Dead => self.lost.count(2),
            // The job had already ended, so no lease was lost.
            _ => {}
        }
    }

    pub(crate) fn dead_lettered(&self, reason: DeadReason) {
        self.dead.count(reason as usize);
    }
}

#[cfg(feature = "worker")]
pub(crate) use executions::{ExecutionMeter, RunningMeter};

#[cfg(feature = "worker")]
mod executions {
    use super::{Family, names};
    use crate::{clock::system_now, worker::Ending};
    use metrics::{Counter, Gauge, Histogram};
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };
    use tokio::time::Instant;

    /// Measures the executions of one kind.
    #[derive(Clone, Debug)]
    pub(crate) struct ExecutionMeter(Arc<Handles>);

    #[derive(Debug)]
    struct Handles {
        ended: [Counter; 8],
        expired: Family<2>,
        panics: Counter,
        timeouts: Counter,
        running: Gauge,
        slow: Gauge,
        seconds: Histogram,
        waiting: Histogram,
    }

    impl ExecutionMeter {
        pub(crate) fn new(queue: &str, kind: &str) -> Self {
            let kind = ("kind", kind);
            let ended = |outcome| names::EXECUTIONS.counter(queue, &[kind, ("outcome", outcome)]);
            let expired = |then| names::EXPIRED.counter(queue, &[kind, ("then", then)]);
            ExecutionMeter(Arc::new(Handles {
                // In the order of `Ending`.
                ended: [
                    "done",
                    "retried",
                    "snoozed",
                    "dead_lettered",
                    "expired",
                    "released",
                    "lost",
                    "unconfirmed",
                ]
                .map(ended),
                expired: Family(["dropped", "dead_lettered"].map(expired)),
                panics: names::PANICS.counter(queue, &[kind]),
                timeouts: names::TIMEOUTS.counter(queue, &[kind]),
                running: names::EXECUTIONS_RUNNING.gauge(queue, &[kind]),
                slow: names::EXECUTIONS_SLOW.gauge(queue, &[kind]),
                seconds: names::EXECUTION_SECONDS.histogram(queue, &[kind]),
                waiting: names::WAITING_SECONDS.histogram(queue, &[kind]),
            }))
        }

        /// Records that a handler is about to run. `published` is the publish time of its task, if it never ran before.
        pub(crate) fn begin(&self, published: Option<SystemTime>) -> RunningMeter {
            if let Some(published) = published {
                // Clocks may differ.
                self.0.waiting.record(system_now().duration_since(published).unwrap_or(Duration::ZERO));
            }
            self.0.running.increment(1.0);
            RunningMeter { handles: self.0.clone(), began: Instant::now() }
        }

        pub(crate) fn ended(&self, ending: Ending) {
            if let Some(counter) = self.0.ended.get(ending as usize) {
                counter.increment(1);
            }
        }

        pub(crate) fn expired(&self, dead_lettered: bool) {
            self.0.expired.count(dead_lettered.into());
        }

        pub(crate) fn timed_out(&self) {
            self.0.timeouts.increment(1);
        }

        pub(crate) fn slow(&self) {
            self.0.slow.increment(1.0);
        }

        pub(crate) fn slow_ended(&self) {
            self.0.slow.decrement(1.0);
        }

        pub(crate) fn panicked(&self) {
            self.0.panics.increment(1);
        }
    }

    /// Measures one execution until it is dropped, which also covers one that is given up.
    #[derive(Debug)]
    pub(crate) struct RunningMeter {
        handles: Arc<Handles>,
        began: Instant,
    }

    impl Drop for RunningMeter {
        fn drop(&mut self) {
            self.handles.running.decrement(1.0);
            self.handles.seconds.record(self.began.elapsed());
        }
    }
}
