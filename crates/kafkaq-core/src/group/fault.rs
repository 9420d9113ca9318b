//! Deliberate bugs, each a rule taken out, for the simulation to find.

/// A rule that is taken out of the group's machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupFault {
    /// A partition is taken although its owner is alive.
    TakesFromTheLiving,
    /// A member that could not renew goes on (hole 18).
    NeverStops,
    /// A lower commit replaces a higher one.
    CursorGoesBack,
    /// A commit is confirmed when it is sent, whatever the store answers.
    CommitUnconfirmed,
    /// The log's checkpoint is not looked at (hole 16).
    CheckpointIgnored,
    /// The cursor is believed although its topic was made anew (hole 15).
    MarkIgnored,
    /// Nobody asks for a partition, so the first member keeps all.
    NoBalance,
    /// A conflict is overwritten, whoever owns the partition now.
    ConflictOverwritten,
    /// A dead member's partitions are never taken.
    NoExpiry,
}

impl GroupFault {
    /// All of them.
    pub const ALL: &[GroupFault] = &[
        GroupFault::TakesFromTheLiving,
        GroupFault::NeverStops,
        GroupFault::CursorGoesBack,
        GroupFault::CommitUnconfirmed,
        GroupFault::CheckpointIgnored,
        GroupFault::MarkIgnored,
        GroupFault::NoBalance,
        GroupFault::ConflictOverwritten,
        GroupFault::NoExpiry,
    ];
}
