//! The callers of one process that want the same key: one task acquires the lock in the store, renews it, and passes it
//! from one caller to the next.

use super::{Inner, KeyGuard, Until, Waiter, turns::Turn};
use crate::{clock::FAR, driver::every_answer, sync::lock};
use kafkaq_core::{
    Error, Key, Result, Retry, Swap, Swapped,
    key_lock::{KeyLock, Standing},
    machine::Now,
};
use std::{future::pending, sync::Arc, time::Instant as SystemInstant};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// The callers that wait for a key.
pub(super) struct KeyQueue {
    inner: Arc<Inner>,
    key: Key,
    /// When this process last held the key.
    turn: Option<Turn>,
    ended: bool,
}

impl KeyQueue {
    pub(super) fn new(inner: Arc<Inner>, key: Key) -> Self {
        let turn = lock(&inner.queues).turns.take(&key);
        KeyQueue { inner, key, turn, ended: false }
    }

    /// Serves waiting callers until there are none.
    pub(super) async fn tend(mut self) {
        while !self.inner.end(&self.key, self.turn) {
            if let Some(first) = self.inner.next(&self.key) {
                self.turn = self.serve(first).await;
            }
        }
        self.ended = true;
    }

    /// Acquires the lock once, for the first waiting caller and those behind it. Returns the turn in which they had it.
    async fn serve(&self, first: Waiter) -> Option<Turn> {
        let settings = &self.inner.settings;
        if let Some(turn) = self.turn {
            sleep_until(turn.again(settings)).await;
        }
        let mut since = self.turn.filter(|turn| turn.goes_on(settings)).map(|turn| turn.since);
        let mut held = Held::new(&self.inner, &self.key);
        let mut next = Some(first);
        while let Some(waiter) = next.take() {
            match held.take(waiter).await {
                Ok((waiter, until)) => {
                    let since = *since.get_or_insert_with(Instant::now);
                    held.hand_over(waiter, until).await;
                    // Other processes are waiting as well.
                    if held.is_held() && since.elapsed() < settings.lease {
                        next = self.inner.next(&self.key);
                    }
                }
                Err(NotTaken::Gone) => next = self.inner.next(&self.key),
                Err(NotTaken::Refused(e)) => self.inner.refuse(&self.key, &e),
                Err(NotTaken::Lost(waiter)) => self.inner.put_back(&self.key, waiter),
            }
        }
        // If another process has it, it had its turn.
        let is_held = held.is_held();
        held.give_back().await;
        let since = since.filter(|_| is_held)?;
        Some(Turn { since, given_back: Instant::now() })
    }
}

impl Drop for KeyQueue {
    /// Also when the runtime ends: nobody may wait forever.
    fn drop(&mut self) {
        if !self.ended {
            lock(&self.inner.queues).waiting.remove(&self.key);
        }
    }
}

/// Why a waiting caller didn't get the lock.
enum NotTaken {
    /// It stopped waiting.
    Gone,
    /// The store refuses, and the caller was told.
    Refused(Error),
    /// The lock was lost before its turn. It is still waiting.
    Lost(Waiter),
}

/// One acquisition of the lock in the store.
struct Held<'a> {
    inner: &'a Inner,
    lock: KeyLock,
    /// When it started, and its outcome.
    call: Option<(SystemInstant, JoinHandle<Vec<Result<Swapped>>>)>,
    /// Tells the last holder until when it is held. It is dropped when another process has it or it is free, for those
    /// who wait for that.
    holder: Option<watch::Sender<Option<Until>>>,
}

impl<'a> Held<'a> {
    fn new(inner: &'a Inner, key: &Key) -> Self {
        let lock = KeyLock::new(key.clone(), inner.token(), inner.settings);
        Held { inner, lock, call: None, holder: None }
    }

    fn standing(&mut self) -> Standing {
        self.lock.standing(self.inner.clock.now())
    }

    fn is_held(&mut self) -> bool {
        matches!(self.standing(), Standing::Held(_))
    }

    fn until(&self, until: Now) -> Until {
        Until { mono: self.inner.clock.at(until.mono), wall: until.wall }
    }

    /// Waits until it is held, for a waiting caller.
    async fn take(&mut self, mut waiter: Waiter) -> Result<(Waiter, Until), NotTaken> {
        loop {
            match self.standing() {
                Standing::Held(until) => return Ok((waiter, self.until(until))),
                Standing::Lost => return Err(NotTaken::Lost(waiter)),
                Standing::Taking | Standing::Releasing | Standing::Over => {}
            }
            tokio::select! {
                biased;
                () = waiter.closed() => return Err(NotTaken::Gone),
                failed = self.step() => {
                    if let Some(e) = failed.filter(|e| e.retry() == Retry::No) {
                        let _ = waiter.send(Err(e.clone()));
                        return Err(NotTaken::Refused(e));
                    }
                }
            }
        }
    }

    /// Passes it to a caller, and waits until it is given back or dropped.
    async fn hand_over(&mut self, waiter: Waiter, until: Until) {
        let (tell, held) = watch::channel(Some(until));
        let (give_back, mut given_back) = oneshot::channel();
        let guard = KeyGuard { token: self.inner.token(), held, given_back: give_back };
        if waiter.send(Ok(guard)).is_err() {
            return;
        }
        self.holder = Some(tell);
        while let Standing::Held(until) = self.standing() {
            self.tell(Some(self.until(until)));
            tokio::select! {
                biased;
                _ = &mut given_back => return,
                _ = self.step() => {}
            }
        }
        // Nobody else in this process gets it before its holder has ended.
        self.tell(None);
        let _ = given_back.await;
    }

    fn tell(&self, until: Option<Until>) {
        if let Some(holder) = &self.holder {
            holder.send_replace(until);
        }
    }

    async fn give_back(mut self) {
        self.lock.release(self.inner.clock.mono());
        while self.standing() != Standing::Over {
            self.step().await;
        }
    }

    /// Sends the machine's next call, and waits for its outcome or for the machine's timeout. Cancel-safe. Returns why
    /// the call failed.
    async fn step(&mut self) -> Option<Error> {
        let clock = self.inner.clock;
        if self.call.is_none()
            && let Some(swap) = self.lock.poll_swap(clock.now())
        {
            self.call = Some((self.inner.calls.begun(), self.send(swap)));
        }
        if self.call.is_none() && self.lock.poll_timeout().is_none() {
            // It ended in the meantime.
            return None;
        }
        let wake = self.wake_at();
        let answer = async {
            match &mut self.call {
                Some((begun, call)) => (*begun, call.await),
                None => pending().await,
            }
        };
        let (begun, answered) = tokio::select! {
            biased;
            answered = answer => answered,
            () = sleep_until(wake) => return None,
        };
        self.call = None;
        let outcome = every_answer(answered).next()?;
        self.inner.calls.ended(begun, 1, outcome.is_err().into());
        let failed = outcome.as_ref().err().cloned();
        self.lock.handle_swapped(outcome, clock.now());
        failed
    }

    fn send(&self, swap: Swap) -> JoinHandle<Vec<Result<Swapped>>> {
        let store = self.inner.store.clone();
        // A task of its own, so that a panic of the store counts as an unknown effect.
        tokio::spawn(async move { store.swap(std::slice::from_ref(&swap)).await })
    }

    /// When to try again. Waiting processes must not all try at the same time.
    fn wake_at(&mut self) -> Instant {
        let now = Instant::now();
        let at = self.lock.poll_timeout().map_or(now + FAR, |at| self.inner.clock.at(at));
        if self.is_held() {
            return at;
        }
        let pause = at.saturating_duration_since(now).min(self.inner.settings.longest_pause());
        at + pause.mul_f64(0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::locks, *};
    use kafkaq_core::key_lock::KeyLockSettings;
    use std::time::Duration;
    use tokio::time::timeout;

    /// Its holder was served just before, and the process was suspended since.
    #[tokio::test(start_paused = true)]
    async fn lock_that_is_lost_before_it_is_passed_on_is_acquired_again() {
        let settings = KeyLockSettings::new(Duration::from_secs(60), Duration::from_secs(1));
        let locks = locks(settings);
        let key = Key::of(&["x", "q", "g", "k"]).unwrap();
        let mut held = Held::new(&locks.inner, &key);
        let ((first, _), (second, _waits)) = (oneshot::channel(), oneshot::channel());
        assert!(held.take(first).await.is_err_and(|e| matches!(e, NotTaken::Gone)));
        assert!(held.take(second).await.is_ok());
        tokio::time::advance(settings.lease).await;
        let (third, _waits) = oneshot::channel();
        let taken = timeout(settings.lease * 10, held.take(third)).await.expect("it hangs");
        assert!(matches!(taken, Err(NotTaken::Lost(_))));
    }
}
