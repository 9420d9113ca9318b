//! Names of the users' headers that mean something without a worker, too.

/// The kind of a task: the `KIND` of its type.
pub(crate) const KIND_HEADER: &str = "task-kind";
/// The time after which it is no longer started, in milliseconds since 1970.
pub(crate) const EXPIRES_HEADER: &str = "task-expires-ms";
/// What happens then: `dead` dead-letters it; otherwise it is dropped.
pub(crate) const EXPIRED_HEADER: &str = "task-when-expired";
