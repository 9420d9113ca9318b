//! librdkafka's log lines and connection problems: the lines go to `tracing`, the last problem into errors.

use crate::error;
use kafkaq_core::{Error, ErrorKind, OutageLog, lock};
use rdkafka::{Statistics, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tracing::level_filters::LevelFilter;

/// The log level of librdkafka, so that nothing is formatted only to be discarded. Some problems are only reported at
/// level info.
pub(crate) fn level() -> RDKafkaLogLevel {
    match LevelFilter::current() {
        LevelFilter::OFF | LevelFilter::ERROR | LevelFilter::WARN | LevelFilter::INFO => {
            RDKafkaLogLevel::Info
        }
        _ => RDKafkaLogLevel::Debug,
    }
}

/// Lines that each client repeats while it has no connection. [`ConnectionErrors`] reports it once, for all of them.
const CONNECTIONS: &[&str] = &["ERROR", "FAIL", "GETPID", "METADATA", "REQTMOUT", "SESSTMOUT"];

fn forward(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::*;
    match level {
        // A setting that is passed to producers and consumers but applies to one of them: by design.
        _ if facility == "CONFWARN" || CONNECTIONS.contains(&facility) => {
            tracing::debug!(target: "librdkafka", facility, "{line}");
        }
        Emerg | Alert | Critical | Error => tracing::error!(target: "librdkafka", facility, "{line}"),
        Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
        Notice | Info => tracing::info!(target: "librdkafka", facility, "{line}"),
        Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// Whether a connection was closed as soon as it was used, as by a listener that requires credentials.
fn is_turned_away(line: &str) -> bool {
    let duration = line.split_once("(after ").and_then(|(_, rest)| rest.split_once("ms in state UP"));
    let is_short = duration.and_then(|(ms, _)| ms.parse::<u64>().ok()).is_some_and(|ms| ms < 1000);
    // The client may still be writing.
    let was_closed = ["Disconnected", "Send failed: Broken pipe", "Connection reset by peer"];
    was_closed.iter().any(|how| line.contains(how)) && (is_short || line.contains("security.protocol"))
}

/// librdkafka repeats an unchanged error every 30 s: after this long without one, it is over.
const FORGOTTEN: Duration = Duration::from_secs(90);
const CONNECT: &str = "connect";

/// Connection problems of all clients of a handle: logged while they last, and included in the errors of calls that
/// timed out.
#[derive(Debug)]
pub(crate) struct ConnectionErrors {
    outages: OutageLog,
    known: Mutex<Known>,
}

impl ConnectionErrors {
    pub(crate) fn new(bootstrap: &str) -> Self {
        ConnectionErrors { outages: OutageLog::new(format!("Kafka at {bootstrap}")), known: Mutex::default() }
    }

    /// Processes a line of a client's log.
    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        forward(level, facility, line);
        // The server may have closed the connection on purpose: librdkafka reports no error.
        if facility == "FAIL" && is_turned_away(line) {
            let reason = line.split_once("]: ").map_or(line, |(_, reason)| reason);
            self.fails(ErrorKind::Unavailable, reason, false);
        }
    }

    /// An error event.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let code = error::code_of(error);
        tracing::debug!(target: "librdkafka", %code, reason);
        let concerns_connections = matches!(
            code,
            Code::BrokerTransportFailure
                | Code::Resolve
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Authentication
                | Code::SSL
        );
        if concerns_connections {
            self.fails(error::kind(code), reason, code == Code::AllBrokersDown);
        }
    }

    fn fails(&self, kind: ErrorKind, reason: &str, is_total: bool) {
        let is_reason = lock(&self.known).fails(Instant::now(), kind, reason, is_total);
        if is_reason {
            self.outages.failed(CONNECT, &Error::not_applied(kind, CONNECT).with_source(reason));
        }
    }

    /// A broker has responded.
    pub(crate) fn is_over(&self) {
        let all_is_well = lock(&self.known).answers();
        if all_is_well {
            self.outages.succeeded(CONNECT);
        }
    }

    /// A client's own view of its connections.
    pub(crate) fn look_at(&self, statistics: &Statistics) {
        let states = statistics.brokers.values().map(|broker| (&*broker.name, &*broker.state));
        let some_answer = lock(&self.known).look_at(Instant::now(), states);
        if some_answer {
            self.is_over();
        }
    }

    /// The last problem, if it was seen within this time or persists.
    pub(crate) fn within(&self, limit: Duration) -> Option<(ErrorKind, String)> {
        lock(&self.known).last(Instant::now(), limit)
    }
}

#[derive(Debug, Default)]
struct Known {
    current: Option<Current>,
    /// Some broker has responded at some time.
    answered: bool,
    /// The last problem affected only some brokers, so responses of others don't resolve it.
    is_partial: bool,
}

#[derive(Debug)]
struct Current {
    seen: Instant,
    kind: ErrorKind,
    reason: String,
    /// One of the clients reports that no broker can be reached.
    is_total: bool,
}

impl Known {
    /// Records a failure. Returns whether it contains the cause.
    fn fails(&mut self, now: Instant, kind: ErrorKind, reason: &str, is_total: bool) -> bool {
        match &mut self.current {
            Some(current) if now.saturating_duration_since(current.seen) < FORGOTTEN => {
                current.seen = now;
                current.is_total |= is_total;
                // That all brokers are down is less specific than why one of them is.
                if !is_total {
                    (current.kind, current.reason) = (kind, reason.to_owned());
                }
            }
            // The last connection may just have been closed while idle. If more is wrong, a reason follows.
            _ if is_total => return false,
            none => *none = Some(Current { seen: now, kind, reason: reason.to_owned(), is_total }),
        }
        self.is_partial = self.current.as_ref().is_some_and(|current| !current.is_total);
        !is_total
    }

    /// Records a response. Returns whether nothing is known to fail any more.
    fn answers(&mut self) -> bool {
        self.answered = true;
        self.current.take_if(|current| current.is_total);
        !self.is_partial
    }

    /// Applies the states of brokers. Returns whether one of them responds.
    fn look_at<'a>(&mut self, now: Instant, brokers: impl Iterator<Item = (&'a str, &'a str)>) -> bool {
        let mut some_answer = false;
        for (name, state) in brokers {
            some_answer |= state == "UP";
            let is_it = |current: &&mut Current| current.reason.starts_with(&format!("{name}: "));
            match (self.current.as_mut().filter(is_it), state) {
                (Some(_), "UP") => (self.current, self.is_partial) = (None, false),
                // The client repeats an error that stays the same every 30 s only.
                (Some(current), "CONNECT" | "TRY_CONNECT") => current.seen = now,
                _ => {}
            }
        }
        some_answer
    }

    fn last(&self, now: Instant, limit: Duration) -> Option<(ErrorKind, String)> {
        let current = self.current.as_ref()?;
        let age = now.saturating_duration_since(current.seen);
        let is_current = age <= limit + Duration::from_secs(1) || (current.is_total && age < FORGOTTEN);
        let is_refused = !self.answered && is_turned_away(&current.reason);
        let kind = if is_refused { ErrorKind::Denied } else { current.kind };
        is_current.then(|| (kind, current.reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Duration = Duration::from_secs(10);

    fn refused(known: &mut Known, now: Instant, is_total: bool) -> bool {
        known.fails(now, ErrorKind::Unavailable, "k2:9092/2: refused", is_total)
    }

    #[test]
    fn closed_idle_connection_is_not_an_outage() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert!(!refused(&mut known, now, true));
        assert_eq!(known.last(now, SECOND), None);
        assert!(refused(&mut known, now, false));
    }

    #[test]
    fn reason_is_reported_only_while_it_lasts() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(known.last(now, LIMIT), None);
        refused(&mut known, now, false);
        refused(&mut known, now, true);
        // The client repeats it every 30 s.
        let reason = Some((ErrorKind::Unavailable, "k2:9092/2: refused".to_owned()));
        assert_eq!(known.last(now + 29 * SECOND, LIMIT), reason);
        assert!(known.answers());
        assert_eq!(known.last(now + 29 * SECOND, LIMIT), None, "a broker has answered");

        refused(&mut known, now, false);
        assert_eq!(known.last(now + 9 * SECOND, LIMIT), reason);
        assert_eq!(known.last(now + 12 * SECOND, LIMIT), None, "from an earlier outage");
        refused(&mut known, now + 200 * SECOND, false);
        assert_eq!(known.last(now + 200 * SECOND, LIMIT), reason);
    }

    #[test]
    fn disconnecting_listener_counts_as_a_refusal_unless_a_broker_has_ever_responded() {
        let now = Instant::now();
        let reason = "k:1/bootstrap: Disconnected: connection closed by peer (after 0ms in state UP)";
        assert!(!is_turned_away("k:1/1: Disconnected (after 600000ms in state UP)"), "it was idle");
        assert!(is_turned_away("k:1/bootstrap: Send failed: Broken pipe (after 0ms in state UP)"));
        assert!(!is_turned_away("k:1/1: Connect failed: Connection refused (after 0ms in state CONNECT)"));
        let mut known = Known::default();
        known.fails(now, ErrorKind::Unavailable, reason, false);
        assert_eq!(known.last(now, SECOND).unwrap().0, ErrorKind::Denied);
        known.answers();
        known.fails(now, ErrorKind::Unavailable, reason, false);
        assert_eq!(known.last(now, SECOND).unwrap().0, ErrorKind::Unavailable);
    }

    #[test]
    fn response_of_one_broker_does_not_clear_the_failure_of_another() {
        let (mut known, now) = (Known::default(), Instant::now());
        refused(&mut known, now, false);
        assert!(!known.answers());
        assert!(known.last(now, LIMIT).is_some());
        refused(&mut known, now, true);
        assert!(known.answers(), "all were down");
    }

    #[test]
    fn broker_states_decide_whether_a_failure_lasts() {
        let now = Instant::now();
        let later = now + 20 * SECOND;
        for (state, lasts) in [("TRY_CONNECT", true), ("CONNECT", true), ("UP", false), ("INIT", false)] {
            let mut known = Known::default();
            refused(&mut known, now, false);
            assert!(known.look_at(later, [("k1:9092/1", "UP"), ("k2:9092/2", state)].into_iter()));
            assert_eq!(known.last(later, LIMIT).is_some(), lasts, "{state}");
            assert_eq!(known.answers(), state == "UP", "{state}");
        }
    }
}
