//! One error type for every backend: what failed, on what, whether it took effect, whether a retry helps.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// What went wrong, classified by how it is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The server could not be reached, or is temporarily unable to serve.
    Unavailable,
    /// There was no response within the limit.
    Timeout,
    /// The server asks for fewer requests.
    Throttled,
    /// A topic, a partition or a key doesn't exist.
    NotFound,
    /// Authentication or authorization failed.
    Denied,
    /// Larger than the server or the topic allows.
    TooLarge,
    /// The caller's input is invalid.
    Invalid,
    /// The server's configuration breaks a guarantee.
    Misconfigured,
    /// The partition is not, or no longer, assigned under this epoch.
    NotOwner,
    /// Bytes that can't be decoded.
    Corrupt,
    /// Records that were in the log are gone or were replaced by others.
    DataLoss,
    /// The server or the backend can't do this.
    Unsupported,
    /// The handle was closed.
    Closed,
    /// None of the above; see the source.
    Other,
}

impl ErrorKind {
    fn words(self) -> &'static str {
        match self {
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Timeout => "no response in time",
            ErrorKind::Throttled => "throttled",
            ErrorKind::NotFound => "not found",
            ErrorKind::Denied => "denied",
            ErrorKind::TooLarge => "too large",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Misconfigured => "misconfigured",
            ErrorKind::NotOwner => "not the owner",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::DataLoss => "data loss",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Closed => "closed",
            ErrorKind::Other => "failed",
        }
    }
}

/// Whether the operation took effect. There is no third value and no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// It certainly did not happen, and won't happen later.
    NotApplied,
    /// It may have happened, or may still happen: read back before you rely on either.
    Unknown,
}

/// Whether a retry helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// The same call will fail again.
    No,
    /// Yes, with a backoff.
    Yes,
    /// Yes, but not before this long.
    After(Duration),
}

/// The error of every backend call.
///
/// It is one word wide and cheap to clone, because one failed batch may be reported to a thousand callers. An adapter
/// names the operation; the code that distributes the error adds the topic, partition or key with [`Error::on`].
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    effect: Effect,
    retry: Retry,
    op: &'static str,
    on: Option<String>,
    advice: Option<Cow<'static, str>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// The result of a backend call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `op` certainly had no effect.
    #[must_use]
    pub fn not_applied(kind: ErrorKind, op: &'static str) -> Self {
        Self::new(kind, Effect::NotApplied, op)
    }

    /// `op` may have had its effect, or may still have it: a timeout, a broken connection.
    #[must_use]
    pub fn unknown(kind: ErrorKind, op: &'static str) -> Self {
        Self::new(kind, Effect::Unknown, op)
    }

    fn new(kind: ErrorKind, effect: Effect, op: &'static str) -> Self {
        let retry = match kind {
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled => Retry::Yes,
            _ => Retry::No,
        };
        Error(Arc::new(Inner { kind, effect, retry, op, on: None, advice: None, source: None }))
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Adds what the operation failed on: a topic, a partition, a key, an address. Context accumulates, outermost
    /// first: an address from the adapter stays when the driver adds the partition.
    #[must_use]
    pub fn on(self, what: impl fmt::Display) -> Self {
        self.edit(|i| {
            i.on = Some(match i.on.take() {
                Some(inner) => format!("{what}, {inner}"),
                None => what.to_string(),
            });
        })
    }

    /// Adds advice on what to do about it: a full sentence without the period.
    #[must_use]
    pub fn with_advice(self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|i| i.advice = Some(advice.into()))
    }

    /// Overrides whether a retry helps; by default it does for `Unavailable`, `Timeout` and `Throttled` only.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        self.edit(|i| i.retry = retry)
    }

    /// Sets the client library's error.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let source: Box<dyn std::error::Error + Send + Sync> = source.into();
        self.edit(|i| i.source = Some(source.into()))
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether it took effect.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Whether a retry helps.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// The operation, as the backend names it.
    #[must_use]
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// Returns the client library's error, if there is one, for downcasting. Its text is part of this error's text, so
    /// [`source`](std::error::Error::source) starts below it, as in [`std::io::Error`].
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }

    /// What to do about it, if known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let i = &*self.0;
        f.write_str(i.op)?;
        if let Some(on) = &i.on {
            write!(f, " on {on}")?;
        }
        write!(f, ": {}", i.kind.words())?;
        if let Some(source) = &i.source {
            write!(f, " ({source})")?;
        }
        if i.effect == Effect::Unknown {
            f.write_str("; it may have taken effect")?;
        }
        if let Some(advice) = &i.advice {
            write!(f, ". {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self}; {:?}, {:?}, {:?})", self.0.kind, self.0.effect, self.0.retry)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // `Display` prints the cause, so the source chain must not contain it again.
        self.0.source.as_deref().and_then(|cause| cause.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_operation_target_and_advice() {
        let e = Error::unknown(ErrorKind::Timeout, "append")
            .on("emails/3")
            .with_advice("Check that the broker is up");
        assert_eq!(
            e.to_string(),
            "append on emails/3: no response in time; it may have taken effect. Check that the broker is up"
        );
        assert_eq!((e.effect(), e.retry()), (Effect::Unknown, Retry::Yes));
    }

    #[test]
    fn a_chain_prints_each_cause_once() {
        let io = std::io::Error::other(std::fmt::Error);
        let e = Error::not_applied(ErrorKind::Unavailable, "append").with_source(io);
        assert_eq!(e.to_string().matches("an error occurred").count(), 1, "{e}");
        let below = std::iter::successors(std::error::Error::source(&e), |e| e.source());
        assert_eq!(below.count(), 0, "an io::Error prints its own cause too");
        assert!(e.cause().is_some_and(|cause| cause.is::<std::io::Error>()));
    }

    #[test]
    fn context_accumulates() {
        let e = Error::not_applied(ErrorKind::Unavailable, "append").on("localhost:9092").on("emails/3");
        assert_eq!(e.to_string(), "append on emails/3, localhost:9092: unavailable");
    }

    #[test]
    fn editing_a_clone_does_not_change_the_original() {
        let one = Error::not_applied(ErrorKind::TooLarge, "append").on("a/0");
        let two = one.clone().on("b/1");
        assert!(one.to_string().contains("a/0") && two.to_string().contains("b/1"));
    }
}
