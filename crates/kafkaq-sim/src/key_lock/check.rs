//! The rules, checked from outside: by what the processes believe and the store contains.
//!
//! | rule | when |
//! |---|---|
//! | two processes never hold a key at once | unless the store forgot something within a lease |
//! | a lock is lost early only if the value of another acquisition is in the store | always |
//! | after a lock is over, nothing of it is left in the store that others have to wait for | unless a write took effect after its response, unknown to its process |
//! | a key that is wanted is held again within a lease, the skew and a moment after its holder died | in peace |
//! | a released key that is wanted is held again in a moment | in peace |

use super::world::{Activity, HOSTILE, LEASE, SETTLED, WAY, World};
use crate::trace::{MS, Us, true_wall};
use bytes::Bytes;
use kafkaq_core::key_lock::Standing;
use kafkaq_core::{Lease, LeaseToken};

/// The longest pause between two checks, a late timer, and the round trips to the store.
const MOMENT: Us = LEASE / 6 + 100 * MS + 6 * WAY;

pub(super) struct Check {
    pub(super) violation: Option<String>,
    /// When the store last forgot something.
    pub(super) forgot: Option<Us>,
    /// When a process last died in peace.
    died: Us,
    /// Since when a key is wanted and nobody has it.
    wanted: Vec<Option<Us>>,
}

impl Check {
    pub(super) fn new(keys: usize) -> Self {
        Check { violation: None, forgot: None, died: 0, wanted: vec![None; keys] }
    }

    pub(super) fn crashed(&mut self, now: Us) {
        self.died = now;
    }
}

/// Returns the token of the acquisition that wrote a value.
pub(super) fn token(value: &Bytes) -> Option<LeaseToken> {
    Lease::decode(value).ok().map(|lease| lease.token)
}

impl World {
    fn broken(&mut self, rule: impl Into<String>) {
        let at = self.now / MS;
        self.check.violation.get_or_insert(format!("at {at} ms: {}", rule.into()));
    }

    pub(super) fn check_all(&mut self) {
        for k in 0..self.check.wanted.len() {
            let mut holders = Vec::new();
            for p in 0..self.procs.len() {
                if let Some(Standing::Held(_)) = self.standing(p, k) {
                    holders.push(p);
                }
            }
            let settled = self.check.forgot.is_none_or(|at| self.now > at + LEASE);
            if holders.len() > 1 && settled {
                self.broken(format!("key {k} is held by {holders:?}"));
            }
            self.check_wanted(k, holders.is_empty());
        }
    }

    fn check_wanted(&mut self, k: usize, nobody: bool) {
        let (now, skew) = (self.now, self.skew);
        let wants = |work: &super::world::Work| matches!(work.activity, Activity::Wants(_));
        let wanted = self.procs.iter().any(|p| now >= p.away_until && wants(&p.works[k]));
        if !nobody || !wanted {
            self.check.wanted[k] = None;
            return;
        }
        let since = *self.check.wanted[k].get_or_insert(now);
        // A dead holder's lease ends by the clock that is furthest behind.
        let dead = self.check.died.max(HOSTILE) + LEASE + 2 * skew;
        let until = (since.max(dead.min(since + LEASE + 2 * skew)) + MOMENT).max(SETTLED);
        if now > until {
            self.broken(format!("key {k} is wanted since {} ms and nobody gets it", since / MS));
        }
    }

    pub(super) fn check_answered(&mut self, p: usize, k: usize, before: Option<Standing>) {
        let after = self.standing(p, k);
        if let (Some(Standing::Held(_)), Some(Standing::Lost)) = (before, after) {
            self.stats.lost_to_another += 1;
            let work = &self.procs[p].works[k];
            let found = work.conflict.as_ref().and_then(token);
            if found.is_none() || found == work.token {
                self.broken(format!("key {k} is lost to process {p}, though nobody else has it"));
            }
        }
        self.stats.lost += u64::from(after == Some(Standing::Lost));
    }

    /// Checks a lock that is over for its process.
    pub(super) fn check_over(&mut self, p: usize, k: usize) {
        let (own, now) = (self.procs[p].id, true_wall(self.now));
        let left = self.value(k).and_then(|value| Lease::decode(&value).ok());
        if let Some(left) = left.filter(|left| left.token.process == own)
            && now < left.deadline
            && !self.is_late(k)
        {
            self.broken(format!(
                "the lock of key {k} is over for process {p}, but others wait for what it \
                left"
            ));
        }
    }
}
