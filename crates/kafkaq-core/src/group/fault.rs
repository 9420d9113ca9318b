//! Deliberate bugs of the group's machine, for the simulation to find.

crate::faults::faults! {
    /// A rule that is taken out of the group's machine.
    GroupFault:
    /// A partition is taken although its owner is alive.
    TakesFromTheLiving,
    /// A member that could not renew goes on.
    NeverStops,
    /// A new owner keeps the epoch of the last one.
    EpochKept,
    /// A lower commit replaces a higher one.
    CursorGoesBack,
    /// A commit is confirmed when it is sent, whatever the store answers.
    CommitUnconfirmed,
    /// What the store holds of an earlier topic confirms commits of this one.
    StaleStoredConfirms,
    /// The cursor is believed although its topic was made anew.
    MarkIgnored,
    /// The log's checkpoint is not looked at.
    CheckpointIgnored,
    /// The log's checkpoint is not looked at if the store has a cursor, which may be an old one.
    StoreBelieved,
    /// Who leaves puts no checkpoint into the log.
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
    /// A call that names a hold which is over is taken for the present one.
    OldEpochTaken,
    /// The anchor is not compared with the log.
    AnchorIgnored,
    /// Until the first check commits carry no anchor.
    NoFirstAnchor,
    /// A reader compares nothing with the log.
    NeverChecks,
    /// A reader goes on after a failure or a gap as if nothing had been.
    GapsIgnored,
    /// A log that doesn't show a record is taken for another one.
    EmptyIsProof,
    /// An answer without records moves the position.
    EmptyMovesOn,
    /// A batch from below the position is passed over as a repeat.
    RepeatsPassed,
    /// A partition that is found broken is held on to.
    BrokenKept,
    /// A topic that is missing is held on to.
    MissingKept,
}
