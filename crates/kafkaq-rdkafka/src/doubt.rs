//! Whether an earlier attempt may have appended a record that was refused in the end.
//!
//! librdkafka retries by itself, and reports only how the last attempt ended. Its own view (`rd_kafka_message_status`)
//! can't be read without `unsafe`, and trusts a leader that stepped down. But it logs each failed attempt, and in the
//! queue from which a client is polled, by one thread at a time, that line precedes the record's report.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// The debug context of these lines. It logs nothing about successes.
pub(crate) const CONTEXT: &str = "broker";

/// Parts of lines about attempts that certainly had no effect: the record is reported with this very error, or was
/// resent because it was out of order; or it was refused before anything was written.
const CERTAIN: [&str; 2] = ["actions Permanent", "failed: Broker: Unknown topic or partition:"];

/// Counts a client's failed attempts, for any record, that may have had an effect.
#[derive(Debug, Default)]
pub(crate) struct Doubts(AtomicU64);

impl Doubts {
    /// Processes a line of the client's log.
    pub(crate) fn log(&self, facility: &str, line: &str) {
        if leaves_doubt(facility, line) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

fn leaves_doubt(facility: &str, line: &str) -> bool {
    facility == "REQERR"
        && line.contains("ProduceRequest failed:")
        && !CERTAIN.iter().any(|how| line.contains(how))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copied from the log of librdkafka 2.12.1.
    #[test]
    fn only_attempts_that_certainly_had_no_effect_leave_no_doubt() {
        let line = |request: &str, error: &str, actions: &str| {
            format!("[thrd:k:9092/1]: k:9092/1: {request}Request failed: {error}: {actions}")
        };
        for (error, actions, doubtful) in [
            ("Broker: Topic authorization failed", "explicit actions Permanent,MsgNotPersisted", false),
            ("Broker: Message size too large", "actions Permanent,MsgNotPersisted", false),
            ("Broker: Unknown topic or partition", "explicit actions Refresh,MsgNotPersisted", false),
            ("Broker: Not leader for partition", "actions Refresh,MsgNotPersisted", true),
            ("Broker: Request timed out", "actions Retry,MsgPossiblyPersisted", true),
            ("Local: Timed out", "explicit actions Retry,MsgPossiblyPersisted", true),
            ("Local: Broker transport failure", "explicit actions Refresh,MsgPossiblyPersisted", true),
        ] {
            assert_eq!(leaves_doubt("REQERR", &line("Produce", error, actions)), doubtful, "{error}");
            assert!(!leaves_doubt("REQERR", &line("Metadata", error, actions)), "{error}");
        }
    }
}
