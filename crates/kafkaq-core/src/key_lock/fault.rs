//! Deliberate bugs of the lock of a key, for the simulation to find.

crate::faults::faults! {
    /// A rule that is removed from the lock of a key.
    KeyLockFault:
    /// A lock is taken although its holder's lease has not expired.
    TakesFromTheLiving,
    /// The clocks are assumed to agree.
    SkewIgnored,
    /// A holder that could not renew continues.
    NeverExpires,
    /// The lease is counted from the response, not from the call.
    CountsFromAnswer,
    /// A take of unknown effect counts as done.
    UnknownIsTaken,
    /// A renewal of unknown effect counts as done.
    UnknownIsRenewed,
    /// Another holder's value is taken for this one's.
    OthersTakenForOwn,
    /// A holder that finds another's value overwrites it.
    OverwritesOthers,
    /// A release removes the value, whoever wrote it.
    ReleasesOthers,
    /// A release of unknown effect is not retried.
    ReleaseNotRepeated,
    /// An abandoned take is not undone.
    TakeNotUndone,
    /// The lease of a dead holder is waited for until the store forgets it.
    NoTakeover,
    /// A renewal whose response was lost is found in the store, and taken for another holder's.
    OwnRenewalForeign,
    /// A lock that the store has lost is given up, although its lease has not expired.
    LossGivesUp,
    /// A late write of this holder that was found is left when the take is abandoned.
    LateOwnLeft,
    /// A suspended machine relies on its monotonic clock alone.
    WallIgnored,
    /// The store keeps a lock only for the lease, without the clock skew.
    TtlWithoutSkew,
    /// A renewed lock is taken for one that was not renewed.
    RenewalOverlooked,
}
