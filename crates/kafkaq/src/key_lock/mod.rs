//! Locks of keys, over all processes of a queue.

mod line;
mod turns;

use self::{
    line::Line,
    turns::{Turn, Turns},
};
use crate::{
    driver::{Clock, wall_now},
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

/// How often somebody who waits for the loss of a lock looks at the clocks.
const LOOK: Duration = Duration::from_secs(1);

/// Locks by key: each has one holder at a time, over all processes of a queue and group. Cheap to clone.
///
/// A lock is a lease in the queue's store, which is renewed in the background for as long as its [`KeyGuard`] lives.
/// [`worker::Options::one_at_a_time`](crate::worker::Options::one_at_a_time) uses the same locks, so whoever holds one here
/// keeps the worker's tasks of that key from running.
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
/// Two guards of one key never hold at once, and a key whose holder has died can be had after
/// [`lease_duration`](crate::QueueBuilder::lease_duration), twice [`clock_skew`](crate::QueueBuilder::clock_skew) and the
/// second or two until somebody looks again. That is so while the store keeps its data, and while the processes' clocks are apart by no more than
/// `clock_skew`.
///
/// It is not so
/// - when the store is wiped, or comes back with old data: for up to a lease two may hold the key. Then the earlier holder
///   has found it out, or its lease is over;
/// - for what a holder does after its guard is [lost](KeyGuard::lost). A process that stands still longer than a lease, in a
///   paused virtual machine for example, learns of the loss only when it goes on, and may write something before.
///
/// # Writes of a holder that has lost the lock
/// Only the system that is written to can refuse them. A [token](KeyGuard::token) has no order, so it is of no use to refuse
/// "lower" ones. Instead
/// 1. the holder begins by *claiming* the target: it writes its token there, over whatever token is there, and looks
///    whether its guard [is lost](KeyGuard::is_lost);
/// 2. then it reads what it needs;
/// 3. each later write is conditional on its token being there still: `UPDATE .. WHERE id = .. AND holder = <its token>`. If
///    that changes nothing, another has claimed the target, and it ends.
///
/// So whoever has claimed last is the only one who can write. If that is an earlier holder that went on, the later one fails
/// and has to begin again, but their writes never mix. In a worker the token is that of the execution,
/// [`Ctx::token`](crate::worker::Ctx::token).
///
/// # What it costs
/// Two swaps of the store, one to take and one to give back, and one more per third of a lease. Within a process those who
/// want the same key wait in line, first come, first served, and the lock is handed on without asking the store; a process
/// that has had it for a lease's time, if with gaps in which nobody else came to it, leaves it to others for a second or two.
/// Between processes there is no order: each looks again after a pause that grows from 20 ms to 1 s.
#[derive(Clone)]
pub struct KeyLocks {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn LeaseStore>,
    keyspace: Keyspace,
    settings: KeyLockSettings,
    clock: Clock,
    /// Where locks are renewed, whatever the holders' threads do.
    runtime: Handle,
    calls: Arc<CallCounter>,
    process: [u8; 16],
    count: AtomicU64,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    /// Keys that are held or wanted here. Each has a task that tends it.
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
        let (count, lines) = (AtomicU64::default(), Mutex::default());
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
                lines,
            }),
        }
    }

    /// Waits for the lock of a key, as long as it takes; a `timeout` around it sets a limit. Any bytes are a key. One that
    /// is empty or longer than 64 bytes stands for its hash.
    ///
    /// *Cancel-safety:* safe. A future that is dropped leaves the line, and gives back what it has just got.
    ///
    /// # Errors
    /// The store's own, if it refuses the request for good. `Closed` when the runtime that the queue was built on is gone.
    pub async fn acquire(&self, key: impl AsRef<[u8]>) -> Result<KeyGuard> {
        let key = Key::lock(&self.inner.keyspace, &name(key.as_ref()))?;
        let (tell, told) = oneshot::channel();
        let is_first = {
            let waiting = &mut lock(&self.inner.lines).waiting;
            let is_first = !waiting.contains_key(&key);
            waiting.entry(key.clone()).or_default().push_back(tell);
            is_first
        };
        if is_first {
            self.inner.runtime.spawn(Line::new(self.inner.clone(), key.clone()).tend());
        }
        told.await.unwrap_or_else(|_| Err(Error::not_applied(ErrorKind::Closed, "lock a key").on(key)))
    }
}

/// The part of a key's name in the store.
fn name(key: &[u8]) -> Cow<'_, [u8]> {
    if (1..=Key::MAX_LOCK).contains(&key.len()) {
        return Cow::Borrowed(key);
    }
    // Two keys that meet here only wait for each other.
    Cow::Owned(Uuid::new_v5(&Uuid::NAMESPACE_OID, key).simple().to_string().into_bytes())
}

impl Inner {
    fn token(&self) -> LeaseToken {
        LeaseToken { process: self.process, number: self.count.fetch_add(1, Ordering::Relaxed) }
    }

    /// The next who waits for the key.
    fn next(&self, key: &Key) -> Option<Waiter> {
        let mut lines = lock(&self.lines);
        let waiting = lines.waiting.get_mut(key)?;
        while let Some(waiter) = waiting.pop_front() {
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }

    /// Lets somebody be the next again.
    fn put_back(&self, key: &Key, waiter: Waiter) {
        lock(&self.lines).waiting.entry(key.clone()).or_default().push_front(waiter);
    }

    /// Tells all who wait for the key what the store says.
    fn refuse(&self, key: &Key, e: &Error) {
        let waiting = lock(&self.lines).waiting.get_mut(key).map(std::mem::take);
        for waiter in waiting.into_iter().flatten() {
            // It may have gone away.
            let _ = waiter.send(Err(e.clone()));
        }
    }

    /// Ends the line if nobody waits. Returns whether it has ended.
    fn end(&self, key: &Key, turn: Option<Turn>) -> bool {
        let mut lines = lock(&self.lines);
        let ended = lines.waiting.get(key).is_none_or(VecDeque::is_empty);
        if ended {
            lines.waiting.remove(key);
            if let Some(turn) = turn {
                lines.turns.keep(key, turn, &self.settings);
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

/// Until when a lock is held if it isn't renewed: its end comes by whichever clock is there first.
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

/// Holds the lock of a key, and gives it back when it is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct KeyGuard {
    token: LeaseToken,
    /// `None` once it is lost.
    held: watch::Receiver<Option<Until>>,
    given_back: oneshot::Sender<()>,
}

impl KeyGuard {
    /// Names this hold of the lock. It is never used twice, neither by another process nor by the next holder in this one.
    ///
    /// A system that the holder writes to can refuse by it what an earlier holder writes late:
    /// see [`KeyLocks`](KeyLocks#writes-of-a-holder-that-has-lost-the-lock).
    #[must_use]
    pub fn token(&self) -> LeaseToken {
        self.token
    }

    /// Whether the lock is lost: it could not be renewed in time, or the store has forgotten it and another has taken it.
    /// What it protects has to end. It looks at the clocks, so it knows also when nothing else has run for a while.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.has_changed().is_err() || self.held.borrow().is_none_or(Until::is_over)
    }

    /// Gives the lock back and waits until that is done: for a program that ends, since a lock that is given back by being
    /// dropped may outlive it, and keep others from the key for a lease. Waits for a lease and the clock skew at the most, if
    /// the store doesn't answer.
    ///
    /// *Cancel-safety:* it is given back also if the future is dropped.
    pub async fn release(self) {
        let KeyGuard { mut held, given_back, .. } = self;
        drop(given_back);
        while held.changed().await.is_ok() {}
    }

    /// Waits until the lock is lost, for ever if it never is. Needs a tokio runtime with a timer, which need not be the
    /// queue's. Cancel-safe; made for a `select!` beside the work.
    pub async fn lost(&self) {
        lost(self.held.clone()).await;
    }

    /// As [`lost`](KeyGuard::lost), for a task that outlives the borrow.
    #[cfg(feature = "worker")]
    pub(crate) fn loss(&self) -> impl Future<Output = ()> + Send + 'static {
        lost(self.held.clone())
    }
}

async fn lost(mut held: watch::Receiver<Option<Until>>) {
    loop {
        let until = *held.borrow_and_update();
        let Some(until) = until.filter(|until| !until.is_over()) else { return };
        // Sooner than its end, since the clock that this sleeps by may have stood still.
        let look = until.mono.min(Instant::now() + LOOK);
        tokio::select! {
            // Whoever renewed it may be gone, and then it is lost too.
            changed = held.changed() => if changed.is_err() { return },
            () = sleep_until(look) => {}
        }
    }
}
