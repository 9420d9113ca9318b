//! The lock of one key, as one process wants it: a pure machine, without a clock of its own.
//!
//! ```text
//!             ┌── conflict: another's, until its end ──┐
//!             ▼                                        │
//!  new ──▶ taking ──done──▶ held ◀──renewed──┐      (paused)
//!             │              │ └─────────────┘
//!             │              └── its time is over, or another has it ──▶ lost
//!             └──────── release ──▶ releasing ──▶ over ◀── release ───────┘
//! ```
//! The value in the store is a live [`Lease`], under a token that belongs to this taking alone. A lock counts as held from
//! the answer until one lease after the *call* that wrote it, so nobody else can take it meanwhile: neither by its
//! deadline nor because the store has aged it out. It ends by whichever clock comes to it first: the monotonic clock of a
//! machine that is suspended stands still, and the wall clock may be set back.
//!
//! To be driven like this: after each call of [`KeyLock::handle_swapped`] and [`KeyLock::release`], and at
//! [`KeyLock::poll_timeout`], ask [`KeyLock::poll_swap`] for what is to be sent. Only one swap is under way at a time.

#[cfg(feature = "planted-faults")]
mod fault;

#[cfg(feature = "planted-faults")]
pub use fault::KeyLockFault;

use crate::{
    DecodeError, Effect, Error, Key, Lease, LeaseState, LeaseToken, Result, Swap, Swapped,
    machine::{Mono, Now},
};
use bytes::Bytes;
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What all locks of a queue have in common.
#[derive(Clone, Copy, Debug)]
pub struct KeyLockSettings {
    /// How long a lock is held without being renewed.
    pub lease: Duration,
    /// Another process's deadline counts as past only this long after it.
    pub clock_skew: Duration,
    /// A bug that the simulation has to find.
    #[cfg(feature = "planted-faults")]
    pub planted: Option<KeyLockFault>,
}

impl KeyLockSettings {
    /// No planted bug.
    #[must_use]
    pub const fn new(lease: Duration, clock_skew: Duration) -> Self {
        KeyLockSettings {
            lease,
            clock_skew,
            #[cfg(feature = "planted-faults")]
            planted: None,
        }
    }

    /// The longest pause between two looks at a lock that another process holds.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        LONGEST_PAUSE.min(self.lease / 6)
    }
}

/// Where a lock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not this process's yet.
    Taking,
    /// It is this process's, until either clock shows that if it isn't renewed.
    Held(Now),
    /// It was this process's, and may be another's. What it stood for has to end.
    Lost,
    /// It is to be given back.
    Releasing,
    /// It is given back, or was never taken, or is another's.
    Over,
}

/// One taking of a key's lock.
#[derive(Debug)]
pub struct KeyLock {
    key: Key,
    token: LeaseToken,
    settings: KeyLockSettings,
    standing: Standing,
    /// What is in the store, as far as this process knows.
    seen: Option<Bytes>,
    /// The swap that is under way: what it writes, and when it was sent.
    under_way: Option<(Option<Bytes>, Now)>,
    /// What this taking has written last that may be in the store, and when that was sent.
    written: Option<(Bytes, Mono)>,
    /// Nothing is sent before.
    not_before: Mono,
    pause: Duration,
}

macro_rules! planted {
    ($lock:expr, $fault:ident) => {{
        #[cfg(feature = "planted-faults")]
        let planted = $lock.settings.planted == Some(KeyLockFault::$fault);
        #[cfg(not(feature = "planted-faults"))]
        let planted = false;
        planted
    }};
}

impl KeyLock {
    /// Begins to take the lock. The token must be new.
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
            not_before: Mono::default(),
            pause: FIRST_PAUSE,
        }
    }

    /// Returns where it stands.
    pub fn standing(&mut self, now: Now) -> Standing {
        if let Standing::Held(until) = self.standing
            && self.is_over(until, now)
            && !planted!(self, NeverExpires)
        {
            self.standing = Standing::Lost;
        }
        self.standing
    }

    fn is_over(&self, until: Now, now: Now) -> bool {
        now.mono >= until.mono || (now.wall >= until.wall && !planted!(self, WallIgnored))
    }

    /// Gives it back. What it stood for must have ended.
    pub fn release(&mut self, now: Mono) {
        if self.standing != Standing::Over {
            self.standing = Standing::Releasing;
            (self.not_before, self.pause) = (now, FIRST_PAUSE);
            self.end_if_released(now);
        }
    }

    /// Returns what is to be sent to the store now.
    pub fn poll_swap(&mut self, now: Now) -> Option<Swap> {
        if self.under_way.is_some() || now.mono < self.not_before {
            return None;
        }
        let KeyLockSettings { lease, clock_skew, .. } = self.settings;
        self.end_if_released(now.mono);
        let (expect, new, ttl) = match self.standing(now) {
            Standing::Taking | Standing::Held(_) => {
                let new = Lease::new(LeaseState::Live, self.token, now.wall.plus(lease), lease).encode();
                let skew = if planted!(self, TtlWithoutSkew) { Duration::ZERO } else { clock_skew };
                (self.seen.clone(), Some(new), Some(lease + skew))
            }
            Standing::Releasing => (self.written.as_ref().map(|(value, _)| value.clone()), None, None),
            Standing::Lost | Standing::Over => return None,
        };
        self.under_way = Some((new.clone(), now));
        Some(Swap::new(self.key.clone(), expect, new, ttl))
    }

    /// Returns when to look again at the latest: something is to be sent then, or the lock is lost.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        let send = self.under_way.is_none().then_some(self.not_before);
        match self.standing {
            Standing::Held(Now { mono: until, .. }) => Some(send.map_or(until, |send| send.min(until))),
            Standing::Taking | Standing::Releasing => send,
            Standing::Lost | Standing::Over => None,
        }
    }

    /// Takes in what became of the swap that was sent.
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
        let counted = if planted!(self, CountsFromAnswer) { now } else { sent };
        let lease = self.settings.lease;
        let until = Now { mono: counted.mono.plus(lease), wall: counted.wall.plus(lease) };
        // One whose answer took as long is written once more.
        if matches!(standing, Standing::Taking | Standing::Held(_)) && !self.is_over(until, now) {
            self.standing = Standing::Held(until);
            self.not_before = sent.mono.plus(lease / 3);
        }
    }

    fn conflict(&mut self, standing: Standing, found: Option<Bytes>, now: Now) {
        let lease = found.as_deref().map(Lease::decode);
        let mut own = matches!(&lease, Some(Ok(lease)) if lease.token == self.token);
        if planted!(self, OthersTakenForOwn) {
            own = matches!(&lease, Some(Ok(_)));
        }
        let nobody = match &lease {
            None => true,
            // Bytes that nobody can read are as good as nothing; what a later version wrote is not.
            Some(Err(e)) => !matches!(e, DecodeError::Newer(_)),
            Some(Ok(_)) => false,
        };
        let free = match &lease {
            Some(Ok(_)) if planted!(self, TakesFromTheLiving) => true,
            Some(Ok(_)) if planted!(self, NoTakeover) => false,
            Some(Ok(lease)) => {
                let skew =
                    if planted!(self, SkewIgnored) { Duration::ZERO } else { self.settings.clock_skew };
                now.wall >= lease.deadline.plus(skew)
            }
            _ => nobody,
        };
        self.seen.clone_from(&found);
        self.not_before = now.mono;
        self.written = match (self.written.take(), found) {
            // One's own may have come late, when nothing was known of it any more.
            (written, Some(found)) if own && (written.is_some() || !planted!(self, LateOwnLeft)) => {
                Some((found, written.map_or(now.mono, |(_, sent)| sent)))
            }
            (Some((_, sent)), Some(found)) if planted!(self, ReleasesOthers) => Some((found, sent)),
            _ => None,
        };
        match standing {
            Standing::Taking if own || free => {}
            Standing::Taking => {
                // It must not be written over: the next try fails while it is there.
                self.seen = None;
                self.pause(now.mono);
            }
            Standing::Held(_) if own && planted!(self, OwnRenewalForeign) => self.standing = Standing::Lost,
            Standing::Held(_) if nobody && planted!(self, LossGivesUp) => self.standing = Standing::Lost,
            // A try before, whose answer was lost. Or the store was wiped, and nobody has taken it since.
            Standing::Held(_) if own || nobody => {}
            Standing::Held(_) if planted!(self, OverwritesOthers) => {}
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
                if !planted!(self, TakeNotUndone) {
                    self.written = Some((new, sent.mono));
                }
                let taken = planted!(self, UnknownIsTaken) && standing == Standing::Taking;
                let renewed = planted!(self, UnknownIsRenewed) && matches!(standing, Standing::Held(_));
                if taken || renewed {
                    self.wrote(standing, sent, now);
                }
            }
            None if planted!(self, ReleaseNotRepeated) => self.written = None,
            None => {}
        }
    }

    /// Whether nothing of this taking can be in the store any more that keeps others from the key.
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
