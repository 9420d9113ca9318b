//! Deliberate bugs, each a rule taken out, for the simulation to find.

/// A rule that is taken out of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// A record counts as finished as soon as its job was handed out.
    CommitBeforeCover,
    /// A missing lease is taken for done.
    MissingIsDone,
    /// `done` overwrites whatever token it finds.
    DoneWithoutToken,
    /// A record is finished when its copy is sent, not when the log has acknowledged it.
    FinishBeforeAck,
    /// `retry` finishes the record with its swap, before the copy is durable.
    RetryFinishesAtSwap,
    /// The lease's cover number is raised before the copy is durable.
    RaiseBeforeAck,
    /// A swap of unknown effect is taken for applied.
    UnknownIsApplied,
    /// The commit is one record too far.
    PrefixOffByOne,
    /// A lost lease finishes the record (hole 1).
    ConflictFinishes,
    /// Later attempts are taken for the prefetch (hole 3).
    LateAttemptPrefetched,
    /// A copy is due at the deadline itself, without the clock skew (hole 4).
    ParkWithoutSkew,
    /// The cover number is raised for a copy that comes later than the lease ends (hole 7).
    RaiseForLater,
    /// Cover numbers are not looked at (hole 6).
    CoverIgnored,
    /// A deadline is believed however far ahead it lies (hole 12).
    DeadlineBelieved,
    /// Nobody wakes the machine when a record's time in its lane has passed.
    LostWakeup,
    /// A terminal lease does not stop another execution.
    TerminalIgnored,
    /// What is given back has used up its attempt.
    GiveBackCounts,
    /// A revoked partition's jobs stay in the hand-out queue.
    NoRecall,
    /// A failed dead letter finishes the task all the same.
    DeadLetterUnchecked,
    /// The attempts that the record knows are forgotten, so a wiped store starts them anew.
    AttemptsForgotten,
    /// A record whose copy the log refuses is not looked at again.
    RefusedCopyForgotten,
    /// A command waits for its append, also beyond the end of the lease.
    CommandNeverExpires,
    /// A record that only a later version can read stays where it is.
    NewerStays,
    /// A record below what was read is taken for a repeat, whatever it is.
    OtherLogIgnored,
    /// A lease that ran out is no failure.
    RunOutUncounted,
    /// Only the last try of a swap tells whether it took effect.
    DoubtForgotten,
    /// A lease that is found lost while the cover number is raised is taken for the own.
    LossAtRaiseIgnored,
    /// `done` gives way to a lower attempt, which a store that went back in time remembers.
    DoneOverLowerRefused,
    /// First attempts may keep all callers from redeliveries.
    NoFairShare,
    /// Nobody looks at due times again after the clock was set back.
    ClockBackIgnored,
    /// A due time in a lane is believed however far ahead it lies.
    DueBelieved,
    /// What nobody here asks for is kept.
    NothingHandedOver,
    /// A task that its holder gives back has failed once more.
    ReleaseCharged,
    /// A take that came to nothing still counts against those that may be under way.
    TakeNeverEnds,
}

impl Fault {
    /// All of them.
    pub const ALL: &[Fault] = &[
        Fault::CommitBeforeCover,
        Fault::MissingIsDone,
        Fault::DoneWithoutToken,
        Fault::FinishBeforeAck,
        Fault::RetryFinishesAtSwap,
        Fault::RaiseBeforeAck,
        Fault::UnknownIsApplied,
        Fault::PrefixOffByOne,
        Fault::ConflictFinishes,
        Fault::LateAttemptPrefetched,
        Fault::ParkWithoutSkew,
        Fault::RaiseForLater,
        Fault::CoverIgnored,
        Fault::DeadlineBelieved,
        Fault::LostWakeup,
        Fault::TerminalIgnored,
        Fault::GiveBackCounts,
        Fault::NoRecall,
        Fault::DeadLetterUnchecked,
        Fault::AttemptsForgotten,
        Fault::RefusedCopyForgotten,
        Fault::CommandNeverExpires,
        Fault::NewerStays,
        Fault::OtherLogIgnored,
        Fault::RunOutUncounted,
        Fault::DoubtForgotten,
        Fault::LossAtRaiseIgnored,
        Fault::DoneOverLowerRefused,
        Fault::NoFairShare,
        Fault::ClockBackIgnored,
        Fault::DueBelieved,
        Fault::NothingHandedOver,
        Fault::ReleaseCharged,
        Fault::TakeNeverEnds,
    ];
}
