//! Where single tasks without a key go: each to another partition, or several into one request.
//!
//! A request costs the server and the client far more than a record. So of those that carry single tasks without a key, only
//! a few are under way at a time. What comes meanwhile gathers in one line, and goes when one of them has ended, or when it
//! is enough for a request that costs little per record. The next line is then another one.

use std::{
    sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst},
    time::{Duration, Instant},
};

/// So many requests are under way before tasks gather: a task rarely waits where few are published.
const SIDE_BY_SIDE: usize = 2;
/// So many records gather at most.
pub(super) const ENOUGH: usize = 64;
/// A request that takes longer holds up nothing that gathers: its partition may be without a leader.
const PATIENCE: Duration = Duration::from_millis(5);

/// A record that is held back is sent by whoever ends a request, so that one must see it: a record is put into its line
/// before the partition is compared, and that before the count; the count is lowered before the line is looked up.
#[derive(Debug)]
pub(super) struct Gathering {
    /// Requests with single tasks that were begun and are not too old.
    under_way: AtomicUsize,
    partition: AtomicI32,
    pub(super) patience: Duration,
}

impl Gathering {
    /// Somewhere: processes that begin together are not to begin with the same partition.
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

    /// Where to gather now, unless that is in the other partition already.
    pub(super) fn move_on(&self, from: i32, to: i32) {
        let _ = self.partition.compare_exchange(from, to, SeqCst, SeqCst);
    }

    /// Whether there is something to wait for.
    pub(super) fn is_crowded(&self) -> bool {
        self.under_way.load(SeqCst) >= SIDE_BY_SIDE
    }

    /// Whether a record that is in this line may stay there until a request has ended. Not if its time is up soon.
    pub(super) fn holds_back(&self, index: i32, until: Instant) -> bool {
        self.partition() == index && self.is_crowded() && until > Instant::now() + 2 * self.patience
    }

    pub(super) fn enter(&self) {
        self.under_way.fetch_add(1, SeqCst);
    }

    /// Whether what has gathered may go now.
    pub(super) fn leave(&self) -> bool {
        self.under_way.fetch_sub(1, SeqCst) == SIDE_BY_SIDE
    }
}
