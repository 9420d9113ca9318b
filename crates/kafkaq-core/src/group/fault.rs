//! Deliberate bugs, each a rule taken out, for the simulation to find.

/// A rule that is taken out of the group's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupFault {
    /// A partition is taken although its owner is alive.
    TakesFromTheLiving,
    /// A member that could not renew goes on (hole 18).
    NeverStops,
    /// A new owner keeps the epoch of the last one.
    EpochKept,
    /// A lower commit replaces a higher one.
    CursorGoesBack,
    /// A commit is confirmed when it is sent, whatever the store answers.
    CommitUnconfirmed,
    /// What the store holds of an earlier topic confirms commits of this one (hole 15).
    StaleStoredConfirms,
    /// The cursor is believed although its topic was made anew (hole 15).
    MarkIgnored,
    /// The log's checkpoint is not looked at (hole 16).
    CheckpointIgnored,
    /// The log's checkpoint is not looked at if the store has a cursor, which may be an old one (hole 16).
    StoreBelieved,
    /// Who leaves puts no checkpoint into the log (hole 16).
    LeaveForgets,
    /// A conflict is overwritten, whoever owns the partition now.
    ConflictOverwritten,
    /// After a loss of the store an owner writes over what another has committed since.
    OwnCursorKept,
    /// Nobody asks for a partition, so the first member keeps all.
    NoBalance,
    /// A partition is asked for although that makes nothing more equal.
    StealsForNothing,
    /// What is revoked may be held for ever.
    NoReleaseLimit,
    /// A dead member's partitions are never taken.
    NoExpiry,
    /// A member looks after the others once in a timeout.
    LooksSeldom,
}

impl GroupFault {
    /// All of them.
    pub const ALL: &[GroupFault] = &[
        GroupFault::TakesFromTheLiving,
        GroupFault::NeverStops,
        GroupFault::EpochKept,
        GroupFault::CursorGoesBack,
        GroupFault::CommitUnconfirmed,
        GroupFault::StaleStoredConfirms,
        GroupFault::MarkIgnored,
        GroupFault::CheckpointIgnored,
        GroupFault::StoreBelieved,
        GroupFault::LeaveForgets,
        GroupFault::ConflictOverwritten,
        GroupFault::OwnCursorKept,
        GroupFault::NoBalance,
        GroupFault::StealsForNothing,
        GroupFault::NoReleaseLimit,
        GroupFault::NoExpiry,
        GroupFault::LooksSeldom,
    ];
}
