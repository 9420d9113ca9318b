//! Statistics of a queue.

use crate::{clock::wall_now, telemetry::CallMeter};
use kafkaq_core::{Wall, machine};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Statistics of this process's share of a queue, returned by [`Queue::stats`](crate::Queue::stats).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct QueueStats {
    /// The partitions that this process reads, of the task topic and of the wait topic.
    pub partitions: Vec<PartitionStats>,
    /// Jobs that callers of `get_job` and `get_jobs` are waiting for.
    pub waiting: usize,
    /// Jobs that are leased but not handed out yet.
    pub ready: usize,
    /// Jobs that were handed out and have not ended.
    pub held: usize,
    /// Tasks that were handed out before and are leased again once a job is requested.
    pub redeliveries: usize,
    /// Copies and dead letters that wait to be appended to the log.
    pub appending: usize,
    /// Reads of leases from the store.
    pub store_reads: CallStats,
    /// Writes of leases to the store.
    pub store_swaps: CallStats,
    /// Key locks that were taken, renewed and released.
    pub lock_swaps: CallStats,
    /// Records that this process published.
    pub publishes: CallStats,
    /// Copies of waiting and running tasks, and dead letters, that were appended to the log.
    pub copies: CallStats,
    /// Committed offsets.
    pub commits: CallStats,
}

/// A partition that this process reads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PartitionStats {
    /// Its topic: the task topic, or the wait topic, where most records are waiting for their time.
    pub topic: Arc<str>,
    /// Its number.
    pub partition: i32,
    /// The offset of the oldest record that is not finished, or of the next one to read. `None` until some were read.
    pub position: Option<i64>,
    /// How many records are not finished, including those that are not read yet. `None` until some were read, or if the
    /// log doesn't report where it ends; that is reported with the records, so the figure is as old as the last of
    /// them.
    pub lag: Option<u64>,
    /// The age of the oldest unfinished record that was read.
    pub oldest: Option<Duration>,
    /// Records that were read and whose turn has not come.
    pub queued: usize,
    /// Records that are being considered, or whose jobs are ready or running.
    pub in_flight: usize,
    /// Whether reading is paused: too much is unfinished, or what follows in the wait topic is not due soon. The lag is
    /// then as old as the last record that was read.
    pub paused: bool,
}

impl PartitionStats {
    fn of(stats: machine::PartitionStats, now: Wall) -> Self {
        let lag = |end: i64, finished: i64| u64::try_from(end.saturating_sub(finished)).unwrap_or(0);
        PartitionStats {
            position: stats.finished_below,
            lag: stats.end.zip(stats.finished_below).map(|(end, finished)| lag(end, finished)),
            oldest: stats.oldest_unfinished.map(|appended| now.since(appended)),
            queued: stats.queued,
            in_flight: stats.in_flight,
            paused: stats.paused,
            topic: stats.partition.topic,
            partition: stats.partition.index,
        }
    }
}

impl QueueStats {
    /// `waiting` and `ready` as the hand-out counts them.
    pub(crate) fn new(
        machine: machine::MachineStats,
        counters: &DriverCounters,
        publishes: CallStats,
        (waiting, ready): (usize, usize),
    ) -> Self {
        let now = wall_now();
        QueueStats {
            partitions: machine.partitions.into_iter().map(|p| PartitionStats::of(p, now)).collect(),
            waiting,
            ready,
            held: counters.jobs.load(Ordering::Relaxed).saturating_sub(ready),
            redeliveries: machine.waiting_for_caller,
            appending: machine.appending,
            store_reads: counters.store_reads.stats(),
            store_swaps: counters.store_swaps.stats(),
            lock_swaps: counters.lock_swaps.stats(),
            publishes,
            copies: counters.copies.stats(),
            commits: counters.commits.stats(),
        }
    }
}

/// Calls of one kind to a backend since the queue was built: a call is a round trip, or a few for a large batch.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CallStats {
    /// Calls that have not returned yet.
    pub under_way: usize,
    /// Calls that have returned.
    pub calls: u64,
    /// Their items: leases, records, partitions.
    pub items: u64,
    /// The items among them that failed. Most are retried.
    pub failed: u64,
    /// The total duration of these calls.
    pub time: Duration,
}

/// Counts calls of one kind.
#[derive(Debug)]
pub(crate) struct CallCounter {
    under_way: AtomicUsize,
    calls: AtomicU64,
    items: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
    meter: CallMeter,
}

impl CallCounter {
    /// Counts calls with this value of the metrics label `call`.
    pub(crate) fn new(queue: &str, call: &'static str) -> Self {
        CallCounter {
            under_way: AtomicUsize::default(),
            calls: AtomicU64::default(),
            items: AtomicU64::default(),
            failed: AtomicU64::default(),
            nanos: AtomicU64::default(),
            meter: CallMeter::new(queue, call),
        }
    }

    /// Starts a call. Returns the time, for [`CallCounter::ended`].
    pub(crate) fn begun(&self) -> Instant {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    pub(crate) fn ended(&self, begun: Instant, items: usize, failed: usize) {
        let took = begun.elapsed();
        self.meter.ended(took, items, failed);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items as u64, Ordering::Relaxed);
        self.failed.fetch_add(failed as u64, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> CallStats {
        CallStats {
            under_way: self.under_way.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            items: self.items.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

/// What a driver counts.
#[derive(Debug)]
pub(crate) struct DriverCounters {
    /// Jobs that are ready or held.
    pub(crate) jobs: AtomicUsize,
    pub(crate) store_reads: Arc<CallCounter>,
    pub(crate) store_swaps: Arc<CallCounter>,
    pub(crate) lock_swaps: Arc<CallCounter>,
    pub(crate) copies: Arc<CallCounter>,
    pub(crate) commits: Arc<CallCounter>,
}

impl DriverCounters {
    pub(crate) fn new(queue: &str) -> Self {
        let calls = |call| Arc::new(CallCounter::new(queue, call));
        DriverCounters {
            jobs: AtomicUsize::default(),
            store_reads: calls("store_read"),
            store_swaps: calls("store_swap"),
            lock_swaps: calls("lock_swap"),
            copies: calls("copy"),
            commits: calls("commit"),
        }
    }
}
