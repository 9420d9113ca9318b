//! A call: how long it may take, and the errors of one that reached no server or got no answer.

use crate::{Error, ErrorKind, Operation, out_of_descriptors};
use std::{error::Error as StdError, fmt, time::Duration};
use tokio::time::Instant;

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
    /// Starts a call now.
    #[must_use]
    pub fn new(operation: Operation, limit: Duration) -> Self {
        Call { operation, limit, started: Instant::now() }
    }

    /// Returns a part of this call, under a name of its own.
    #[must_use]
    pub fn part(self, operation: Operation) -> Self {
        Call { operation, ..self }
    }

    /// Returns when it has to end.
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

    /// The error of a call that timed out before anything was sent.
    #[must_use]
    pub fn not_sent(&self, server: impl fmt::Display) -> Error {
        self.operation.not_applied(ErrorKind::Timeout).with_advice(format!(
            "Nothing was sent within {:?}: {server} is too slow for so many calls",
            self.limit
        ))
    }
}

/// The error of an attempt to connect to this server; without a cause, the attempt timed out.
#[must_use]
pub fn unreachable(
    operation: Operation,
    server: impl fmt::Display,
    cause: Option<Box<dyn StdError + Send + Sync>>,
) -> Error {
    let cause = cause.unwrap_or_else(|| "no connection within the time limit".into());
    let advice = match out_of_descriptors(&*cause) {
        Some(advice) => advice.to_owned(),
        None => format!("Check that {server} runs and can be reached from here"),
    };
    operation.not_applied(ErrorKind::Unavailable).with_source(cause).with_advice(advice)
}
