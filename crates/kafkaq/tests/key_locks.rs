//! Key locks across several processes, in virtual time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{PATIENCE, forward, quick, soon};
use kafkaq::{
    Error, ErrorKind, KeyGuard, KeyLocks, Queue, Result,
    backend::{Swap, Swapped},
    memory::{MemoryLog, MemoryStore},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(30);

/// A store that counts swaps and fails on demand.
#[derive(Clone, Debug, Default)]
struct Store {
    inner: MemoryStore,
    swaps: Arc<AtomicUsize>,
    away: Arc<AtomicBool>,
    refuses: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    /// How long a request takes to arrive, and its response to return.
    way: Duration,
}

forward!(impl LeaseStore for Store by inner {
    async fn swap(&self, swaps: &[Swap]) -> Vec<Result<Swapped>> {
        self.swaps.fetch_add(swaps.len(), SeqCst);
        sleep(self.way).await;
        assert!(!self.panics.load(SeqCst), "on purpose");
        if self.away.load(SeqCst) {
            return vec![Err(Error::unknown(ErrorKind::Timeout, "swap")); swaps.len()];
        }
        if self.refuses.load(SeqCst) {
            return vec![Err(Error::not_applied(ErrorKind::Denied, "swap")); swaps.len()];
        }
        let outcomes = self.inner.swap(swaps).await;
        sleep(self.way).await;
        outcomes
    }
});

/// Another process's locks.
async fn locks(store: &Store) -> KeyLocks {
    let queue = Queue::builder("q").broker(MemoryLog::new()).store(store.clone()).lease_duration(LEASE);
    queue.build().await.unwrap().key_locks()
}

async fn acquire(locks: &KeyLocks, key: &str) -> KeyGuard {
    timeout(100 * LEASE, soon(locks.acquire(key))).await.unwrap().unwrap()
}

async fn is_taken(locks: &KeyLocks, key: &str, time: Duration) -> bool {
    timeout(time, locks.acquire(key)).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn key_has_one_holder_over_all_processes_and_is_free_when_it_is_dropped() {
    let store = Store::default();
    let (one, other) = (locks(&store).await, locks(&store).await);
    let guard = acquire(&one, "a").await;
    assert!(is_taken(&one, "a", 10 * LEASE).await, "in the same process");
    assert!(is_taken(&other, "a", 10 * LEASE).await, "in another, over many renewals");
    drop(acquire(&other, "b").await);
    assert!(!guard.is_lost());
    drop(guard);
    let began = Instant::now();
    let guard = acquire(&other, "a").await;
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    drop(guard);
    // A moment for it to be given back.
    sleep(SECOND).await;
    assert!(store.inner.is_empty(), "nothing is left in the store");
}

#[tokio::test(start_paused = true)]
async fn thousand_holders_of_four_processes_never_meet() {
    let store = Store::default();
    let (inside, entered) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut holders = JoinSet::new();
    for _ in 0..4 {
        let locks = locks(&store).await;
        for n in 0..250_u64 {
            let (locks, inside, entered) = (locks.clone(), inside.clone(), entered.clone());
            holders.spawn(async move {
                sleep(Duration::from_millis(n * 40)).await;
                let guard = acquire(&locks, "k").await;
                assert_eq!(inside.fetch_add(1, SeqCst), 0, "two at once");
                sleep(Duration::from_millis(20 + n % 7)).await;
                assert!(!guard.is_lost());
                inside.fetch_sub(1, SeqCst);
                entered.fetch_add(1, SeqCst);
            });
        }
    }
    while let Some(held) = holders.join_next().await {
        held.unwrap();
    }
    assert_eq!(entered.load(SeqCst), 1000);
}

#[tokio::test(start_paused = true)]
async fn callers_of_one_process_are_served_in_order_with_two_store_calls() {
    let store = Store::default();
    let locks = locks(&store).await;
    let before = store.swaps.load(SeqCst);
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let mut waiting = JoinSet::new();
    for n in 0..20 {
        let (locks, order) = (locks.clone(), order.clone());
        waiting.spawn(async move {
            sleep(Duration::from_millis(n)).await;
            let guard = acquire(&locks, "k").await;
            order.lock().unwrap().push(n);
            sleep(Duration::from_millis(100)).await;
            drop(guard);
        });
    }
    while let Some(served) = waiting.join_next().await {
        served.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..20).collect::<Vec<_>>());
    sleep(SECOND).await;
    assert_eq!(store.swaps.load(SeqCst) - before, 2, "one to take it, one to give it back");
}

#[tokio::test(start_paused = true)]
async fn process_with_an_endless_queue_yields_the_key_to_others() {
    let store = Store::default();
    let (busy, other) = (locks(&store).await, locks(&store).await);
    for _ in 0..3 {
        let locks = busy.clone();
        tokio::spawn(async move {
            loop {
                let _guard = acquire(&locks, "k").await;
                sleep(SECOND).await;
            }
        });
    }
    sleep(SECOND).await;
    for _ in 0..5 {
        let began = Instant::now();
        let _guard = acquire(&other, "k").await;
        assert!(began.elapsed() < LEASE + 5 * SECOND, "{:?}", began.elapsed());
    }
}

/// As in a worker that executes one task at a time: the next one arrives while the key is released, or just after that.
#[tokio::test(start_paused = true)]
async fn uncontended_key_is_reacquired_without_delay() {
    for gap in [0, 1, 5, 50].map(Duration::from_millis) {
        let way = Duration::from_millis(2);
        let locks = locks(&Store { way, ..Store::default() }).await;
        for _ in 0..50 {
            let began = Instant::now();
            drop(acquire(&locks, "k").await);
            // To give it back, and to take it.
            assert!(began.elapsed() < 5 * 2 * way, "{:?} after {gap:?}", began.elapsed());
            sleep(gap).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn process_that_keeps_reacquiring_yields_the_key_to_others() {
    for gap in [0, 1, 5, 50].map(Duration::from_millis) {
        let store = Store { way: Duration::from_millis(2), ..Store::default() };
        let (busy, other) = (locks(&store).await, locks(&store).await);
        let busy = tokio::spawn(async move {
            loop {
                let guard = acquire(&busy, "k").await;
                sleep(5 * SECOND).await;
                drop(guard);
                sleep(gap).await;
            }
        });
        sleep(SECOND).await;
        for _ in 0..10 {
            let began = Instant::now();
            let _guard = acquire(&other, "k").await;
            assert!(began.elapsed() < LEASE + 10 * SECOND, "{:?} beside {gap:?}", began.elapsed());
        }
        busy.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn holder_that_can_not_renew_is_told_before_another_has_the_key() {
    let store = Store::default();
    let (one, other) = (locks(&store).await, locks(&store).await);
    let began = Instant::now();
    let guard = acquire(&one, "k").await;
    store.away.store(true, SeqCst);
    soon(guard.lost()).await;
    assert!(began.elapsed() <= LEASE + SECOND, "{:?}", began.elapsed());
    assert!(began.elapsed() > LEASE - SECOND, "it is held for the whole lease: {:?}", began.elapsed());
    assert!(guard.is_lost());
    store.away.store(false, SeqCst);
    assert!(
        is_taken(&one, "k", 2 * LEASE).await,
        "in its own process nobody has it before the guard is dropped"
    );
    let taken = acquire(&other, "k").await;
    drop((guard, taken));
    drop(acquire(&one, "k").await);
}

/// In real time: the queue's runtime is blocked, so nobody renews the lock or reports its loss.
#[test]
fn holder_learns_of_the_loss_from_the_clock_alone() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (queues, handlers) = (runtime(), runtime());
    let guard = queues.block_on(async {
        let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await.unwrap();
        queue.key_locks().acquire("k").await.unwrap()
    });
    assert!(!guard.is_lost());
    handlers.block_on(soon(guard.lost()));
    assert!(guard.is_lost());
    let guard = queues.block_on(async {
        let queue = quick(&MemoryLog::new(), &MemoryStore::new()).build().await.unwrap();
        queue.key_locks().acquire("k").await.unwrap()
    });
    let began = std::time::Instant::now();
    while !guard.is_lost() {
        assert!(began.elapsed() < PATIENCE, "it is never lost");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A write of an earlier holder must not pass for the next one's, also of the same process.
#[tokio::test(start_paused = true)]
async fn each_guard_has_its_own_token() {
    let store = Store::default();
    let (one, other) = (locks(&store).await, locks(&store).await);
    let mut tokens = std::collections::HashSet::new();
    for locks in [&one, &one, &other, &one] {
        let mut next = Box::pin(locks.acquire("k"));
        let guard = soon(&mut next).await.unwrap();
        // One who waits is handed the same lock of the store.
        let mut waiting = Box::pin(locks.acquire("k"));
        assert!(timeout(SECOND, &mut waiting).await.is_err());
        assert!(tokens.insert(guard.token()));
        drop(guard);
        assert!(tokens.insert(soon(waiting).await.unwrap().token()));
    }
}

#[tokio::test(start_paused = true)]
async fn key_of_a_process_that_died_is_free_after_its_lease() {
    let store = Store::default();
    let dying = tokio::task::spawn_blocking({
        let store = store.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (locks, guard) = runtime.block_on(async {
                let locks = locks(&store).await;
                let guard = locks.acquire("k").await.unwrap();
                (locks, guard)
            });
            drop(runtime);
            // Its tasks are gone, so nobody renews the lock, and nobody has given it back.
            assert!(guard.is_lost());
            locks
        }
    });
    let gone = dying.await.unwrap();
    for key in ["k", "another"] {
        assert_eq!(soon(gone.acquire(key)).await.unwrap_err().kind(), ErrorKind::Closed);
    }
    let other = locks(&store).await;
    let began = Instant::now();
    let _guard = acquire(&other, "k").await;
    let waited = began.elapsed();
    assert!((LEASE - 2 * SECOND..LEASE + 4 * SECOND).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn holder_keeps_the_key_over_a_store_that_is_wiped_unless_another_was_first() {
    let store = Store::default();
    let (one, other) = (locks(&store).await, locks(&store).await);
    let guard = acquire(&one, "k").await;
    store.inner.clear();
    sleep(LEASE).await;
    assert!(is_taken(&other, "k", LEASE).await, "it has been written again");
    assert!(!guard.is_lost());
    // Between two renewals.
    sleep(LEASE / 6).await;
    store.inner.clear();
    let _first = acquire(&other, "k").await;
    let began = Instant::now();
    soon(guard.lost()).await;
    assert!(began.elapsed() <= LEASE, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn dropped_caller_leaves_the_queue_and_releases_what_it_got() {
    let store = Store::default();
    let locks = locks(&store).await;
    let guard = acquire(&locks, "k").await;
    for _ in 0..3 {
        assert!(is_taken(&locks, "k", SECOND).await);
    }
    drop(guard);
    let guard = acquire(&locks, "k").await;
    // One that is dropped when it has just been served.
    let mut next = Box::pin(locks.acquire("k"));
    assert!(timeout(SECOND, &mut next).await.is_err());
    drop(guard);
    sleep(SECOND).await;
    drop(next);
    drop(acquire(&locks, "k").await);
    sleep(SECOND).await;
    assert!(store.inner.is_empty());
}

#[tokio::test(start_paused = true)]
async fn refusing_or_panicking_store_is_an_error_and_does_not_end_the_queue() {
    let store = Store::default();
    let locks = locks(&store).await;
    store.refuses.store(true, SeqCst);
    let e = soon(locks.acquire("k")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    store.refuses.store(false, SeqCst);
    store.panics.store(true, SeqCst);
    let e = soon(locks.acquire("k")).await.unwrap_err();
    assert!(e.to_string().contains("on purpose"), "{e}");
    store.panics.store(false, SeqCst);
    drop(acquire(&locks, "k").await);
}

#[tokio::test(start_paused = true)]
async fn refusal_of_the_store_is_reported_to_all_waiters_at_once() {
    let store = Store { way: SECOND, ..Store::default() };
    let locks = locks(&store).await;
    store.refuses.store(true, SeqCst);
    let before = store.swaps.load(SeqCst);
    let mut waiting = JoinSet::new();
    for n in 0..50_u64 {
        let locks = locks.clone();
        waiting.spawn(async move {
            sleep(Duration::from_millis(n)).await;
            let began = Instant::now();
            (locks.acquire("k").await.unwrap_err().kind(), began.elapsed())
        });
    }
    while let Some(told) = waiting.join_next().await {
        let (kind, took) = told.unwrap();
        assert_eq!(kind, ErrorKind::Denied);
        assert!(took <= 2 * SECOND, "{took:?}");
    }
    assert_eq!(store.swaps.load(SeqCst) - before, 1);
}

#[tokio::test(start_paused = true)]
async fn release_returns_when_the_key_is_free_or_the_next_ones() {
    let store = Store { way: SECOND, ..Store::default() };
    let (one, other) = (locks(&store).await, locks(&store).await);
    let guard = acquire(&one, "k").await;
    let mut next = Box::pin(one.acquire("k"));
    assert!(timeout(SECOND, &mut next).await.is_err());
    soon(guard.release()).await;
    let guard = timeout(Duration::ZERO, next).await.expect("to be the next").unwrap();
    soon(guard.release()).await;
    assert!(store.inner.is_empty(), "free for another process");
    let guard = acquire(&other, "k").await;
    assert!(timeout(Duration::ZERO, guard.release()).await.is_err(), "the future is dropped");
    drop(acquire(&one, "k").await);
    // The store is away: nobody waits for longer than what was written lasts.
    let guard = acquire(&other, "k").await;
    store.away.store(true, SeqCst);
    timeout(LEASE + 5 * SECOND, guard.release()).await.expect("the lease is over");
}

#[tokio::test(start_paused = true)]
async fn any_bytes_are_a_key() {
    let locks = locks(&Store::default()).await;
    let (long, longer) = ("k".repeat(65), "k".repeat(66));
    let keys: [&[u8]; 6] = [b"", b"\xff/\0", b".", b"..", long.as_bytes(), longer.as_bytes()];
    let mut guards = Vec::new();
    for key in keys {
        guards.push(soon(locks.acquire(key)).await.unwrap());
        assert!(timeout(SECOND, locks.acquire(key)).await.is_err());
    }
}
