//! Deliberate bugs of the lock of a key, for the simulation to find.

crate::faults::faults! {
    /// A rule that is taken out of the lock of a key.
    KeyLockFault:
    /// A lock is taken although its holder's time is not up.
    TakesFromTheLiving,
    /// The clocks are taken to show the same time.
    SkewIgnored,
    /// A holder that could not renew goes on.
    NeverExpires,
    /// The lease is counted from the answer, not from the call.
    CountsFromAnswer,
    /// A take of unknown effect counts as done.
    UnknownIsTaken,
    /// A renewal of unknown effect counts as done.
    UnknownIsRenewed,
    /// What another holder wrote passes for one's own.
    OthersTakenForOwn,
    /// A holder that finds another's value writes over it.
    OverwritesOthers,
    /// Whoever releases removes what is there, whosever it is.
    ReleasesOthers,
    /// A release of unknown effect is not repeated.
    ReleaseNotRepeated,
    /// A take that was given up is not undone.
    TakeNotUndone,
    /// What a dead holder left is waited for until the store forgets it.
    NoTakeover,
    /// A renewal whose answer was lost is found in the store, and taken for another's.
    OwnRenewalForeign,
    /// A lock that the store has lost is given up, though its time is not over.
    LossGivesUp,
    /// A write of one's own that came late and was found is left when the taking is given up.
    LateOwnLeft,
    /// A machine that was suspended goes by its monotonic clock alone.
    WallIgnored,
    /// The store is to keep a lock for the lease alone.
    TtlWithoutSkew,
    /// A holder that renews its lock is taken for one that has not.
    RenewalOverlooked,
}
