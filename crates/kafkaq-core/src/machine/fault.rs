//! Deliberate bugs, each of which removes one rule, for the simulation to find.

use super::{
    Machine,
    rule::{self, ObservedLease, Verdict},
    slab::Ref,
};
use crate::{LeaseState, Wall};

crate::faults::faults! {
    /// A rule that is removed from the machine.
    Fault:
    /// A record is finished as soon as its lease is taken.
    CommitBeforeCover,
    /// A missing lease counts as done.
    MissingIsDone,
    /// `done` overwrites a lease with any token.
    DoneWithoutToken,
    /// A record is finished when its copy is sent, not when the log has acknowledged it.
    FinishBeforeAck,
    /// `retry` finishes the record with its swap, before the copy is durable.
    RetryFinishesAtSwap,
    /// The lease's cover number is raised before the copy is durable.
    RaiseBeforeAck,
    /// A swap of unknown effect counts as applied.
    UnknownIsApplied,
    /// Commits are one record too far.
    PrefixOffByOne,
    /// A lost lease finishes the record.
    ConflictFinishes,
    /// Redeliveries are prefetched.
    LateAttemptPrefetched,
    /// A copy is due at the lease's deadline, without the clock skew.
    ParkWithoutSkew,
    /// A copy waits for the end of a lease, however soon the end of its task may be forgotten.
    ParkedTooLong,
    /// The cover number is raised for a copy that is due after the end of the lease.
    RaiseForLater,
    /// Cover numbers are ignored.
    CoverIgnored,
    /// A deadline is trusted however far ahead it is.
    DeadlineBelieved,
    /// No timeout is set for a record that leaves its lane.
    LostWakeup,
    /// A done task is executed again.
    TerminalIgnored,
    /// Giving a job back uses up its attempt.
    GiveBackCounts,
    /// Ready jobs of a revoked partition are not recalled.
    NoRecall,
    /// Ready jobs whose leases become short are not recalled.
    ReadyForgotten,
    /// A refused dead letter finishes the task all the same.
    DeadLetterUnchecked,
    /// The record's count of attempts is ignored, so that a wiped store restarts it.
    AttemptsForgotten,
    /// A record whose copy the log refuses is not considered again.
    RefusedCopyForgotten,
    /// A command waits for its append, even beyond the end of the lease.
    CommandNeverExpires,
    /// A record that only a later version can read is not forwarded.
    NewerStays,
    /// Any record at an offset that was read before counts as a repeat.
    OtherLogIgnored,
    /// An expired lease doesn't count as a failure.
    RunOutUncounted,
    /// Only the last attempt decides whether a command may have taken effect.
    DoubtForgotten,
    /// The loss of a lease is ignored when raising its cover number finds it.
    LossAtRaiseIgnored,
    /// `done` doesn't overwrite a lower attempt of a store that was rolled back.
    DoneOverLowerRefused,
    /// First attempts may starve redeliveries.
    NoFairShare,
    /// Due times are not limited when the clock was set back.
    ClockBackIgnored,
    /// A due time in a lane is trusted however far ahead it is.
    DueBelieved,
    /// Unclaimed tasks are not handed over.
    NothingHandedOver,
    /// A release counts as a failure.
    ReleaseCharged,
    /// A take that failed still counts as under way.
    TakeNeverEnds,
    /// Suspects are started together until they are dead-lettered.
    SuspectsTogether,
    /// A new owner starts tasks without a lease that an earlier owner may have started.
    UnleasedFromTheStart,
    /// Tasks are started without a lease however far they lie beyond the committed offset.
    UnleasedAnyDistance,
    /// A job that was started without a lease never gets one.
    NeverLeased,
    /// A partition moves although its next owner can't know of the jobs that still run. Removes the leases, the copies,
    /// and the wait for both, since each of them hides the loss of the others.
    MovedUnleased,
}

impl Machine {
    /// Changes a verdict as if a row of the rule were removed.
    pub(super) fn break_verdict(&self, r: Ref, mut verdict: Verdict) -> Verdict {
        if self.config.settings.planted.is_nothing() {
            return verdict;
        }
        let Some(item) = self.items.get(r) else { return verdict };
        let broken = |fault| self.config.has_fault(fault);
        if broken(Fault::RunOutUncounted)
            && let Verdict::Take(take) | Verdict::DeadLetter(take) = &mut verdict
            && std::mem::take(&mut take.ran_out)
        {
            take.failures -= 1;
        }
        let lease = item.observed.lease().cloned();
        let consider = |observed| rule::consider(item.meta, &observed, self.clock.wall(), self.config.limits);
        match (verdict, lease) {
            (Verdict::Take(_), None) if broken(Fault::MissingIsDone) => Verdict::Finish,
            (Verdict::Finish, Some(mut lease))
                if broken(Fault::TerminalIgnored) && lease.state == LeaseState::Done =>
            {
                lease.state = LeaseState::Idle;
                consider(ObservedLease::Lease(lease))
            }
            (Verdict::Finish, Some(mut lease))
                if broken(Fault::CoverIgnored) && !lease.state.is_terminal() =>
            {
                lease.cover = 0;
                consider(ObservedLease::Lease(lease))
            }
            (Verdict::Reset, Some(mut lease)) if broken(Fault::DeadlineBelieved) => {
                lease.length = lease.deadline.since(Wall(0));
                consider(ObservedLease::Lease(lease))
            }
            (Verdict::Park { .. }, Some(lease))
                if broken(Fault::ParkWithoutSkew) && item.meta.due <= self.clock.wall() =>
            {
                Verdict::Park { due: lease.deadline }
            }
            (Verdict::Park { .. }, Some(lease))
                if broken(Fault::ParkedTooLong) && item.meta.due <= self.clock.wall() =>
            {
                Verdict::Park { due: rule::end(&lease, self.clock.wall(), self.config.limits) }
            }
            _ => verdict,
        }
    }
}
