//! librdkafka's log lines and troubles: the lines go to `tracing`, the last trouble into errors.

use crate::{error, locked};
use kafkaq_core::ErrorKind;
use rdkafka::{Statistics, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode as Code};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};
use tracing::level_filters::LevelFilter;

/// What librdkafka has to tell at all, so that nothing is formatted only to be thrown away.
pub(crate) fn level() -> RDKafkaLogLevel {
    match LevelFilter::current() {
        LevelFilter::OFF => RDKafkaLogLevel::Emerg,
        LevelFilter::ERROR => RDKafkaLogLevel::Error,
        LevelFilter::WARN => RDKafkaLogLevel::Warning,
        LevelFilter::INFO => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

/// What each client writes again and again while it has no connection. [`Trouble`] tells it once, for all of them.
const CONNECTIONS: &[&str] = &["ERROR", "FAIL", "GETPID", "METADATA", "REQTMOUT", "SESSTMOUT"];

pub(crate) fn forward(level: RDKafkaLogLevel, facility: &str, line: &str) {
    use RDKafkaLogLevel::*;
    match level {
        // A setting that is given to both sides and concerns one: by design.
        _ if facility == "CONFWARN" || CONNECTIONS.contains(&facility) => {
            tracing::debug!(target: "librdkafka", facility, "{line}");
        }
        Emerg | Alert | Critical | Error => tracing::error!(target: "librdkafka", facility, "{line}"),
        Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
        Notice | Info => tracing::info!(target: "librdkafka", facility, "{line}"),
        Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
    }
}

/// How often a trouble that lasts is told.
const AGAIN: Duration = Duration::from_secs(60);
/// librdkafka repeats an error that stays the same every 30 s: after so long without one it is over.
const FORGOTTEN: Duration = Duration::from_secs(90);

/// What goes wrong with the connections of all clients of a handle: told in the log when it begins, while it lasts and
/// when it ends, and in the error of whatever ran out of time for it.
#[derive(Debug)]
pub(crate) struct Trouble {
    bootstrap: String,
    current: Mutex<Troubles>,
}

impl Trouble {
    pub(crate) fn new(bootstrap: &str) -> Self {
        Trouble { bootstrap: bootstrap.to_owned(), current: Mutex::default() }
    }

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
        if !concerns_connections {
            return;
        }
        let is_total = code == Code::AllBrokersDown;
        let line = locked(&self.current).fails(Instant::now(), error::kind(code), reason, is_total);
        if let Some(line) = line {
            tracing::warn!(bootstrap = self.bootstrap, "{line}");
        }
    }

    /// A broker has answered.
    pub(crate) fn is_over(&self) {
        let line = locked(&self.current).ends(Instant::now());
        if let Some(line) = line {
            tracing::info!(bootstrap = self.bootstrap, "{line}");
        }
    }

    /// A client's own view of its connections.
    pub(crate) fn look_at(&self, statistics: &Statistics) {
        let states = statistics.brokers.values().map(|broker| (&*broker.name, &*broker.state));
        let line = locked(&self.current).look_at(Instant::now(), states);
        if let Some(line) = line {
            tracing::info!(bootstrap = self.bootstrap, "{line}");
        }
    }

    /// The last one, if it was seen within that time or lasts.
    pub(crate) fn within(&self, limit: Duration) -> Option<(ErrorKind, String)> {
        locked(&self.current).last(Instant::now(), limit)
    }
}

#[derive(Debug, Default)]
struct Troubles(Option<Current>);

#[derive(Debug)]
struct Current {
    began: Instant,
    seen: Instant,
    told: Instant,
    kind: ErrorKind,
    reason: String,
    /// No broker can be reached, as far as one of the clients knows.
    is_total: bool,
}

impl Troubles {
    /// Returns the line for the log, if it is time for one.
    fn fails(&mut self, now: Instant, kind: ErrorKind, reason: &str, is_total: bool) -> Option<String> {
        let current = match &mut self.0 {
            Some(current) if now.saturating_duration_since(current.seen) < FORGOTTEN => current,
            // A connection that was idle and is closed can be the last one. If more is wrong, a reason follows.
            _ if is_total => return None,
            none => {
                let reason = reason.to_owned();
                let line = format!("a connection to Kafka has failed: {reason}");
                *none = Some(Current { began: now, seen: now, told: now, kind, reason, is_total });
                return Some(line);
            }
        };
        (current.seen, current.is_total) = (now, current.is_total || is_total);
        // That all brokers are down says less than why one of them is.
        if !is_total {
            (current.kind, current.reason) = (kind, reason.to_owned());
        }
        if now.saturating_duration_since(current.told) < AGAIN {
            return None;
        }
        current.told = now;
        let (reason, since) = (&current.reason, now.saturating_duration_since(current.began));
        Some(format!("connections to Kafka fail since {} s: {reason}", since.as_secs()))
    }

    /// Connections to some brokers only may still fail while others answer: that ends when nothing is heard of it.
    fn ends(&mut self, now: Instant) -> Option<String> {
        let current = self.0.take_if(|current| current.is_total)?;
        let since = now.saturating_duration_since(current.began);
        Some(format!("Kafka answers again, after {} s", since.as_secs()))
    }

    fn look_at<'a>(
        &mut self,
        now: Instant,
        brokers: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Option<String> {
        let mut answers = false;
        for (name, state) in brokers {
            answers |= state == "UP";
            let is_it = |current: &&mut Current| current.reason.starts_with(&format!("{name}: "));
            match (self.0.as_mut().filter(is_it), state) {
                (Some(current), "UP") if !current.is_total => self.0 = None,
                // The client repeats an error that stays the same every 30 s only.
                (Some(current), "CONNECT" | "TRY_CONNECT") => current.seen = now,
                _ => {}
            }
        }
        if answers { self.ends(now) } else { None }
    }

    fn last(&self, now: Instant, limit: Duration) -> Option<(ErrorKind, String)> {
        let current = self.0.as_ref()?;
        let age = now.saturating_duration_since(current.seen);
        let is_current = age <= limit + Duration::from_secs(1) || (current.is_total && age < FORGOTTEN);
        is_current.then(|| (current.kind, current.reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(troubles: &mut Troubles, now: Instant, is_total: bool) -> Option<String> {
        troubles.fails(now, ErrorKind::Unavailable, "refused", is_total)
    }

    #[test]
    fn an_outage_is_one_line_when_it_begins_one_a_minute_and_one_when_it_ends() {
        let (mut troubles, mut now) = (Troubles::default(), Instant::now());
        let mut lines = Vec::new();
        for _ in 0..150 {
            // Several clients, each with its own attempts.
            for is_total in [false, true, false, true] {
                lines.extend(refused(&mut troubles, now, is_total));
            }
            now += SECOND;
        }
        lines.extend(troubles.ends(now));
        lines.extend(troubles.ends(now + SECOND));
        assert_eq!(
            lines,
            [
                "a connection to Kafka has failed: refused",
                "connections to Kafka fail since 60 s: refused",
                "connections to Kafka fail since 120 s: refused",
                "Kafka answers again, after 150 s",
            ]
        );
    }

    #[test]
    fn an_idle_connection_that_is_closed_is_no_outage() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(refused(&mut troubles, now, true), None);
        assert_eq!(troubles.last(now, SECOND), None);
        assert!(refused(&mut troubles, now, false).is_some());
    }

    #[test]
    fn a_reason_is_told_while_it_lasts_and_not_after() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let limit = 10 * SECOND;
        assert_eq!(troubles.last(now, limit), None);
        refused(&mut troubles, now, false);
        refused(&mut troubles, now, true);
        // The client repeats it every 30 s.
        let reason = Some((ErrorKind::Unavailable, "refused".to_owned()));
        assert_eq!(troubles.last(now + 29 * SECOND, limit), reason);
        troubles.ends(now + 29 * SECOND);
        assert_eq!(troubles.last(now + 29 * SECOND, limit), None, "a broker has answered");

        refused(&mut troubles, now, false);
        assert_eq!(troubles.last(now + 9 * SECOND, limit), reason);
        assert_eq!(troubles.last(now + 12 * SECOND, limit), None, "of an earlier outage");
        assert!(
            refused(&mut troubles, now + 200 * SECOND, false).is_some_and(|line| line.contains("has failed"))
        );
    }

    #[test]
    fn one_broker_of_several_does_not_end_with_an_answer_of_another() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        let lines = (0..100).filter_map(|second| {
            let line = refused(&mut troubles, now + second * SECOND, false);
            assert_eq!(troubles.ends(now + second * SECOND), None);
            line
        });
        assert_eq!(lines.count(), 2);
    }

    #[test]
    fn what_a_client_sees_of_a_broker_settles_whether_its_trouble_lasts() {
        let limit = 10 * SECOND;
        let now = Instant::now();
        let later = now + 20 * SECOND;
        for (state, lasts) in [("TRY_CONNECT", true), ("CONNECT", true), ("UP", false), ("INIT", false)] {
            let mut troubles = Troubles::default();
            troubles.fails(now, ErrorKind::Unavailable, "k2:9092/2: refused", false);
            let brokers = [("k1:9092/1", "UP"), ("k2:9092/2", state)];
            assert_eq!(troubles.look_at(later, brokers.into_iter()), None);
            assert_eq!(troubles.last(later, limit).is_some(), lasts, "{state}");
        }
        let mut troubles = Troubles::default();
        troubles.fails(now, ErrorKind::Unavailable, "k1:9092/1: refused", false);
        troubles.fails(now, ErrorKind::Unavailable, "1/1 brokers are down", true);
        let answered = troubles.look_at(later, [("k1:9092/1", "UP")].into_iter());
        assert!(answered.is_some_and(|line| line.contains("again")));
    }
}
