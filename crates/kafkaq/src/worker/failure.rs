//! Outcomes and failures that handlers return.

use std::{error::Error as StdError, fmt, time::Duration};

/// Any error, as handlers encounter them.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What happens to a task after an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The task is done and is never executed again.
    Done,
    /// The execution failed. The task is executed again after `delay`, or when the worker's
    /// [`Backoff`](super::Backoff) says so, in both cases after the queue's
    /// [`max_delay`](crate::QueueBuilder::max_delay) at the latest. After the last attempt it is dead-lettered.
    Retry {
        /// How long to wait; `None` leaves it to the worker's backoff.
        delay: Option<Duration>,
        /// Why it failed, for people. The last five reasons travel with the task.
        reason: String,
    },
    /// The task is postponed: it is executed again after this long, or after the queue's
    /// [`max_delay`](crate::QueueBuilder::max_delay) if that is shorter. This doesn't count as a failure, but as one of
    /// the queue's [`max_handouts`](crate::QueueBuilder::max_handouts).
    Snooze(Duration),
    /// The task can't succeed: it is dead-lettered with this reason.
    Reject(String),
}

/// Why an execution did not complete its task, and what to do with it.
///
/// `?` converts any error into one that is retried with the worker's backoff; the reason is its text and that of its
/// sources. Use [`ResultExt`] for something else. It doesn't implement `Error` itself, so that `?` can convert every
/// error into it.
#[derive(Debug)]
pub struct Failure(Outcome);

impl Failure {
    /// Retries the task, when the worker's backoff says so.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Failure(Outcome::Retry { delay: None, reason: reason.to_string() })
    }

    /// Retries the task after this long, at most the queue's [`max_delay`](crate::QueueBuilder::max_delay).
    pub fn retry_in(delay: Duration, reason: impl fmt::Display) -> Self {
        Failure(Outcome::Retry { delay: Some(delay), reason: reason.to_string() })
    }

    /// Executes the task again after this long, at most the queue's [`max_delay`](crate::QueueBuilder::max_delay),
    /// without counting a failure.
    #[must_use]
    pub fn snooze(delay: Duration) -> Self {
        Failure(Outcome::Snooze(delay))
    }

    /// Dead-letters the task.
    pub fn reject(reason: impl fmt::Display) -> Self {
        Failure(Outcome::Reject(reason.to_string()))
    }

    /// What happens to the task.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.0
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::retry(chain(&*error.into()))
    }
}

/// Decides what an error means for the task. Without it, `?` makes it a retry.
pub trait ResultExt<T> {
    /// The error is permanent: the task is dead-lettered.
    ///
    /// # Errors
    /// The error, as a [`Failure`] that rejects the task.
    fn reject(self) -> Result<T, Failure>;

    /// The task is retried after this long, at most the queue's [`max_delay`](crate::QueueBuilder::max_delay), whatever
    /// delay the worker's backoff says.
    ///
    /// # Errors
    /// The error, as a [`Failure`] with that delay.
    fn retry_in(self, delay: Duration) -> Result<T, Failure>;

    /// The error means that it is too early for the task: it is executed again after this long, at most the queue's
    /// [`max_delay`](crate::QueueBuilder::max_delay), and it doesn't count as a failure.
    ///
    /// # Errors
    /// A [`Failure`] that snoozes the task.
    fn snooze(self, delay: Duration) -> Result<T, Failure>;
}

impl<T, E: Into<BoxError>> ResultExt<T> for Result<T, E> {
    fn reject(self) -> Result<T, Failure> {
        self.map_err(|e| Failure::reject(chain(&*e.into())))
    }

    fn retry_in(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|e| Failure::retry_in(delay, chain(&*e.into())))
    }

    fn snooze(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|_| Failure::snooze(delay))
    }
}

/// An error with its sources. Many errors print their source themselves; it is not repeated.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let of_source = source.to_string();
        if !text.contains(&of_source) {
            text = format!("{text}: {of_source}");
        }
        next = source.source();
    }
    text
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "a handler can't return `{Self}`",
    label = "its handler returns a value that isn't an outcome of a task",
    note = "return `Result<(), Failure>` (any error becomes a `Failure` through `?`), `Outcome`, or nothing; and \
            give an `async` function to `on`, not to `on_blocking`"
)]
pub trait IntoOutcome {
    /// Returns what becomes of the task.
    fn into_outcome(self) -> Outcome;
}

#[diagnostic::do_not_recommend]
impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

#[diagnostic::do_not_recommend]
impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Done
    }
}

#[diagnostic::do_not_recommend]
impl<T: IntoOutcome> IntoOutcome for Result<T, Failure> {
    fn into_outcome(self) -> Outcome {
        self.map_or_else(|failure| failure.0, T::into_outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug)]
    struct Outer(io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the report was not sent")
        }
    }

    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    fn failed() -> Result<(), Outer> {
        Err(Outer(io::Error::other("the server is busy")))
    }

    fn outcome(handler: impl FnOnce() -> Result<(), Failure>) -> Outcome {
        handler().into_outcome()
    }

    #[test]
    fn any_error_is_retried_with_its_sources_by_default() {
        let reason = || "the report was not sent: the server is busy".to_owned();
        assert_eq!(outcome(|| Ok(failed()?)), Outcome::Retry { delay: None, reason: reason() });
        assert_eq!(outcome(|| failed().reject()), Outcome::Reject(reason()));
        let soon = Duration::from_secs(3);
        assert_eq!(
            outcome(|| failed().retry_in(soon)),
            Outcome::Retry { delay: Some(soon), reason: reason() }
        );
        assert_eq!(outcome(|| failed().snooze(soon)), Outcome::Snooze(soon));
        assert_eq!(outcome(|| Err("as text")?), Outcome::Retry { delay: None, reason: "as text".into() });
        assert_eq!(outcome(|| Ok(())), Outcome::Done);
    }

    #[test]
    fn a_source_that_its_error_prints_is_not_repeated() {
        let inner = io::Error::other("disk full");
        assert_eq!(chain(&io::Error::other(inner)), "disk full");
    }
}
