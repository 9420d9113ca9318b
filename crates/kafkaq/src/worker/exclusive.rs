//! Executes one task at a time per key.
//!
//! An execution acquires its key's lock before its layers and its handler start, and releases it when they have ended.
//! The task's outcome is confirmed after that, so handlers of one key never overlap, while a confirmation may overlap
//! with the next handler.

use super::{
    Ctx, StopReason, TaskType,
    control::{SPARING, jittered},
    handlers::{Ended, Executing},
    panics, typed,
};
use crate::{JobView, KeyGuard, KeyLocks, Queue, sync::lock};
use bytes::Bytes;
use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{runtime::Handle, time::sleep};

/// How long an execution waits for its key, occupying its slot in the worker, before it is snoozed.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first snooze; it doubles each time, up to the longest.
const FIRST_SNOOZE: Duration = Duration::from_millis(250);
const LONGEST_SNOOZE: Duration = Duration::from_secs(30);

/// Where the key of a task comes from.
#[derive(Clone)]
pub(super) enum KeyOf {
    /// It is the task's own key.
    Task,
    /// A function derives it from the payload, for this kind.
    Payload(&'static str, Arc<FromPayload>),
}

/// Derives a key from the version of the payload and the job. `None` if the payload can't be decoded.
type FromPayload = dyn Fn(u16, &JobView) -> Option<Bytes> + Send + Sync;

impl KeyOf {
    pub(super) fn payload<T: TaskType, K: Into<Bytes>>(
        key: impl Fn(&T) -> K + Send + Sync + 'static,
    ) -> Self {
        let key =
            move |version, job: &JobView| typed::decode::<T>(version, job).ok().map(|task| key(&task).into());
        KeyOf::Payload(T::KIND, Arc::new(key))
    }

    /// Returns what is wrong with it for a handler of this kind.
    pub(super) fn check(&self, kind: &str) -> Option<String> {
        match self {
            KeyOf::Payload(of, _) if *of != kind => Some(format!("`{kind}`, exclusive by a key of `{of}`")),
            _ => None,
        }
    }
}

impl fmt::Debug for KeyOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyOf::Task => "Task",
            KeyOf::Payload(..) => "Payload",
        })
    }
}

/// What the exclusive kinds of a worker share.
pub(super) struct Exclusive {
    locks: KeyLocks,
    /// From this hand-out on, a task waits for its key without a limit: each snooze costs a hand-out, and those are
    /// limited.
    last_snooze: u32,
    /// How many may wait for one key, and for all.
    limits: (usize, usize),
    inside: Mutex<Inside>,
}

/// Executions that have a key or wait for one.
#[derive(Default)]
struct Inside {
    waiting: usize,
    by_key: HashMap<Bytes, usize>,
}

impl Exclusive {
    pub(super) fn new(queue: &Queue, concurrency: usize) -> Self {
        Exclusive {
            locks: queue.key_locks(),
            last_snooze: queue.max_handouts() / 2,
            limits: ((concurrency / 8).max(1), (concurrency / 2).max(1)),
            inside: Mutex::default(),
        }
    }

    /// Makes an execution wait for its key. Until it has it, nothing of `execute` runs.
    pub(super) fn around<S>(
        self: &Arc<Self>,
        by: &KeyOf,
        ctx: Ctx<S>,
        version: u16,
        execute: impl FnOnce(Ctx<S>) -> Executing,
    ) -> Executing
    where
        S: Send + Sync + 'static,
    {
        let stop = ctx.stop().clone();
        ctx.execution().waits_first();
        let turn = self.clone().begin(ctx.clone(), version, by.clone());
        match execute(ctx) {
            Executing::Async(run) => Executing::Async(Box::pin(async move {
                let turn = match turn.await {
                    Ok(turn) => turn,
                    Err(ended) => return ended,
                };
                stop.execution().time_begins();
                let Some(turn) = turn else { return run.await };
                // If this is dropped, the handler is dropped before its lock.
                let mut run = run;
                tokio::select! {
                    biased;
                    ended = &mut run => return ended,
                    () = turn.guard.lost() => stop.tell(StopReason::LeaseLost),
                }
                run.await
            })),
            Executing::Blocking(run) => Executing::Blocking(Box::new(move || {
                let turn = match Handle::current().block_on(turn) {
                    Ok(turn) => turn,
                    Err(ended) => return ended,
                };
                stop.execution().time_begins();
                let Some(turn) = turn else { return run() };
                let loss = turn.guard.loss();
                let tell = tokio::spawn(async move {
                    loss.await;
                    stop.tell(StopReason::LeaseLost);
                });
                let ended = run();
                tell.abort();
                ended
            })),
        }
    }

    /// Waits for the lock of a task's key. `None` if it has no key.
    async fn begin<S>(self: Arc<Self>, ctx: Ctx<S>, version: u16, by: KeyOf) -> Result<Option<Turn>, Ended> {
        let key = match &by {
            KeyOf::Task => ctx.key().cloned(),
            KeyOf::Payload(_, key) => {
                panics::caught_blocking(|| key(version, &ctx.execution().job)).map_err(Ended::Panicked)?
            }
        };
        let Some(key) = key else { return Ok(None) };
        let snoozed = ctx.attempt().saturating_sub(ctx.failures());
        let snooze = || Err(Ended::NotStarted(Some(pause(snoozed))));
        let may_snooze = ctx.attempt() <= self.last_snooze;
        let Some(mut place) = Place::take(&self, &key, !may_snooze) else { return snooze() };
        tokio::select! {
            biased;
            // The worker is stopping, or another worker has the task.
            _ = ctx.stop().requested() => Err(Ended::NotStarted(None)),
            guard = self.locks.acquire(&key) => match guard {
                Ok(guard) => {
                    place.waits_no_more();
                    Ok(Some(Turn { guard, _place: place }))
                }
                Err(error) => {
                    tracing::warn!(target: "kafkaq", task = %ctx.id(), %error, "the key of a task can't be locked");
                    // It would occupy a slot for as long as the store refuses it, and others like it would occupy the
                    // rest.
                    if may_snooze { snooze() } else { Err(Ended::NotStarted(Some(jittered(SPARING)))) }
                }
            },
            () = sleep(PATIENCE), if may_snooze => snooze(),
        }
    }
}

/// Returns a random delay between half and all of what is due after this many snoozes.
fn pause(snoozed: u32) -> Duration {
    let factor = 1_u32.checked_shl(snoozed.saturating_sub(1)).unwrap_or(u32::MAX);
    jittered(FIRST_SNOOZE.saturating_mul(factor).min(LONGEST_SNOOZE))
}

/// An execution that has the lock of its key.
struct Turn {
    guard: KeyGuard,
    _place: Place,
}

/// A slot among those that have a key or wait for it.
struct Place {
    exclusive: Arc<Exclusive>,
    key: Bytes,
    waits: bool,
}

impl Place {
    /// `None` if enough are waiting. The first one for a key waits for nobody in this process.
    fn take(exclusive: &Arc<Exclusive>, key: &Bytes, always: bool) -> Option<Self> {
        let (per_key, in_all) = exclusive.limits;
        let mut inside = lock(&exclusive.inside);
        let waiting = inside.waiting;
        let here = inside.by_key.entry(key.clone()).or_default();
        let waits = *here > 0;
        if waits && !always && (*here > per_key || waiting >= in_all) {
            return None;
        }
        *here += 1;
        inside.waiting += usize::from(waits);
        Some(Place { exclusive: exclusive.clone(), key: key.clone(), waits })
    }

    fn waits_no_more(&mut self) {
        if std::mem::take(&mut self.waits) {
            lock(&self.exclusive.inside).waiting -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waits_no_more();
        let mut inside = lock(&self.exclusive.inside);
        if let Entry::Occupied(mut here) = inside.by_key.entry(self.key.clone()) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snoozes_double_to_their_limit_with_jitter() {
        for (snoozed, most) in [(0, 250), (1, 250), (2, 500), (3, 1000), (8, 30_000), (u32::MAX, 30_000)] {
            let most = Duration::from_millis(most);
            assert!((most / 2..=most).contains(&pause(snoozed)), "{snoozed}");
        }
    }

    #[tokio::test]
    async fn waiting_executions_are_bounded_per_key_and_in_total() {
        let queue = Queue::builder("q").build().await.unwrap();
        let exclusive = Arc::new(Exclusive::new(&queue, 16));
        let take = |key: &'static str, always| Place::take(&exclusive, &key.into(), always);
        let (first, mut second) = (take("a", false).unwrap(), take("a", false).unwrap());
        let third = take("a", false).unwrap();
        assert!(take("a", false).is_none(), "one has it, and two wait");
        drop(first);
        second.waits_no_more();
        let mut others: Vec<_> =
            ["a", "b", "b", "b", "c", "c", "c", "d", "d", "d"].map(|key| take(key, false).unwrap()).into();
        others.push(take("e", false).unwrap());
        assert!(take("e", false).is_none(), "eight wait");
        others.push(take("e", true).unwrap());
        drop((second, third, others));
        let inside = lock(&exclusive.inside);
        assert!(inside.waiting == 0 && inside.by_key.is_empty(), "nothing is left");
    }
}
