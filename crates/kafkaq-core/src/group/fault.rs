//! Deliberate bugs of the group's machine, for the simulation to find.

crate::faults::faults! {
    /// A rule that is removed from the group's machine.
    GroupFault:
    /// A partition is taken although its owner is alive.
    TakesFromTheLiving,
    /// A member that could not renew continues.
    NeverStops,
    /// A new owner keeps the epoch of the last one.
    EpochKept,
    /// A lower commit replaces a higher one.
    CursorGoesBack,
    /// A commit is confirmed when it is sent, whatever the store answers.
    CommitUnconfirmed,
    /// A stored cursor of an earlier topic confirms commits of this one.
    StaleStoredConfirms,
    /// The cursor is trusted although its topic was recreated.
    MarkIgnored,
    /// The log's checkpoint is ignored.
    CheckpointIgnored,
    /// The log's checkpoint is ignored if the store has a cursor, which may be an old one.
    StoreBelieved,
    /// The store's cursor is written to the log before the start is found.
    UnlocatedKept,
    /// A leaving member writes no checkpoint to the log.
    LeaveForgets,
    /// A conflict is overwritten, whoever owns the partition now.
    ConflictOverwritten,
    /// After the store lost data, an owner overwrites what another has committed since.
    OwnCursorKept,
    /// Nobody asks for a partition, so the first member keeps all.
    NoBalance,
    /// A partition is asked for although that doesn't improve balance.
    StealsForNothing,
    /// A revoked partition may be held forever.
    NoReleaseLimit,
    /// A dead member's partitions are never taken.
    NoExpiry,
    /// A member checks the others only once per timeout.
    LooksSeldom,
    /// A call for an earlier hold is applied to the current one.
    OldEpochTaken,
    /// The anchor is not compared with the log.
    AnchorIgnored,
    /// Commits carry no anchor until the first check.
    NoFirstAnchor,
    /// A reader compares nothing with the log.
    NeverChecks,
    /// A reader continues after a failure or a gap without a check.
    GapsIgnored,
    /// A log that doesn't return a record is mistaken for another one.
    EmptyIsProof,
    /// An empty response moves the position.
    EmptyMovesOn,
    /// A batch from below the position is skipped as a repeat.
    RepeatsPassed,
    /// A partition that is found broken is kept.
    BrokenKept,
    /// A missing topic is kept.
    MissingKept,
}
