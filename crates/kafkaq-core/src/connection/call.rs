//! A call: what it is named, how long it may take, and the errors of one that reached no server or got no answer.

use crate::{Error, ErrorKind};
use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};
use tokio::time::Instant;

/// An operation as its errors name it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    name: &'static str,
    changes: bool,
}

impl Operation {
    /// One that changes nothing: however it fails, it had no effect.
    #[must_use]
    pub const fn read(name: &'static str) -> Self {
        Operation { name, changes: false }
    }

    /// One that changes something.
    #[must_use]
    pub const fn write(name: &'static str) -> Self {
        Operation { name, changes: true }
    }

    /// What its errors call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// An error of an operation that certainly had no effect.
    #[must_use]
    pub fn not_applied(self, kind: ErrorKind) -> Error {
        Error::not_applied(kind, self.name)
    }

    /// An error of an operation that was sent.
    #[must_use]
    pub fn after_sending(self, kind: ErrorKind) -> Error {
        if self.changes { Error::unknown(kind, self.name) } else { self.not_applied(kind) }
    }

    /// An error of an operation whose handle was closed.
    #[must_use]
    pub fn closed(self) -> Error {
        self.not_applied(ErrorKind::Closed)
    }
}

/// An operation with the time by which it has to end.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What is done.
    pub operation: Operation,
    /// How long it may take.
    pub limit: Duration,
    pub(super) started: Instant,
}

impl Call {
    /// Begins now.
    #[must_use]
    pub fn new(operation: Operation, limit: Duration) -> Self {
        Call { operation, limit, started: Instant::now() }
    }

    /// A part of this call that has a name of its own.
    #[must_use]
    pub fn part(self, operation: Operation) -> Self {
        Call { operation, ..self }
    }

    /// By when it has to end.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.started + self.limit
    }

    /// The error of a call whose request was not answered in time by this server: `Redis at 127.0.0.1:6379`.
    #[must_use]
    pub fn timed_out(&self, server: impl fmt::Display) -> Error {
        self.operation.after_sending(ErrorKind::Timeout).with_advice(format!(
            "{server} did not answer within {:?}: check that it runs, is not overloaded, and can be reached",
            self.limit
        ))
    }

    /// The error of a call whose time was over before anything was sent.
    #[must_use]
    pub fn not_sent(&self, server: impl fmt::Display) -> Error {
        self.operation.not_applied(ErrorKind::Timeout).with_advice(format!(
            "Nothing was sent within {:?}: {server} is too slow for so many calls",
            self.limit
        ))
    }
}

/// The error of an attempt to connect to this server; without a cause it was not there in time.
#[must_use]
pub fn unreachable(
    operation: Operation,
    server: impl fmt::Display,
    cause: Option<Box<dyn StdError + Send + Sync>>,
) -> Error {
    let cause = cause.unwrap_or_else(|| "no connection in time".into());
    let advice = match out_of_descriptors(&*cause) {
        Some(advice) => advice.to_owned(),
        None => format!("Check that {server} runs and can be reached from here"),
    };
    operation.not_applied(ErrorKind::Unavailable).with_source(cause).with_advice(advice)
}

/// What to do if an error comes from file descriptors that are used up. The server is innocent then.
#[must_use]
pub fn out_of_descriptors(error: &(dyn StdError + 'static)) -> Option<&'static str> {
    // EMFILE and ENFILE, on every Unix.
    const USED_UP: [i32; 2] = [24, 23];
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if error.raw_os_error().is_some_and(|code| USED_UP.contains(&code)) {
                return Some(
                    "This process has used up its file descriptors: raise its limit (ulimit -n, LimitNOFILE), or look \
                     for what keeps them open",
                );
            }
            // Its source begins below the error that it wraps, and so does that of an `Arc`.
            next = error.get_ref().map(|inner| inner as &(dyn StdError + 'static)).or(next);
        } else if let Some(error) = error.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
            next = Some(&**error);
        }
    }
    None
}
