//! Reports an adapter's outages to operators without flooding the log.

use crate::{Error, ErrorKind, Result, lock};
use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// How often an ongoing outage is reported.
const REMIND: Duration = Duration::from_secs(60);

/// An outage is over when nothing has failed for this long. So alternating successes and failures are one outage.
const CALM: Duration = Duration::from_secs(10);

/// Without a failure for this long an outage is over, whatever failed in it: the failed operation may never be tried
/// again.
const FORGET: Duration = Duration::from_secs(300);

/// Logs the outages of one server: a warning at the beginning, another per minute while it lasts, and a message at the
/// end. Each warning has the latest error, with its advice.
///
/// Pass it the outcome of every call. It depends only on these and has no timer. The messages are
/// [`tracing`](https://docs.rs/tracing) events with the target `kafkaq`.
///
/// ```
/// use kafkaq_core::{Error, ErrorKind, OutageLog, Result};
///
/// let log = OutageLog::new("Redis at 127.0.0.1:6379");
/// let outcomes: [Result<()>; 2] = [Ok(()), Err(Error::not_applied(ErrorKind::Unavailable, "swap"))];
/// log.observe("swap", &outcomes); // Redis at 127.0.0.1:6379 is failing: swap: unavailable
/// ```
#[derive(Debug)]
pub struct OutageLog {
    server: String,
    /// Lets successful calls avoid the lock.
    ongoing: AtomicBool,
    outage: Mutex<Option<Outage>>,
}

#[derive(Debug)]
struct Outage {
    began: Instant,
    last_line: Instant,
    last_failure: Instant,
    /// Since when everything that had failed has succeeded.
    recovered: Option<Instant>,
    failures: u64,
    /// The operations that have failed and not succeeded since. Reads may succeed while writes fail.
    failing: Vec<&'static str>,
}

#[derive(Debug, PartialEq)]
enum Line {
    Begins,
    Lasts { for_: Duration, failures: u64 },
    Over { after: Duration, failures: u64 },
}

impl OutageLog {
    /// Creates a log for the server with this name, with which messages start: `Redis at 127.0.0.1:6379`.
    #[must_use]
    pub fn new(server: impl Into<String>) -> Self {
        OutageLog { server: server.into(), ongoing: AtomicBool::new(false), outage: Mutex::new(None) }
    }

    /// Records the outcomes of one call of an operation. One failure makes it a failed call.
    pub fn observe<'a, T: 'a>(
        &self,
        operation: &'static str,
        outcomes: impl IntoIterator<Item = &'a Result<T>>,
    ) {
        let mut succeeded = false;
        for outcome in outcomes {
            match outcome {
                Ok(_) => succeeded = true,
                Err(error) if is_of_the_server(error.kind()) => return self.failed(operation, error),
                Err(_) => {}
            }
        }
        if succeeded {
            self.succeeded(operation);
        }
    }

    /// Records a failure. Errors about the request rather than the server don't count.
    pub fn failed(&self, operation: &'static str, error: &Error) {
        if is_of_the_server(error.kind())
            && let Some(line) = self.failed_at(Instant::now(), operation)
        {
            tracing::warn!(target: "kafkaq", "{} {line}: {error}", self.server);
        }
    }

    /// Records a success.
    pub fn succeeded(&self, operation: &'static str) {
        if self.ongoing.load(Relaxed)
            && let Some(line) = self.succeeded_at(Instant::now(), operation)
        {
            tracing::info!(target: "kafkaq", "{} {line}", self.server);
        }
    }

    fn failed_at(&self, now: Instant, operation: &'static str) -> Option<Line> {
        let mut current = lock(&self.outage);
        let Some(outage) = current.as_mut().filter(|outage| now < outage.last_failure + FORGET) else {
            *current = Some(Outage {
                began: now,
                last_line: now,
                last_failure: now,
                recovered: None,
                failures: 1,
                failing: vec![operation],
            });
            self.ongoing.store(true, Relaxed);
            return Some(Line::Begins);
        };
        outage.failures += 1;
        (outage.last_failure, outage.recovered) = (now, None);
        if !outage.failing.contains(&operation) {
            outage.failing.push(operation);
        }
        (now >= outage.last_line + REMIND).then(|| {
            outage.last_line = now;
            Line::Lasts { for_: now - outage.began, failures: outage.failures }
        })
    }

    fn succeeded_at(&self, now: Instant, operation: &'static str) -> Option<Line> {
        let mut current = lock(&self.outage);
        let outage = current.as_mut()?;
        outage.failing.retain(|failing| *failing != operation);
        let calm = if outage.failing.is_empty() { CALM } else { FORGET };
        let recovered = if outage.failing.is_empty() { *outage.recovered.get_or_insert(now) } else { now };
        if now < outage.last_failure + calm {
            return None;
        }
        let line = Line::Over { after: recovered - outage.began, failures: outage.failures };
        *current = None;
        self.ongoing.store(false, Relaxed);
        Some(line)
    }
}

/// Whether the error is about the server, not the request.
fn is_of_the_server(kind: ErrorKind) -> bool {
    use ErrorKind::{Denied, Misconfigured, Other, Throttled, Timeout, Unavailable, Unsupported};
    matches!(kind, Unavailable | Timeout | Throttled | Denied | Misconfigured | Unsupported | Other)
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = |n: &u64| if *n == 1 { "1 call".to_owned() } else { format!("{n} calls") };
        match self {
            Line::Begins => f.write_str("is failing"),
            Line::Lasts { for_, failures } => {
                write!(f, "has been failing for {} s, {} so far", for_.as_secs(), calls(failures))
            }
            Line::Over { after, failures } => {
                write!(f, "works again after {} s, {} failed", after.as_secs(), calls(failures))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Makes calls at these seconds; returns the log lines with the second of each.
    fn play(calls: impl IntoIterator<Item = (u32, &'static str, bool)>) -> Vec<(u32, String)> {
        let (log, start) = (OutageLog::new("x"), Instant::now());
        let line = |(second, operation, fails): (u32, &'static str, bool)| {
            let now = start + second * SECOND;
            let line = if fails { log.failed_at(now, operation) } else { log.succeeded_at(now, operation) };
            Some((second, line?.to_string()))
        };
        calls.into_iter().filter_map(line).collect()
    }

    fn lines<const N: usize>(expected: [(u32, &str); N]) -> Vec<(u32, String)> {
        expected.map(|(second, line)| (second, line.to_owned())).into()
    }

    #[test]
    fn an_outage_is_logged_when_it_begins_once_a_minute_and_when_it_is_over() {
        let calls = (0..300).map(|second| (second, "swap", (10..150).contains(&second)));
        let expected = lines([
            (10, "is failing"),
            (70, "has been failing for 60 s, 61 calls so far"),
            (130, "has been failing for 120 s, 121 calls so far"),
            (159, "works again after 140 s, 140 calls failed"),
        ]);
        assert_eq!(play(calls), expected);
    }

    #[test]
    fn calls_that_fail_and_succeed_in_turn_are_one_outage() {
        let calls = (0..60).map(|second| (second, "swap", second % 2 == 0));
        assert_eq!(play(calls), lines([(0, "is failing")]));
    }

    #[test]
    fn reads_that_succeed_do_not_end_an_outage_of_swaps() {
        let calls = [(0, "swap", true), (1, "get", false), (50, "get", false), (51, "swap", false)];
        let expected = lines([(0, "is failing"), (51, "works again after 51 s, 1 call failed")]);
        assert_eq!(play(calls), expected);
    }

    #[test]
    fn an_operation_that_is_never_tried_again_is_forgotten() {
        let calls = [(0, "check", true), (1, "get", false), (299, "get", false), (300, "get", false)];
        let expected = lines([(0, "is failing"), (300, "works again after 300 s, 1 call failed")]);
        assert_eq!(play(calls), expected);
        let again = [(0, "check", true), (300, "get", true)];
        assert_eq!(play(again), lines([(0, "is failing"), (300, "is failing")]));
    }

    #[test]
    fn errors_about_the_request_are_not_an_outage() {
        let log = OutageLog::new("x");
        let error = |kind| Err::<(), _>(Error::not_applied(kind, "swap"));
        log.observe("swap", &[error(ErrorKind::TooLarge), error(ErrorKind::Closed), Ok(())]);
        assert!(!log.ongoing.load(Relaxed));
        log.observe("swap", &[Ok(()), error(ErrorKind::TooLarge), error(ErrorKind::Timeout)]);
        assert!(log.ongoing.load(Relaxed), "one item of a batch failed because of an outage");
    }
}
