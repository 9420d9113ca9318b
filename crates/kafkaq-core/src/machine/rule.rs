//! The record rule and the table of conflicts: pure decisions over one record and one lease.

use crate::{DecodeError, Lease, LeaseState, LeaseToken, LostReason, Wall};
use bytes::{Bytes, BytesMut};
use std::time::Duration;

/// What a record says about its task's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) attempt: u32,
    pub(super) failures: u32,
    pub(super) cover: u32,
    /// The copy was made while a worker had the task.
    pub(super) running: bool,
    /// Zero if the record can be considered at once.
    pub(super) due: Wall,
    /// How far ahead `due` was when it was set.
    pub(super) ahead: Duration,
}

impl Meta {
    /// A task as published, without a delay.
    pub(super) const NONE: Meta =
        Meta { attempt: 0, failures: 0, cover: 0, running: false, due: Wall(0), ahead: Duration::ZERO };

    /// When the record is due. A time that is further ahead than it was when it was set comes from a wrong clock.
    fn due(&self, now: Wall, clock_skew: Duration) -> Wall {
        if self.due > now.plus(self.ahead).plus(clock_skew) { now.plus(self.ahead) } else { self.due }
    }
}

/// What the store holds for a task, as last read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ObservedLease {
    Missing,
    /// Bytes that aren't a lease. They count as missing.
    Unreadable(Bytes),
    Lease(Lease),
    /// Readable only by this later version.
    Newer(u8, Bytes),
}

impl ObservedLease {
    pub(super) fn of(value: Option<Bytes>) -> ObservedLease {
        let Some(value) = value else { return ObservedLease::Missing };
        match Lease::decode(&value) {
            Ok(lease) => ObservedLease::Lease(lease),
            Err(DecodeError::Damaged(_) | DecodeError::Foreign) => ObservedLease::Unreadable(value),
            Err(DecodeError::Newer(version)) => ObservedLease::Newer(version, value),
        }
    }

    /// The stored value, byte for byte: a lease has only one encoding.
    pub(super) fn value(&self, arena: &mut BytesMut) -> Option<Bytes> {
        match self {
            ObservedLease::Missing => None,
            ObservedLease::Lease(lease) => Some(lease.encode_in(arena)),
            ObservedLease::Unreadable(value) | ObservedLease::Newer(_, value) => Some(value.clone()),
        }
    }

    pub(super) fn lease(&self) -> Option<&Lease> {
        match self {
            ObservedLease::Lease(lease) => Some(lease),
            _ => None,
        }
    }
}

/// What is to be done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Swap to live, and run it.
    Take(Take),
    /// Its failures or hand-outs are used up: swap to live, and dead-letter it.
    DeadLetter(Take),
    /// Nothing is left to do: finish the record.
    Finish,
    /// A clock was wrong: swap the deadline to the lease's length from now, and apply the rule again.
    Reset,
    /// Park it: copy it, to be considered again at `due`.
    Park { due: Wall },
}

/// The counts that a take of the lease writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Take {
    pub(super) attempt: u32,
    pub(super) failures: u32,
    /// The previous attempt counts as failed, since its lease expired.
    pub(super) ran_out: bool,
}

impl Take {
    /// The first attempt of a task.
    pub(super) const FIRST: Take = Take { attempt: 1, failures: 0, ran_out: false };
}

/// The settings that the rule depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) lease: Duration,
    pub(super) clock_skew: Duration,
    /// How long the end of a task is remembered, and `max_overdue` more.
    pub(super) remembered: Duration,
    pub(super) max_failures: u32,
    pub(super) max_handouts: u32,
}

/// Applies the record rule: the first matching row.
pub(super) fn consider(record: Meta, observed: &ObservedLease, now: Wall, limits: Limits) -> Verdict {
    let record_due = record.due(now, limits.clock_skew);
    let lease = match observed {
        ObservedLease::Missing | ObservedLease::Unreadable(_) if record_due > now => {
            return Verdict::Park { due: record_due };
        }
        // Without a lease it is unknown whether the worker that had the task failed, so it counts as failed.
        ObservedLease::Missing | ObservedLease::Unreadable(_) => {
            return hand_out(record.attempt, record.failures, record.running, limits);
        }
        ObservedLease::Newer(..) => return Verdict::Park { due: now.plus(limits.lease).max(record_due) },
        ObservedLease::Lease(lease) => lease,
    };
    if lease.state.is_terminal() || lease.cover > record.cover {
        return Verdict::Finish;
    }
    if deadline(lease, now, limits) != lease.deadline {
        return Verdict::Reset;
    }
    // The lease may be gone by then, and then the copy's own time is all there is.
    let due = reconsider_at(lease, now, limits).max(record_due);
    if due > now {
        return Verdict::Park { due };
    }
    // A prefetched job may never have begun: another job may have crashed the process.
    let ran_out = lease.state == LeaseState::Live && !lease.prefetched;
    hand_out(record.attempt.max(lease.attempt), record.failures.max(lease.failures), ran_out, limits)
}

/// The deadline. One that is further ahead than the lease's own length comes from a wrong clock and is limited to that.
fn deadline(lease: &Lease, now: Wall, limits: Limits) -> Wall {
    let latest = now.plus(lease.length);
    if lease.deadline > latest.plus(limits.clock_skew) { latest } else { lease.deadline }
}

/// When others may take the task: a live lease is subject to another process's clock, an idle one is not.
pub(super) fn end(lease: &Lease, now: Wall, limits: Limits) -> Wall {
    let deadline = deadline(lease, now, limits);
    if lease.state == LeaseState::Live { deadline.plus(limits.clock_skew) } else { deadline }
}

/// When a copy is considered again: when others may take the task, or earlier if the job can be done and forgotten by
/// then. A copy that finds no lease executes its task.
pub(super) fn reconsider_at(lease: &Lease, now: Wall, limits: Limits) -> Wall {
    let end = end(lease, now, limits);
    if lease.state == LeaseState::Live { end.min(now.plus(limits.remembered)) } else { end }
}

fn hand_out(attempts: u32, failures: u32, ran_out: bool, limits: Limits) -> Verdict {
    let failures = failures.saturating_add(ran_out.into());
    let take = Take { attempt: attempts.saturating_add(1), failures, ran_out };
    let used_up = failures >= limits.max_failures || take.attempt > limits.max_handouts;
    if used_up { Verdict::DeadLetter(take) } else { Verdict::Take(take) }
}

/// The reason for a loss of the lease.
fn loss_reason(lease: &Lease) -> LostReason {
    match lease.state {
        LeaseState::Cancelled => LostReason::Cancelled,
        LeaseState::Dead => LostReason::Dead,
        LeaseState::Live | LeaseState::Idle | LeaseState::Done => LostReason::TakenOver,
    }
}

/// What the holder of a lease is trying to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    Done,
    Idle,
    Dead,
    /// Extend, renew, or raise the cover number.
    Keep,
}

/// What a conflict means for the holder of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// Nobody else has the task: swap again, over what was found.
    Again,
    /// An earlier attempt took effect.
    AlreadySo,
    Lost(LostReason),
}

/// Decides from the value that was found what a conflict means.
pub(super) fn conflict(own: LeaseToken, attempt: u32, intent: Intent, found: &ObservedLease) -> Conflict {
    let lease = match found {
        // The store was wiped or the lease has expired from it: nobody else holds the task.
        ObservedLease::Missing | ObservedLease::Unreadable(_) => return Conflict::Again,
        ObservedLease::Newer(..) => return Conflict::Lost(LostReason::TakenOver),
        ObservedLease::Lease(lease) => lease,
    };
    if lease.token == own {
        match (lease.state, intent) {
            (LeaseState::Live, _) => Conflict::Again,
            (LeaseState::Done, Intent::Done)
            | (LeaseState::Idle, Intent::Idle)
            | (LeaseState::Dead, Intent::Dead) => Conflict::AlreadySo,
            (LeaseState::Idle, Intent::Done | Intent::Dead) => Conflict::Again,
            _ => Conflict::Lost(loss_reason(lease)),
        }
    } else if intent == Intent::Done && !lease.state.is_terminal() && lease.attempt < attempt {
        // The store was rolled back: it remembers an earlier attempt than this one.
        Conflict::Again
    } else {
        Conflict::Lost(loss_reason(lease))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(1_000_000);
    const LIMITS: Limits = Limits {
        lease: Duration::from_secs(60),
        clock_skew: Duration::from_secs(1),
        remembered: Duration::from_secs(3600),
        max_failures: 3,
        max_handouts: 9,
    };

    fn token(number: u64) -> LeaseToken {
        LeaseToken { process: [7; 16], number }
    }

    fn lease(state: LeaseState, attempt: u32, cover: u32, from_now: i64) -> Lease {
        let deadline = Wall(NOW.0.saturating_add_signed(from_now));
        Lease { attempt, cover, ..Lease::new(state, token(1), deadline, Duration::from_secs(60)) }
    }

    fn record(attempt: u32, cover: u32, due_from_now: i64) -> Meta {
        let due = Wall(NOW.0.saturating_add_signed(due_from_now));
        Meta { attempt, cover, due, ahead: Duration::from_secs(10), ..Meta::NONE }
    }

    fn take(attempt: u32, failures: u32, ran_out: bool) -> Take {
        Take { attempt, failures, ran_out }
    }

    fn verdict(record: Meta, lease: Lease) -> Verdict {
        consider(record, &ObservedLease::Lease(lease), NOW, LIMITS)
    }

    #[test]
    fn missing_lease_is_taken_with_the_counts_of_the_record() {
        let of = |meta| consider(meta, &ObservedLease::Missing, NOW, LIMITS);
        assert_eq!(of(record(0, 0, 0)), Verdict::Take(take(1, 0, false)));
        assert_eq!(of(Meta { failures: 1, ..record(2, 5, 0) }), Verdict::Take(take(3, 1, false)));
        assert_eq!(of(Meta { failures: 3, ..record(3, 5, 0) }), Verdict::DeadLetter(take(4, 3, false)));
        let parked = Meta { failures: 1, running: true, ..record(2, 5, 0) };
        assert_eq!(
            of(parked),
            Verdict::Take(take(3, 2, true)),
            "a worker had it, and its outcome is unknown"
        );
        assert_eq!(
            of(Meta { failures: 2, ..parked }),
            Verdict::DeadLetter(take(3, 3, true)),
            "it failed for the last time"
        );
    }

    #[test]
    fn expired_live_lease_counts_as_a_failure_and_an_idle_or_prefetched_one_does_not() {
        let past = Lease { failures: 1, ..lease(LeaseState::Live, 5, 0, -1000) };
        assert_eq!(verdict(record(0, 0, 0), past.clone()), Verdict::Take(take(6, 2, true)));
        let prefetched = Lease { prefetched: true, ..past.clone() };
        assert_eq!(verdict(record(0, 0, 0), prefetched), Verdict::Take(take(6, 1, false)));
        let idle = Lease { state: LeaseState::Idle, ..past.clone() };
        assert_eq!(verdict(record(0, 0, 0), idle), Verdict::Take(take(6, 1, false)));
        let last = Lease { failures: 2, ..past };
        assert_eq!(verdict(record(0, 0, 0), last), Verdict::DeadLetter(take(6, 3, true)));
    }

    #[test]
    fn hand_outs_have_their_own_limit() {
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Idle, 8, 0, 0)),
            Verdict::Take(take(9, 0, false))
        );
        let used_up = Verdict::DeadLetter(take(10, 0, false));
        assert_eq!(verdict(record(0, 0, 0), lease(LeaseState::Idle, 9, 0, 0)), used_up);
    }

    #[test]
    fn unreadable_lease_counts_as_missing_and_a_newer_one_parks_the_record() {
        let newer = ObservedLease::of(Some(Bytes::from_static(&[0x33, 2, 3])));
        assert!(matches!(newer, ObservedLease::Newer(3, _)));
        let unreadable = ObservedLease::of(Some(Bytes::from_static(b"nonsense")));
        assert!(matches!(unreadable, ObservedLease::Unreadable(_)));
        for observed in [&newer, &unreadable] {
            assert!(observed.value(&mut BytesMut::new()).is_some(), "a swap has to expect what is stored");
        }
        let parked = Verdict::Park { due: NOW.plus(LIMITS.lease) };
        assert_eq!(consider(record(0, 0, 0), &newer, NOW, LIMITS), parked);
        assert_eq!(consider(record(0, 0, 0), &unreadable, NOW, LIMITS), Verdict::Take(take(1, 0, false)));
    }

    #[test]
    fn terminal_lease_or_higher_cover_number_finishes_the_record() {
        for state in [LeaseState::Done, LeaseState::Cancelled, LeaseState::Dead] {
            assert_eq!(verdict(record(0, 9, 0), lease(state, 1, 0, -5)), Verdict::Finish);
        }
        assert_eq!(verdict(record(0, 1, 0), lease(LeaseState::Live, 1, 2, 500)), Verdict::Finish);
        assert_ne!(verdict(record(0, 2, 0), lease(LeaseState::Live, 1, 2, 500)), Verdict::Finish);
    }

    #[test]
    fn live_lease_is_awaited_with_the_clock_skew_and_an_idle_one_without() {
        let skew = 1_000;
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Live, 1, 0, 500)),
            Verdict::Park { due: Wall(NOW.0 + 500 + skew) }
        );
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Live, 1, 0, -999)),
            Verdict::Park { due: Wall(NOW.0 + 1) }
        );
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Live, 1, 0, -1000)),
            Verdict::Take(take(2, 1, true))
        );
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Idle, 1, 0, 500)),
            Verdict::Park { due: Wall(NOW.0 + 500) }
        );
        assert_eq!(
            verdict(record(0, 0, 0), lease(LeaseState::Idle, 1, 0, 0)),
            Verdict::Take(take(2, 0, false))
        );
    }

    #[test]
    fn deadline_beyond_its_own_length_is_reset() {
        assert_eq!(verdict(record(0, 0, 0), lease(LeaseState::Live, 1, 0, 61_001)), Verdict::Reset);
        assert_ne!(verdict(record(0, 0, 0), lease(LeaseState::Live, 1, 0, 61_000)), Verdict::Reset);
    }

    #[test]
    fn copy_is_never_due_before_its_record() {
        let due = Verdict::Park { due: Wall(NOW.0 + 9_000) };
        assert_eq!(verdict(record(0, 0, 9_000), lease(LeaseState::Live, 1, 0, 500)), due);
        let day = Meta { ahead: Duration::from_secs(86_400), ..record(0, 0, 86_400_000) };
        assert_eq!(
            consider(day, &ObservedLease::Newer(9, Bytes::new()), NOW, LIMITS),
            Verdict::Park { due: day.due }
        );
    }

    #[test]
    fn record_that_is_not_due_is_parked_again() {
        assert_eq!(
            consider(record(0, 0, 9_000), &ObservedLease::Missing, NOW, LIMITS),
            Verdict::Park { due: Wall(NOW.0 + 9_000) }
        );
        assert_eq!(
            verdict(record(0, 0, 9_000), lease(LeaseState::Idle, 0, 0, -1)),
            Verdict::Park { due: Wall(NOW.0 + 9_000) }
        );
        assert_eq!(verdict(record(0, 0, 9_000), lease(LeaseState::Done, 1, 0, -1)), Verdict::Finish);
    }

    #[test]
    fn due_time_from_a_wrong_clock_is_limited_by_its_distance() {
        let soon = Verdict::Park { due: Wall(NOW.0 + 10_000) };
        assert_eq!(consider(record(0, 0, 50_000), &ObservedLease::Missing, NOW, LIMITS), soon);
        assert_eq!(verdict(record(0, 0, 50_000), lease(LeaseState::Live, 1, 0, -5_000)), soon);
        let due = Verdict::Park { due: Wall(NOW.0 + 11_000) };
        assert_eq!(
            consider(record(0, 0, 11_000), &ObservedLease::Missing, NOW, LIMITS),
            due,
            "within the clock skew"
        );
    }

    #[test]
    fn conflict_table() {
        let own = token(1);
        let of = |state, attempt| ObservedLease::Lease(lease(state, attempt, 0, 0));
        let theirs =
            |state, attempt| ObservedLease::Lease(Lease { token: token(2), ..lease(state, attempt, 0, 0) });
        use Conflict::{Again, AlreadySo, Lost};
        use LeaseState::{Cancelled, Dead, Done, Idle, Live};
        for (intent, found, means) in [
            (Intent::Done, of(Live, 2), Again),
            (Intent::Done, ObservedLease::Missing, Again),
            (Intent::Done, of(Done, 2), AlreadySo),
            (Intent::Done, theirs(Live, 1), Again),
            (Intent::Done, theirs(Idle, 1), Again),
            (Intent::Done, theirs(Live, 2), Lost(LostReason::TakenOver)),
            (Intent::Done, theirs(Done, 1), Lost(LostReason::TakenOver)),
            (Intent::Done, of(Cancelled, 2), Lost(LostReason::Cancelled)),
            (Intent::Done, theirs(Dead, 1), Lost(LostReason::Dead)),
            (Intent::Keep, ObservedLease::Missing, Again),
            (Intent::Keep, of(Live, 2), Again),
            (Intent::Keep, theirs(Live, 1), Lost(LostReason::TakenOver)),
            (Intent::Keep, of(Done, 2), Lost(LostReason::TakenOver)),
            (Intent::Idle, of(Idle, 2), AlreadySo),
            (Intent::Idle, ObservedLease::Missing, Again),
            (Intent::Idle, theirs(Live, 1), Lost(LostReason::TakenOver)),
            (Intent::Dead, of(Dead, 2), AlreadySo),
            (Intent::Dead, theirs(Idle, 3), Lost(LostReason::TakenOver)),
        ] {
            assert_eq!(conflict(own, 2, intent, &found), means, "{intent:?} finds {found:?}");
        }
    }
}
