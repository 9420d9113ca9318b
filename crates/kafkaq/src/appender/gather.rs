//! Decides where single tasks without a key go: each to another partition, or several into one request.
//!
//! A request costs the server and the client far more than a record. So only a few requests with single tasks without a
//! key are in flight at a time. Tasks that arrive meanwhile gather in one queue, which is sent when one of the requests
//! has ended, or when it is large enough for the request to cost little per record. Then tasks gather in another queue.

use std::{
    sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

/// How many requests are in flight before tasks gather: at low rates, a task rarely waits.
const MAX_CONCURRENT: usize = 2;
/// How many records gather at most.
pub(super) const MAX_GATHERED: usize = 64;
/// A request that takes longer doesn't hold back gathered tasks: its partition may be without a leader.
const PATIENCE: Duration = Duration::from_millis(5);

/// A record that is held back is sent by whoever ends a request, so that side must see it. Hence the order: a record is
/// first put into its queue, then the partition is compared, then the count; and the count is decremented before the
/// queue is looked up.
#[derive(Debug)]
pub(super) struct Gathering {
    /// Requests with single tasks that were started and are not too old.
    under_way: AtomicUsize,
    partition: AtomicI32,
    pub(super) patience: Duration,
}

impl Gathering {
    /// Random: processes that start together should not start with the same partition.
    pub(super) fn begin(partitions: i32) -> Self {
        Gathering {
            under_way: AtomicUsize::default(),
            partition: AtomicI32::new(fastrand::i32(0..partitions.max(1))),
            patience: PATIENCE,
        }
    }

    pub(super) fn partition(&self) -> i32 {
        self.partition.load(SeqCst)
    }

    /// Moves gathering from one partition to another, unless it has already moved.
    pub(super) fn move_on(&self, from: i32, to: i32) {
        let _ = self.partition.compare_exchange(from, to, SeqCst, SeqCst);
    }

    /// Whether enough requests are in flight to wait for.
    pub(super) fn is_crowded(&self) -> bool {
        self.under_way.load(SeqCst) >= MAX_CONCURRENT
    }

    /// Whether a record in this queue may wait there until a request has ended. Not if its time is up soon.
    pub(super) fn holds_back(&self, index: i32, until: Instant) -> bool {
        self.partition() == index && self.is_crowded() && until > Instant::now() + 2 * self.patience
    }

    pub(super) fn enter(&self) {
        self.under_way.fetch_add(1, SeqCst);
    }

    /// Whether the gathered records may be sent now.
    pub(super) fn leave(&self) -> bool {
        self.under_way.fetch_sub(1, SeqCst) == MAX_CONCURRENT
    }
}
