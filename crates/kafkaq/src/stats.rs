//! What a queue is doing, in figures.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// What this process's part of a queue is doing: by [`Queue::stats`](crate::Queue::stats).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct QueueStats {
    /// Jobs that callers of `get_job` and `get_jobs` wait for.
    pub waiting: usize,
    /// Jobs that are leased and that nobody has taken yet.
    pub ready: usize,
    /// Jobs that were taken and have not ended.
    pub held: usize,
    /// Leases that were read from the store.
    pub store_reads: CallStats,
    /// Leases that were written to the store.
    pub store_swaps: CallStats,
    /// Records that this process has published.
    pub publishes: CallStats,
    /// Copies of tasks that wait or run, and dead letters, that were appended to the log.
    pub copies: CallStats,
    /// Offsets that were committed.
    pub commits: CallStats,
}

/// Calls of one kind to a backend since the queue was built: a call is a round trip, or a few for a large batch.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CallStats {
    /// Calls that have not returned yet.
    pub under_way: usize,
    /// Calls that have returned.
    pub calls: u64,
    /// What these were about: leases, records, partitions.
    pub items: u64,
    /// The items among them that have failed. Most are tried again.
    pub failed: u64,
    /// How long these calls took, all together.
    pub time: Duration,
}

/// Counts calls of one kind.
#[derive(Debug, Default)]
pub(crate) struct CallCounter {
    under_way: AtomicUsize,
    calls: AtomicU64,
    items: AtomicU64,
    failed: AtomicU64,
    nanos: AtomicU64,
}

impl CallCounter {
    /// A call begins. Returns when, for [`CallCounter::ended`].
    pub(crate) fn begun(&self) -> Instant {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    pub(crate) fn ended(&self, begun: Instant, items: usize, failed: usize) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.items.fetch_add(items as u64, Ordering::Relaxed);
        self.failed.fetch_add(failed as u64, Ordering::Relaxed);
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
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
#[derive(Debug, Default)]
pub(crate) struct DriverCounters {
    /// Jobs that are ready or held.
    pub(crate) jobs: AtomicUsize,
    pub(crate) store_reads: Arc<CallCounter>,
    pub(crate) store_swaps: Arc<CallCounter>,
    pub(crate) copies: Arc<CallCounter>,
    pub(crate) commits: Arc<CallCounter>,
}
