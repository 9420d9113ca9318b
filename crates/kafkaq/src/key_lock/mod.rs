//! Locks per key, across all processes of a queue.

mod key_queue;
mod turns;

use self::{
    key_queue::KeyQueue,
    turns::{Turn, Turns},
};
use crate::{
    clock::{Clock, wall_now},
    stats::CallCounter,
    sync::lock,
};
use kafkaq_core::{
    Error, ErrorKind, Key, Keyspace, LeaseStore, LeaseToken, Result, Wall, key_lock::KeyLockSettings,
};
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

/// How often a caller that waits for the loss of a lock checks the clocks.
const LOOK: Duration = Duration::from_secs(1);

/// Locks by key: each has one holder at a time, across all processes of a queue and group. Cheap to clone.
///
/// A lock is a lease in the queue's store, which is renewed in the background for as long as its [`KeyGuard`] lives.
/// [`worker::Options::one_at_a_time`](crate::worker::Options::one_at_a_time) uses the same locks, so holding one here
/// keeps the worker's tasks with that key from running.
///
/// ```
/// # async fn example(queue: kafkaq::Queue) -> kafkaq::Result<()> {
/// let guard = queue.key_locks().acquire("customer-17").await?;
/// tokio::select! {
///     () = rebuild_index() => {}
///     () = guard.lost() => println!("somebody else may have it by now"),
/// }
/// guard.release().await; // dropping it gives it back, too, in the background
/// # Ok(())
/// # }
/// # async fn rebuild_index() {}
/// ```
///
/// # What is guaranteed
/// Two guards of one key never hold it at the same time, and the key of a dead holder can be acquired after
/// [`lease_duration`](crate::QueueBuilder::lease_duration), twice [`clock_skew`](crate::QueueBuilder::clock_skew) and
/// the second or two until somebody tries again. This holds while the store keeps its data, and while the processes'
/// clocks differ by no more than `clock_skew`.
///
/// It does not hold
/// - when the store is wiped, or comes back with old data: for up to one lease, two may hold the key. After that, the
///   earlier holder has noticed, or its lease has expired;
/// - for what a holder does after its guard is [lost](KeyGuard::lost). A process that is suspended for longer than a
///   lease, for example in a paused virtual machine, learns of the loss only when it resumes, and may write something
///   before that.
///
/// # Writes of a holder that has lost the lock
/// Only the target system can refuse them. A [token](KeyGuard::token) has no order, so it can't be used to refuse
/// "lower" ones. Instead
/// 1. the holder starts by *claiming* the target: it writes its token there, over any other token, and checks whether
///    its guard [is lost](KeyGuard::is_lost);
/// 2. then it reads what it needs;
/// 3. each later write is conditional on its token still being there: `UPDATE .. WHERE id = .. AND holder = <its
///    token>`. If that changes nothing, another holder has claimed the target, and it stops.
///
/// So only the last one to claim the target can write. If that is an earlier holder that resumed, the later one fails
/// and has to start again, but their writes never mix. In a worker the token is that of the execution,
/// [`Ctx::token`](crate::worker::Ctx::token).
///
/// # What it costs
/// Two swaps in the store, one to acquire and one to release, and one more per third of a lease. Within a process,
/// callers that want the same key wait in a queue, first come, first served, and the lock is passed on without contacting
/// the store; a process that has had it for the duration of a lease, even with gaps in which nobody else got it, leaves
/// it to others for a second or two. Between processes there is no order: each tries again after a pause that grows
/// from 20 ms to 1 s.
#[derive(Clone)]
pub struct KeyLocks {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn LeaseStore>,
    keyspace: Keyspace,
    settings: KeyLockSettings,
    clock: Clock,
    /// The runtime that renews locks, whatever the holders' threads do.
    runtime: Handle,
    calls: Arc<CallCounter>,
    process: [u8; 16],
    count: AtomicU64,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// Keys that are held or wanted here. Each has a task that manages it.
    waiting: HashMap<Key, VecDeque<Waiter>>,
    turns: Turns,
}

type Waiter = oneshot::Sender<Result<KeyGuard>>;

impl KeyLocks {
    pub(crate) fn new(
        store: Arc<dyn LeaseStore>,
        keyspace: Keyspace,
        settings: KeyLockSettings,
        clock: Clock,
        runtime: Handle,
        calls: Arc<CallCounter>,
    ) -> Self {
        let process = Uuid::new_v4().into_bytes();
        let (count, queues) = (AtomicU64::default(), Mutex::default());
        KeyLocks {
            inner: Arc::new(Inner {
                store,
                keyspace,
                settings,
                clock,
                runtime,
                calls,
                process,
                count,
                queues,
            }),
        }
    }

    /// Waits for the lock of a key, without a time limit; wrap it in a `timeout` to set one. Any bytes are a key. A key
    /// that is empty or longer than 64 bytes is replaced by its hash.
    ///
    /// *Cancel-safety:* safe. A dropped future leaves the queue, and releases a lock that it has just acquired.
    ///
    /// # Errors
    /// The store's own, if it refuses the request permanently. `Closed` if the runtime that the queue was built on is
    /// gone.
    pub async fn acquire(&self, key: impl AsRef<[u8]>) -> Result<KeyGuard> {
        let key = Key::lock(&self.inner.keyspace, &name(key.as_ref()))?;
        let (tell, told) = oneshot::channel();
        let is_first = {
            let waiting = &mut lock(&self.inner.queues).waiting;
            let is_first = !waiting.contains_key(&key);
            let waiting = waiting.entry(key.clone()).or_default();
            // Those who have given up must not pile up behind a holder that stays.
            if waiting.len() == waiting.capacity() {
                waiting.retain(|waiter| !waiter.is_closed());
                waiting.reserve(waiting.len());
            }
            waiting.push_back(tell);
            is_first
        };
        if is_first {
            self.inner.runtime.spawn(KeyQueue::new(self.inner.clone(), key.clone()).tend());
        }
        told.await.unwrap_or_else(|_| Err(Error::not_applied(ErrorKind::Closed, "lock a key").on(key)))
    }
}

/// The part of a key's name in the store.
fn name(key: &[u8]) -> Cow<'_, [u8]> {
    if (1..=Key::MAX_LOCK).contains(&key.len()) {
        return Cow::Borrowed(key);
    }
    // Two keys that collide here only wait for each other.
    Cow::Owned(Uuid::new_v5(&Uuid::NAMESPACE_OID, key).simple().to_string().into_bytes())
}

impl Inner {
    fn token(&self) -> LeaseToken {
        LeaseToken { process: self.process, number: self.count.fetch_add(1, Ordering::Relaxed) }
    }

    /// The next caller that waits for the key.
    fn next(&self, key: &Key) -> Option<Waiter> {
        let mut queues = lock(&self.queues);
        let waiting = queues.waiting.get_mut(key)?;
        while let Some(waiter) = waiting.pop_front() {
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }

    /// Puts a caller back in first place.
    fn put_back(&self, key: &Key, waiter: Waiter) {
        lock(&self.queues).waiting.entry(key.clone()).or_default().push_front(waiter);
    }

    /// Reports the store's error to all who wait for the key.
    fn refuse(&self, key: &Key, e: &Error) {
        let waiting = lock(&self.queues).waiting.get_mut(key).map(std::mem::take);
        for waiter in waiting.into_iter().flatten() {
            // It may have gone away.
            let _ = waiter.send(Err(e.clone()));
        }
    }

    /// Ends the queue if nobody waits. Returns whether it has ended.
    fn end(&self, key: &Key, turn: Option<Turn>) -> bool {
        let mut queues = lock(&self.queues);
        let ended = queues.waiting.get(key).is_none_or(VecDeque::is_empty);
        if ended {
            queues.waiting.remove(key);
            if let Some(turn) = turn {
                queues.turns.keep(key, turn, &self.settings);
            }
        }
        ended
    }
}

impl fmt::Debug for KeyLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyLocks").field("keyspace", &self.inner.keyspace).finish_non_exhaustive()
    }
}

/// Until when a lock is held if it isn't renewed: by whichever clock gets there first.
#[derive(Clone, Copy, Debug)]
struct Until {
    mono: Instant,
    wall: Wall,
}

impl Until {
    fn is_over(self) -> bool {
        Instant::now() >= self.mono || wall_now() >= self.wall
    }
}

/// Holds the lock of a key, and releases it when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when this is dropped"]
pub struct KeyGuard {
    token: LeaseToken,
    /// `None` once it is lost.
    held: watch::Receiver<Option<Until>>,
    given_back: oneshot::Sender<()>,
}

impl KeyGuard {
    /// Identifies this hold of the lock. It is never reused, neither by another process nor by the next holder in this
    /// one.
    ///
    /// With it, a system that the holder writes to can refuse late writes of an earlier holder:
    /// see [`KeyLocks`](KeyLocks#writes-of-a-holder-that-has-lost-the-lock).
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// Whether the lock is lost: it could not be renewed in time, or the store has forgotten it and another has taken
    /// it. The work that it protects must stop. It checks the clocks, so it also notices when nothing else has run for
    /// a while.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.has_changed().is_err() || self.held.borrow().is_none_or(Until::is_over)
    }

    /// Releases the lock and waits until that is done: for a program that is about to exit, since releasing by drop may
    /// not complete, which would block the key for a lease. Waits for at most a lease and the clock skew, if the store
    /// doesn't respond.
    ///
    /// *Cancel-safety:* it is released even if the future is dropped.
    pub async fn release(self) {
        let KeyGuard { mut held, given_back, .. } = self;
        drop(given_back);
        while held.changed().await.is_ok() {}
    }

    /// Waits until the lock is lost, forever if it never is. Requires a tokio runtime with time enabled, which need not
    /// be the queue's. Cancel-safe; meant for a `select!` next to the work.
    pub async fn lost(&self) {
        lost(self.held.clone()).await;
    }

    /// Like [`lost`](KeyGuard::lost), for a task that outlives the borrow.
    #[cfg(feature = "worker")]
    pub(crate) fn loss(&self) -> impl Future<Output = ()> + Send + 'static {
        lost(self.held.clone())
    }
}

async fn lost(mut held: watch::Receiver<Option<Until>>) {
    loop {
        let until = *held.borrow_and_update();
        let Some(until) = until.filter(|until| !until.is_over()) else { return };
        // Sooner than its end, since the clock that this sleeps by may have stopped for a while.
        let look = until.mono.min(Instant::now() + LOOK);
        tokio::select! {
            // The task that renews it may be gone, and then it is lost too.
            changed = held.changed() => if changed.is_err() { return },
            () = sleep_until(look) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;
    use futures_util::poll;
    use std::pin::pin;

    pub(super) fn locks(settings: KeyLockSettings) -> KeyLocks {
        let (keyspace, here) = (Keyspace::new("q", "g", "q").unwrap(), Handle::current());
        let calls = Arc::new(CallCounter::new("q", "lock_swap"));
        KeyLocks::new(Arc::new(MemoryStore::new()), keyspace, settings, Clock::start(), here, calls)
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_gave_up_do_not_pile_up_behind_a_holder() {
        let locks = locks(KeyLockSettings::new(Duration::from_secs(60), Duration::from_secs(1)));
        let guard = locks.acquire("k").await.unwrap();
        let mut stays = pin!(locks.acquire("k"));
        assert!(poll!(&mut stays).is_pending());
        for _ in 0..10_000 {
            assert!(poll!(pin!(locks.acquire("k"))).is_pending());
        }
        let waiting: usize = lock(&locks.inner.queues).waiting.values().map(VecDeque::len).sum();
        assert!(waiting < 100, "{waiting}");
        drop(guard);
        drop(stays.await.unwrap());
    }
}
