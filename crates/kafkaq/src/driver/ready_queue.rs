//! Jobs that are ready, and the `get_job` calls that wait for them.
//!
//! A semaphore with one permit per ready job takes care of waiting, of waking callers in order, and of passing on the
//! wake-up of a dropped waiter. A permit is only a hint: a caller that has one but finds the queue empty, because jobs
//! were recalled in between, waits again.

use crate::sync::lock;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};
use tokio::sync::{Notify, Semaphore, TryAcquireError};

/// The most jobs that one caller can count as waiting for.
const MOST_WANTED: usize = 1000;

#[derive(Debug)]
pub(crate) struct ReadyQueue<T> {
    ready: Mutex<VecDeque<T>>,
    permits: Semaphore,
    /// How many jobs callers wait for.
    waiting: AtomicUsize,
    /// A caller that doesn't wait has found no job since the last offer.
    missed: AtomicBool,
    /// Rung when a caller begins to wait, gives up, or has found none, and when `low` or none are left.
    bell: Arc<Notify>,
    low: usize,
}

impl<T> ReadyQueue<T> {
    pub(crate) fn new(low: usize, bell: Arc<Notify>) -> Self {
        ReadyQueue {
            ready: Mutex::default(),
            permits: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            missed: AtomicBool::new(false),
            bell,
            low,
        }
    }

    /// Waits for the next job; `None` once the queue is closed. The caller wants `wanted` jobs. Cancel-safe: a job
    /// leaves the queue in the poll that returns it.
    pub(crate) async fn take(&self, wanted: usize) -> Option<T> {
        loop {
            let permit = match self.permits.try_acquire() {
                Ok(permit) => permit,
                Err(TryAcquireError::Closed) => return None,
                Err(TryAcquireError::NoPermits) => {
                    let waiting = self.begin_to_wait(wanted.clamp(1, MOST_WANTED));
                    let permit = self.permits.acquire().await;
                    waiting.end();
                    permit.ok()?
                }
            };
            permit.forget();
            if let Some(one) = self.pop() {
                return Some(one);
            }
        }
    }

    /// Returns a job if one is ready.
    ///
    /// # Errors
    /// Once the queue is closed.
    pub(crate) fn try_take(&self) -> Result<Option<T>, Closed> {
        loop {
            match self.permits.try_acquire() {
                Ok(permit) => permit.forget(),
                Err(TryAcquireError::Closed) => return Err(Closed),
                Err(TryAcquireError::NoPermits) => return Ok(None),
            }
            if let Some(one) = self.pop() {
                return Ok(Some(one));
            }
        }
    }

    /// Records that a caller found no job and doesn't wait: it counts as waiting until the next offer.
    pub(crate) fn miss(&self) {
        if !self.missed.swap(true, Ordering::Relaxed) {
            self.bell.notify_one();
        }
    }

    fn pop(&self) -> Option<T> {
        let (one, left) = {
            let mut ready = lock(&self.ready);
            (ready.pop_front(), ready.len())
        };
        if one.is_some() && (left == self.low || left == 0) {
            self.bell.notify_one();
        }
        one
    }

    fn begin_to_wait(&self, wanted: usize) -> Waiting<'_> {
        self.waiting.fetch_add(wanted, Ordering::Relaxed);
        self.bell.notify_one();
        Waiting { count: &self.waiting, wanted, bell: Some(&self.bell) }
    }

    /// Adds all of `batch`. The caller that has waited longest gets the first.
    pub(crate) fn offer(&self, batch: impl Iterator<Item = T>) {
        let added = {
            let mut ready = lock(&self.ready);
            let before = ready.len();
            ready.extend(batch);
            ready.len() - before
        };
        if added > 0 {
            self.missed.store(false, Ordering::Relaxed);
            self.permits.add_permits(added);
        }
    }

    /// Takes back those of the waiting jobs that `take` selects.
    pub(crate) fn recall(&self, take: impl FnOnce(&mut VecDeque<T>) -> VecDeque<T>) -> VecDeque<T> {
        let back = take(&mut *lock(&self.ready));
        // Permits that are already on their way to a waiter stay, and find nothing.
        self.permits.forget_permits(back.len());
        back
    }

    /// How many jobs callers wait for, and how many are ready.
    pub(crate) fn demand(&self) -> (usize, usize) {
        let missed = usize::from(self.missed.load(Ordering::Relaxed));
        (self.waiting.load(Ordering::Relaxed) + missed, lock(&self.ready).len())
    }

    /// Closes the queue: callers get no more jobs and stop waiting. Ready jobs can still be recalled.
    pub(crate) fn close(&self) {
        self.permits.close();
    }
}

/// The queue is closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Counts what a caller wants for as long as it waits.
struct Waiting<'a> {
    count: &'a AtomicUsize,
    wanted: usize,
    bell: Option<&'a Notify>,
}

impl Waiting<'_> {
    fn end(mut self) {
        self.bell = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(self.wanted, Ordering::Relaxed);
        // The caller has given up: nothing is to be kept for it.
        if let Some(bell) = self.bell {
            bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::{Either, select};
    use std::{mem, pin::pin, sync::atomic::AtomicU64, time::Duration};

    fn queue() -> Arc<ReadyQueue<u64>> {
        Arc::new(ReadyQueue::new(2, Arc::new(Notify::new())))
    }

    /// A small pseudorandom generator, so that a failing run can be repeated.
    struct Dice(u64);
    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }
    }

    #[tokio::test]
    async fn callers_are_served_in_order() {
        let q = queue();
        let (mut a, mut b) = (Box::pin(q.take(1)), Box::pin(q.take(1)));
        assert!(futures_util::poll!(&mut a).is_pending());
        assert!(futures_util::poll!(&mut b).is_pending());
        assert_eq!(q.demand(), (2, 0));
        q.offer([1, 2].into_iter());
        assert_eq!((a.await, b.await), (Some(1), Some(2)));
        assert_eq!(q.demand(), (0, 0));
    }

    #[tokio::test]
    async fn a_dropped_waiter_passes_its_wake_on() {
        let q = queue();
        let (mut a, mut b) = (Box::pin(q.take(1)), Box::pin(q.take(1)));
        assert!(futures_util::poll!(&mut a).is_pending());
        assert!(futures_util::poll!(&mut b).is_pending());
        q.offer([7].into_iter());
        drop(a);
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), b).await, Ok(Some(7)));
    }

    #[tokio::test]
    async fn recalled_job_is_not_handed_out_and_its_waiter_keeps_waiting() {
        let q = queue();
        let mut a = Box::pin(q.take(1));
        assert!(futures_util::poll!(&mut a).is_pending());
        q.offer([1, 2, 3].into_iter());
        assert_eq!(q.recall(mem::take), [1, 2, 3]);
        assert!(futures_util::poll!(&mut a).is_pending());
        q.offer([4].into_iter());
        assert_eq!(a.await, Some(4));
    }

    #[tokio::test]
    async fn job_that_is_not_recalled_is_handed_out() {
        let q = queue();
        q.offer(1..=3);
        assert_eq!(q.recall(|ready| ready.drain(1..).collect()), [2, 3]);
        assert_eq!(q.demand(), (0, 1));
        assert_eq!((q.try_take(), q.try_take()), (Ok(Some(1)), Ok(None)));
    }

    #[tokio::test]
    async fn closed_queue_hands_out_nothing_but_can_be_recalled() {
        let q = queue();
        let mut a = Box::pin(q.take(1));
        assert!(futures_util::poll!(&mut a).is_pending());
        q.offer([1, 2].into_iter());
        q.close();
        assert_eq!((a.await, q.take(1).await), (None, None));
        assert_eq!(q.recall(mem::take), [1, 2]);
    }

    #[tokio::test]
    async fn the_bell_rings_for_a_new_waiter_and_when_few_are_left() {
        let bell = Arc::new(Notify::new());
        let q = ReadyQueue::new(2, bell.clone());
        let rung = async || tokio::time::timeout(Duration::ZERO, bell.notified()).await.is_ok();
        q.offer(1..=4);
        q.take(1).await;
        assert!(!rung().await);
        q.take(1).await;
        assert!(rung().await, "two are left");
        q.take(1).await;
        assert!(!rung().await);
        q.take(1).await;
        assert!(rung().await, "none are left");
        let mut waiter = Box::pin(q.take(1));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        assert!(rung().await, "a caller waits");
        drop(waiter);
        assert!(rung().await, "and gives up");
        let mut waiter = Box::pin(q.take(1));
        assert!(futures_util::poll!(&mut waiter).is_pending());
        assert!(rung().await);
        q.offer([5, 6, 7, 8].into_iter());
        assert_eq!(waiter.await, Some(5));
        assert!(!rung().await, "it got a job");
    }

    #[tokio::test]
    async fn caller_that_finds_none_counts_as_waiting_until_the_next_offer() {
        let q = queue();
        assert_eq!(q.try_take(), Ok(None));
        assert_eq!(q.demand(), (0, 0), "not by itself");
        q.miss();
        q.miss();
        assert_eq!(q.demand(), (1, 0));
        q.offer([1, 2].into_iter());
        assert_eq!(q.demand(), (0, 2));
        assert_eq!((q.try_take(), q.try_take(), q.try_take()), (Ok(Some(1)), Ok(Some(2)), Ok(None)));
        q.close();
        assert_eq!(q.try_take(), Err(Closed));
    }

    #[tokio::test]
    async fn caller_that_wants_many_counts_as_many_while_it_waits() {
        let q = queue();
        let mut a = Box::pin(q.take(7));
        assert!(futures_util::poll!(&mut a).is_pending());
        assert_eq!(q.demand(), (7, 0));
        let mut b = Box::pin(q.take(usize::MAX));
        assert!(futures_util::poll!(&mut b).is_pending());
        assert_eq!(q.demand(), (7 + MOST_WANTED, 0));
        drop((a, b));
        assert_eq!(q.demand(), (0, 0));
    }

    #[tokio::test]
    async fn caller_that_does_not_wait_takes_nothing_from_those_that_do() {
        let q = queue();
        let mut a = Box::pin(q.take(1));
        assert!(futures_util::poll!(&mut a).is_pending());
        q.offer([1].into_iter());
        assert_eq!(q.try_take(), Ok(None));
        assert_eq!(a.await, Some(1));
    }

    /// Ten thousand waiters give up at random moments while others take and a third party recalls and offers again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_lost_when_ten_thousand_waiters_give_up() {
        const ITEMS: u64 = 20_000;
        let (q, sum, seen) = (queue(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for n in 1..=10_000_u64 {
            let (q, sum, seen) = (q.clone(), sum.clone(), seen.clone());
            tasks.push(tokio::spawn(async move {
                let mut dice = Dice(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let patience = dice.roll(8);
                let give_up = pin!(async {
                    for _ in 0..patience {
                        tokio::task::yield_now().await;
                    }
                });
                if let Either::Left((Some(got), _)) = select(pin!(q.take(1)), give_up).await {
                    sum.fetch_add(got, Ordering::Relaxed);
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        let feeder = tokio::spawn({
            let q = q.clone();
            async move {
                let (mut next, mut dice) = (1, Dice(42));
                while next <= ITEMS {
                    let n = (next + dice.roll(50)).min(ITEMS);
                    q.offer(next..=n);
                    next = n + 1;
                    if dice.roll(4) == 0 {
                        let again = q.recall(mem::take);
                        q.offer(again.into_iter());
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        for t in tasks {
            t.await.unwrap();
        }
        feeder.await.unwrap();
        // Whoever asks now gets all that is left: no wake-up was lost, and nothing twice.
        while seen.load(Ordering::Relaxed) < ITEMS {
            let got = tokio::time::timeout(Duration::from_secs(10), q.take(1)).await.unwrap().unwrap();
            sum.fetch_add(got, Ordering::Relaxed);
            seen.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(sum.load(Ordering::Relaxed), ITEMS * (ITEMS + 1) / 2);
        assert_eq!(q.demand(), (0, 0));
    }
}
