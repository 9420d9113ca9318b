//! Locks of keys, over all processes of a queue.

mod line;
mod turns;

use self::{
    line::Line,
    turns::{Turn, Turns},
};
use crate::{driver::Clock, sync::lock};
use kafkaq_core::{
    Error, ErrorKind, Key, Keyspace, LeaseStore, LeaseToken, Result, key_lock::KeyLockSettings,
};
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};
use uuid::Uuid;

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
/// drop(guard); // gives it back
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
///   paused virtual machine for example, learns of the loss only when it goes on, and may write something before. The
///   system that it writes to can refuse that only by a token: see [`LeaseToken`].
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
    ) -> Self {
        let process = Uuid::new_v4().into_bytes();
        let (count, lines) = (AtomicU64::default(), Mutex::default());
        KeyLocks {
            inner: Arc::new(Inner { store, keyspace, settings, clock, runtime, process, count, lines }),
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

/// Holds the lock of a key, and gives it back when it is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when this is dropped"]
pub struct KeyGuard {
    lost: watch::Receiver<bool>,
    _held: oneshot::Sender<()>,
}

impl KeyGuard {
    /// Whether the lock is known to be lost: it could not be renewed in time, or the store has forgotten it and another has
    /// taken it. What it protects has to end.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        *self.lost.borrow() || self.lost.has_changed().is_err()
    }

    /// Waits until the lock is lost, for ever if it never is. Cancel-safe; made for a `select!` beside the work.
    pub async fn lost(&self) {
        lost(self.lost.clone()).await;
    }

    /// As [`lost`](KeyGuard::lost), for a task that outlives the borrow.
    #[cfg(feature = "worker")]
    pub(crate) fn loss(&self) -> impl Future<Output = ()> + Send + 'static {
        lost(self.lost.clone())
    }
}

async fn lost(mut lost: watch::Receiver<bool>) {
    // Whoever renewed it may be gone, and then it is lost too.
    let _ = lost.wait_for(|lost| *lost).await;
}
