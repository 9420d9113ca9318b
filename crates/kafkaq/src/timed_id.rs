//! Ids that every process derives in the same way from a name and a time.

use kafkaq_core::{Result, TaskId, Wall};

/// `<name>@<variant>.<Unix time in ms>`.
///
/// # Errors
/// `Invalid` if that is too long for an id.
pub(crate) fn timed_id(name: &str, variant: u64, time: Wall) -> Result<TaskId> {
    TaskId::new(format!("{name}@{variant}.{}", time.0))
}
