//! Why a job's lease was lost.

/// Why a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// It expired, and another worker has the task or has finished it.
    TakenOver,
    /// The task was cancelled.
    Cancelled,
    /// The task was dead-lettered.
    Dead,
    /// The job is over: it was done, retried, snoozed, released or rejected through this handle.
    Over,
}
