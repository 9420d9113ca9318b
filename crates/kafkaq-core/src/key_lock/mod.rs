//! The lock of one key, in one process: a pure machine, without a clock of its own.
//!
//! ```text
//!             ┌── conflict: another's, until its end ──┐
//!             ▼                                        │
//!  new ──▶ taking ──done──▶ held ◀──renewed──┐      (paused)
//!             │              │ └─────────────┘
//!             │              └── its time is over, or another has it ──▶ lost
//!             └──────── release ──▶ releasing ──▶ over ◀── release ───────┘
//! ```
//! The value in the store is a live [`Lease`], under a token that is unique to this acquisition. A lock counts as held
//! from the response until one lease after the *call* that wrote it, so nobody else can take it meanwhile: neither
//! because of its deadline nor because it expired from the store. It ends by whichever clock gets there first: the
//! monotonic clock of a suspended machine stops, and the wall clock may be set back.
//!
//! How to drive it: after each call of [`KeyLock::handle_swapped`] and [`KeyLock::release`], and at
//! [`KeyLock::poll_timeout`], call [`KeyLock::poll_swap`] for the swap to send. Only one swap is in flight at a time.

mod fault;

pub use fault::KeyLockFault;

use crate::{
    DecodeError, Effect, Error, Key, Lease, LeaseState, LeaseToken, Result, Swap, Swapped,
    faults::Planted,
    machine::{Mono, Now},
};
use bytes::Bytes;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The configuration of all locks of a queue.
#[derive(Clone, Copy, Debug)]
pub struct KeyLockSettings {
    /// How long a lock is held without being renewed.
    pub lease: Duration,
    /// Another process's deadline counts as past only this long after it.
    pub clock_skew: Duration,
    /// A deliberate bug that the simulation must find.
    pub planted: Planted<KeyLockFault>,
}

impl KeyLockSettings {
    /// No planted bug.
    #[must_use]
    pub const fn new(lease: Duration, clock_skew: Duration) -> Self {
        KeyLockSettings { lease, clock_skew, planted: Planted::NOTHING }
    }

    /// The longest pause between two checks of a lock that another process holds.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        LONGEST_PAUSE.min(self.lease / 6)
    }
}

/// The state of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not this process's yet.
    Taking,
    /// This process holds it, until either clock shows this time, if it isn't renewed.
    Held(Now),
    /// This process has lost it, and another may have it. The work that it protects must stop.
    Lost,
    /// It is being released.
    Releasing,
    /// It is released, or was never taken, or another process has it.
    Over,
}

/// One acquisition of a key's lock.
#[derive(Debug)]
pub struct KeyLock {
    key: Key,
    token: LeaseToken,
    settings: KeyLockSettings,
    standing: Standing,
    /// The value in the store, as last seen.
    seen: Option<Bytes>,
    /// The swap in flight: what it writes, and when it was sent.
    under_way: Option<(Option<Bytes>, Now)>,
    /// The last value of this acquisition that may be in the store, and when it was sent.
    written: Option<(Bytes, Mono)>,
    /// Another holder's value, and when it was first seen.
    watched: Option<(Bytes, Mono)>,
    /// Nothing is sent before this.
    not_before: Mono,
    pause: Duration,
}

impl KeyLock {
    /// Starts to acquire the lock. The token must be new.
    #[must_use]
    pub fn new(key: Key, token: LeaseToken, settings: KeyLockSettings) -> Self {
        KeyLock {
            key,
            token,
            settings,
            standing: Standing::Taking,
            seen: None,
            under_way: None,
            written: None,
            watched: None,
            not_before: Mono::default(),
            pause: FIRST_PAUSE,
        }
    }

    fn has_fault(&self, fault: KeyLockFault) -> bool {
        self.settings.planted.is(fault)
    }

    /// Returns its state.
    pub fn standing(&mut self, now: Now) -> Standing {
        if let Standing::Held(until) = self.standing
            && self.is_over(until, now)
            && !self.has_fault(KeyLockFault::NeverExpires)
        {
            self.standing = Standing::Lost;
        }
        self.standing
    }

    fn is_over(&self, until: Now, now: Now) -> bool {
        now.mono >= until.mono || (now.wall >= until.wall && !self.has_fault(KeyLockFault::WallIgnored))
    }

    /// Releases it. The work that it protects must have ended.
    pub fn release(&mut self, now: Mono) {
        if self.standing != Standing::Over {
            self.standing = Standing::Releasing;
            (self.not_before, self.pause) = (now, FIRST_PAUSE);
            self.end_if_released(now);
        }
    }

    /// Returns the swap to send now.
    pub fn poll_swap(&mut self, now: Now) -> Option<Swap> {
        if self.under_way.is_some() || now.mono < self.not_before {
            return None;
        }
        let KeyLockSettings { lease, clock_skew, .. } = self.settings;
        self.end_if_released(now.mono);
        let (expect, new, ttl) = match self.standing(now) {
            Standing::Taking | Standing::Held(_) => {
                let new = Lease::new(LeaseState::Live, self.token, now.wall.plus(lease), lease).encode();
                let skew =
                    if self.has_fault(KeyLockFault::TtlWithoutSkew) { Duration::ZERO } else { clock_skew };
                (self.seen.clone(), Some(new), Some(lease + skew))
            }
            Standing::Releasing => (self.written.as_ref().map(|(value, _)| value.clone()), None, None),
            Standing::Lost | Standing::Over => return None,
        };
        self.under_way = Some((new.clone(), now));
        Some(Swap::new(self.key.clone(), expect, new, ttl))
    }

    /// Returns when to check again at the latest: something has to be sent then, or the lock is lost.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        let send = self.under_way.is_none().then_some(self.not_before);
        match self.standing {
            Standing::Held(Now { mono: until, .. }) => Some(send.map_or(until, |send| send.min(until))),
            Standing::Taking | Standing::Releasing => send,
            Standing::Lost | Standing::Over => None,
        }
    }

    /// Applies the outcome of the swap that was sent.
    pub fn handle_swapped(&mut self, outcome: Result<Swapped>, now: Now) {
        let Some((new, sent)) = self.under_way.take() else { return };
        let standing = self.standing(now);
        match outcome {
            Ok(Swapped::Done) => {
                self.written = new.clone().map(|value| (value, sent.mono));
                self.seen = new;
                self.wrote(standing, sent, now);
            }
            Ok(Swapped::Conflict(found)) => self.conflict(standing, found, now),
            Err(e) => self.failed(standing, new, sent, &e, now),
        }
        self.end_if_released(now.mono);
    }

    fn wrote(&mut self, standing: Standing, sent: Now, now: Now) {
        (self.not_before, self.pause) = (now.mono, FIRST_PAUSE);
        let counted = if self.has_fault(KeyLockFault::CountsFromAnswer) { now } else { sent };
        let lease = self.settings.lease;
        let until = Now { mono: counted.mono.plus(lease), wall: counted.wall.plus(lease) };
        // One whose response took too long is written again.
        if matches!(standing, Standing::Taking | Standing::Held(_)) && !self.is_over(until, now) {
            self.standing = Standing::Held(until);
            self.not_before = sent.mono.plus(lease / 3);
        }
    }

    fn conflict(&mut self, standing: Standing, found: Option<Bytes>, now: Now) {
        let lease = found.as_deref().map(Lease::decode);
        let mut own = matches!(&lease, Some(Ok(lease)) if lease.token == self.token);
        if self.has_fault(KeyLockFault::OthersTakenForOwn) {
            own = matches!(&lease, Some(Ok(_)));
        }
        let nobody = match &lease {
            None => true,
            // Unreadable bytes count as missing; a value of a later version doesn't.
            Some(Err(e)) => !matches!(e, DecodeError::Newer(_)),
            Some(Ok(_)) => false,
        };
        let since = match (self.watched.take(), &found) {
            (Some((watched, since)), Some(found))
                if watched == *found || self.has_fault(KeyLockFault::RenewalOverlooked) =>
            {
                since
            }
            _ => now.mono,
        };
        self.watched = found.clone().map(|found| (found, since));
        let free = match &lease {
            Some(Ok(_)) if self.has_fault(KeyLockFault::TakesFromTheLiving) => true,
            Some(Ok(_)) if self.has_fault(KeyLockFault::NoTakeover) => false,
            Some(Ok(lease)) => {
                let skew = if self.has_fault(KeyLockFault::SkewIgnored) {
                    Duration::ZERO
                } else {
                    self.settings.clock_skew
                };
                // Or its holder has not renewed it for its whole length, and the clock that set the deadline is wrong.
                now.wall >= lease.deadline.plus(skew) || now.mono >= since.plus(lease.length + skew)
            }
            _ => nobody,
        };
        self.seen.clone_from(&found);
        self.not_before = now.mono;
        self.written = match (self.written.take(), found) {
            // This holder's own write may have arrived late, after it was forgotten.
            (written, Some(found))
                if own && (written.is_some() || !self.has_fault(KeyLockFault::LateOwnLeft)) =>
            {
                Some((found, written.map_or(now.mono, |(_, sent)| sent)))
            }
            (Some((_, sent)), Some(found)) if self.has_fault(KeyLockFault::ReleasesOthers) => {
                Some((found, sent))
            }
            _ => None,
        };
        match standing {
            Standing::Taking if own || free => {}
            Standing::Taking => {
                // It must not be overwritten: the next attempt fails while it is there.
                self.seen = None;
                self.pause(now.mono);
            }
            Standing::Held(_) if own && self.has_fault(KeyLockFault::OwnRenewalForeign) => {
                self.standing = Standing::Lost;
            }
            Standing::Held(_) if nobody && self.has_fault(KeyLockFault::LossGivesUp) => {
                self.standing = Standing::Lost;
            }
            // An earlier attempt whose response was lost. Or the store was wiped, and nobody has taken it since.
            Standing::Held(_) if own || nobody => {}
            Standing::Held(_) if self.has_fault(KeyLockFault::OverwritesOthers) => {}
            Standing::Held(_) => self.standing = Standing::Lost,
            Standing::Releasing | Standing::Lost | Standing::Over => {}
        }
    }

    fn failed(&mut self, standing: Standing, new: Option<Bytes>, sent: Now, e: &Error, now: Now) {
        self.pause(now.mono);
        if e.effect() == Effect::NotApplied {
            return;
        }
        match new {
            Some(new) => {
                if !self.has_fault(KeyLockFault::TakeNotUndone) {
                    self.written = Some((new, sent.mono));
                }
                let taken = self.has_fault(KeyLockFault::UnknownIsTaken) && standing == Standing::Taking;
                let renewed =
                    self.has_fault(KeyLockFault::UnknownIsRenewed) && matches!(standing, Standing::Held(_));
                if taken || renewed {
                    self.wrote(standing, sent, now);
                }
            }
            None if self.has_fault(KeyLockFault::ReleaseNotRepeated) => self.written = None,
            None => {}
        }
    }

    /// Whether no write of this acquisition can still be in the store and block the key.
    fn end_if_released(&mut self, now: Mono) {
        let KeyLockSettings { lease, clock_skew, .. } = self.settings;
        let gone = self.written.as_ref().is_none_or(|(_, sent)| now >= sent.plus(lease + clock_skew));
        if self.standing == Standing::Releasing && self.under_way.is_none() && gone {
            self.standing = Standing::Over;
        }
    }

    fn pause(&mut self, now: Mono) {
        self.not_before = now.plus(self.pause);
        self.pause = (self.pause * 2).min(self.settings.longest_pause());
    }
}

#[cfg(test)]
mod tests;
