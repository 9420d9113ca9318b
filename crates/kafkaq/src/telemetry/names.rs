//! The names, units and meanings of all metrics. `docs/metrics.md` has the same table, and a test compares the two.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Unit};

#[derive(Clone, Copy)]
enum Type {
    Counter,
    Gauge,
    Histogram,
}

/// A metric.
#[derive(Clone, Copy)]
pub(super) struct Metric {
    name: &'static str,
    of: Type,
    unit: Unit,
    meaning: &'static str,
}

const fn counter(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, of: Type::Counter, unit: Unit::Count, meaning }
}

const fn gauge(name: &'static str, unit: Unit, meaning: &'static str) -> Metric {
    Metric { name, of: Type::Gauge, unit, meaning }
}

const fn seconds(name: &'static str, meaning: &'static str) -> Metric {
    Metric { name, of: Type::Histogram, unit: Unit::Seconds, meaning }
}

pub(super) const PUBLISHED: Metric =
    counter("kafkaq_published_total", "Published tasks and redriven dead letters.");
pub(super) const PUBLISH_ERRORS: Metric = counter(
    "kafkaq_publish_errors_total",
    "Tasks that could not be published: `not_applied`, or `unknown` if they may have been published.",
);
pub(super) const HANDED_OUT: Metric =
    counter("kafkaq_handed_out_total", "Jobs handed out to callers of `get_job` and to the worker.");
pub(super) const REDELIVERED: Metric = counter(
    "kafkaq_redelivered_total",
    "Jobs among them that had been handed out before: the previous attempt failed (`failed`), its lease \
     expired (`lease_expired`), or no failure was counted, as after a snooze or a release (`given_back`).",
);
pub(super) const JOBS_ENDED: Metric = counter(
    "kafkaq_jobs_ended_total",
    "Ended jobs: `done`, `retried`, `snoozed`, `released`, `dead_lettered`, `lost` (somebody else has the \
     task), `unconfirmed` (the store or the log did not respond in time), `dropped` (the `Job` was dropped \
     without an outcome).",
);
pub(super) const LEASES_LOST: Metric = counter(
    "kafkaq_leases_lost_total",
    "Lost leases of held jobs: `taken_over` after they expired, `cancelled`, or `dead` if somebody else \
     dead-lettered the task.",
);
pub(super) const DEAD_LETTERS: Metric = counter(
    "kafkaq_dead_letters_total",
    "Dead letters written: `rejected` by the holder, `failures` or `handouts` used up, `unreadable` records.",
);
pub(super) const CALL_SECONDS: Metric = seconds(
    "kafkaq_call_seconds",
    "Duration of calls to the store (`store_read`, `store_swap`, and `lock_swap` for key locks) and to the \
     log (`publish`, `copy`, `commit`). Copies include dead letters.",
);
pub(super) const CALL_ITEMS: Metric =
    counter("kafkaq_call_items_total", "Leases, locks, records and partitions in these calls.");
pub(super) const CALL_ERRORS: Metric =
    counter("kafkaq_call_errors_total", "Items among them that failed. Most are retried.");

pub(super) const JOBS_IN_FLIGHT: Metric =
    gauge("kafkaq_jobs_in_flight", Unit::Count, "Jobs that have been handed out and have not ended.");
pub(super) const JOBS_READY: Metric =
    gauge("kafkaq_jobs_ready", Unit::Count, "Jobs that are leased but not handed out yet.");
pub(super) const CALLERS_WAITING: Metric = gauge(
    "kafkaq_callers_waiting",
    Unit::Count,
    "Jobs that callers of `get_job` and free slots of the worker are waiting for.",
);
pub(super) const REDELIVERIES_READY: Metric = gauge(
    "kafkaq_redeliveries_ready",
    Unit::Count,
    "Tasks that have been handed out before and are leased again once somebody asks for a job.",
);
pub(super) const APPENDS_WAITING: Metric = gauge(
    "kafkaq_appends_waiting",
    Unit::Count,
    "Copies and dead letters that wait to be appended to the log.",
);
pub(super) const LAG: Metric = gauge(
    "kafkaq_lag_records",
    Unit::Count,
    "Unfinished records of the task topic, in the partitions that this process reads.",
);
pub(super) const PARKED: Metric = gauge(
    "kafkaq_parked_records",
    Unit::Count,
    "Unfinished records of the wait topic, in the partitions that this process reads: delayed tasks, tasks \
     to be retried, and copies of long-running tasks.",
);
pub(super) const OLDEST: Metric = gauge(
    "kafkaq_oldest_unfinished_seconds",
    Unit::Seconds,
    "Age of the oldest unfinished record that was read from the task topic.",
);

#[cfg(feature = "worker")]
pub(super) const EXECUTIONS: Metric = counter(
    "kafkaq_executions_total",
    "Executions that ended in the worker: `done`, `retried`, `snoozed`, `dead_lettered`, `expired`, \
     `released`, \
     `lost`, `unconfirmed`.",
);
#[cfg(feature = "worker")]
pub(super) const EXPIRED: Metric = counter(
    "kafkaq_expired_total",
    "Tasks that were not started because they had expired: `dropped` or `dead_lettered`.",
);
#[cfg(feature = "worker")]
pub(super) const PANICS: Metric = counter("kafkaq_panics_total", "Executions that panicked.");
#[cfg(feature = "worker")]
pub(super) const TIMEOUTS: Metric =
    counter("kafkaq_timeouts_total", "Executions that took longer than their timeout.");
#[cfg(feature = "worker")]
pub(super) const EXECUTIONS_RUNNING: Metric =
    gauge("kafkaq_executions_running", Unit::Count, "Handlers that are running.");
#[cfg(feature = "worker")]
pub(super) const EXECUTIONS_SLOW: Metric = gauge(
    "kafkaq_executions_slow",
    Unit::Count,
    "Handlers that have been running for longer than `warn_after`.",
);
#[cfg(feature = "worker")]
pub(super) const EXECUTION_SECONDS: Metric =
    seconds("kafkaq_execution_seconds", "How long handlers ran, including layers.");
#[cfg(feature = "worker")]
pub(super) const WAITING_SECONDS: Metric = seconds(
    "kafkaq_waiting_seconds",
    "Time from publishing a task to the start of its first execution, including its delay.",
);

const ALL: &[Metric] = &[
    PUBLISHED,
    PUBLISH_ERRORS,
    HANDED_OUT,
    REDELIVERED,
    JOBS_ENDED,
    LEASES_LOST,
    DEAD_LETTERS,
    CALL_SECONDS,
    CALL_ITEMS,
    CALL_ERRORS,
    JOBS_IN_FLIGHT,
    JOBS_READY,
    CALLERS_WAITING,
    REDELIVERIES_READY,
    APPENDS_WAITING,
    LAG,
    PARKED,
    OLDEST,
    #[cfg(feature = "worker")]
    EXECUTIONS,
    #[cfg(feature = "worker")]
    EXPIRED,
    #[cfg(feature = "worker")]
    PANICS,
    #[cfg(feature = "worker")]
    TIMEOUTS,
    #[cfg(feature = "worker")]
    EXECUTIONS_RUNNING,
    #[cfg(feature = "worker")]
    EXECUTIONS_SLOW,
    #[cfg(feature = "worker")]
    EXECUTION_SECONDS,
    #[cfg(feature = "worker")]
    WAITING_SECONDS,
];

/// Describes all metrics to the recorder.
pub(super) fn describe() {
    metrics::with_recorder(|recorder| {
        for Metric { name, of, unit, meaning } in ALL {
            let (name, unit, meaning) = (KeyName::from_const_str(name), Some(*unit), (*meaning).into());
            match of {
                Type::Counter => recorder.describe_counter(name, unit, meaning),
                Type::Gauge => recorder.describe_gauge(name, unit, meaning),
                Type::Histogram => recorder.describe_histogram(name, unit, meaning),
            }
        }
    });
}

/// Labels besides the queue's name.
pub(super) type Labels<'a> = &'a [(&'static str, &'a str)];

const METADATA: Metadata<'static> = Metadata::new("kafkaq", Level::INFO, None);

impl Metric {
    fn key(&self, queue: &str, labels: Labels<'_>) -> Key {
        let all = [("queue", queue)].into_iter().chain(labels.iter().copied());
        let labels: Vec<_> = all.map(|(name, value)| Label::new(name, value.to_owned())).collect();
        Key::from_parts(self.name, labels)
    }

    pub(super) fn counter(&self, queue: &str, labels: Labels<'_>) -> Counter {
        metrics::with_recorder(|recorder| recorder.register_counter(&self.key(queue, labels), &METADATA))
    }

    pub(super) fn gauge(&self, queue: &str, labels: Labels<'_>) -> Gauge {
        metrics::with_recorder(|recorder| recorder.register_gauge(&self.key(queue, labels), &METADATA))
    }

    pub(super) fn histogram(&self, queue: &str, labels: Labels<'_>) -> Histogram {
        metrics::with_recorder(|recorder| recorder.register_histogram(&self.key(queue, labels), &METADATA))
    }
}
