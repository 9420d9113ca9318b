//! When a member of a KIP-848 group polls for changes, which is more often than the servers require.
//!
//! A member learns of changes from the response to its next heartbeat. The servers set the interval, 5 s by default,
//! and moving a partition takes several heartbeats, one after the other. librdkafka sends one at once whenever
//! `subscribe` is called, even with the current topics; to the group that is a heartbeat like any other.

use rdkafka::ClientConfig;
use std::time::{Duration, Instant};

const STEADY: Duration = Duration::from_secs(1);
/// The interval while partitions move.
const MOVING: Duration = Duration::from_millis(250);
/// How long partitions may keep moving after a change.
const SETTLED: Duration = Duration::from_secs(10);
/// The longest time that librdkafka waits before a heartbeat after failed ones. A sooner poll would restart that wait
/// each time, and no heartbeat would ever be sent.
const LONGEST_WAIT: &str = "retry.backoff.max.ms";
const SHORT_WAIT: Duration = Duration::from_millis(200);

pub(crate) struct Heartbeat {
    next: Instant,
    changed: Instant,
    /// Longer than any of librdkafka's waits.
    least: Duration,
}

impl Heartbeat {
    /// Creates it for a member with these settings, and shortens the member's waits, unless the user has set them.
    pub(crate) fn begin(config: &mut ClientConfig, now: Instant) -> Self {
        let set = config.get(LONGEST_WAIT).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        let wait = set.unwrap_or_else(|| {
            config.set(LONGEST_WAIT, SHORT_WAIT.as_millis().to_string());
            SHORT_WAIT
        });
        // It jitters by a fifth.
        Heartbeat { next: now, changed: now, least: wait * 5 / 4 }
    }

    /// Records that the group has changed this member's assignment.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.changed = now;
        self.next = self.next.min(now + MOVING.max(self.least));
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Returns whether one is due, and plans the one after it.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next;
        if is_due {
            let is_moving = now.duration_since(self.changed) < SETTLED;
            self.next = now + if is_moving { MOVING } else { STEADY }.max(self.least);
        }
        is_due
    }
}

/// With KIP-848 the group sends an assignment once. librdkafka 2.12 retries a heartbeat without a response, but doesn't
/// request the assignment again: partitions that the lost response revoked are never released, and those that it
/// assigned are never read.
pub(crate) fn is_lost_answer(facility: &str, line: &str) -> bool {
    facility == "REQTMOUT" && line.contains("ConsumerGroupHeartbeatRequest in flight")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many are taken from one millisecond to the other.
    fn taken(heartbeat: &mut Heartbeat, begin: Instant, from: u64, until: u64) -> u32 {
        let at = |ms| begin + Duration::from_millis(ms);
        let (mut now, mut count) = (at(from), 0);
        while now < at(until) {
            count += u32::from(heartbeat.take(now));
            now = heartbeat.due();
        }
        count
    }

    #[test]
    fn member_polls_often_for_some_seconds_after_a_change_and_every_second_otherwise() {
        let (begin, mut config) = (Instant::now(), ClientConfig::new());
        let mut heartbeat = Heartbeat::begin(&mut config, begin);
        assert_eq!(config.get(LONGEST_WAIT), Some("200"));
        assert_eq!(taken(&mut heartbeat, begin, 0, 10_000), 40);
        assert_eq!(taken(&mut heartbeat, begin, 11_000, 20_000), 9);
        heartbeat.changed(begin + Duration::from_millis(19_500));
        assert_eq!(
            heartbeat.due(),
            begin + Duration::from_millis(19_750),
            "not after the second that was planned"
        );
        assert_eq!(taken(&mut heartbeat, begin, 19_750, 29_500), 39);
        assert_eq!(taken(&mut heartbeat, begin, 30_500, 40_000), 10);
    }

    #[test]
    fn poll_interval_exceeds_the_longest_retry_backoff() {
        let (begin, mut config) = (Instant::now(), ClientConfig::new());
        config.set(LONGEST_WAIT, "4000");
        let mut heartbeat = Heartbeat::begin(&mut config, begin);
        assert_eq!(config.get(LONGEST_WAIT), Some("4000"));
        assert_eq!(taken(&mut heartbeat, begin, 0, 20_000), 4);
        heartbeat.changed(begin + Duration::from_secs(20));
        assert_eq!(taken(&mut heartbeat, begin, 20_000, 40_000), 4);
    }

    /// Copied from the log of librdkafka 2.12.1.
    #[test]
    fn only_a_heartbeat_that_was_sent_is_a_lost_answer() {
        let lost = "[thrd:GroupCoordinator]: GroupCoordinator/1: Timed out ConsumerGroupHeartbeatRequest in flight \
                    (after 593ms, timeout #0)";
        assert!(is_lost_answer("REQTMOUT", lost));
        assert!(
            !is_lost_answer("REQTMOUT", &lost.replace("in flight", "in output queue")),
            "it was not sent"
        );
        assert!(!is_lost_answer("REQTMOUT", &lost.replace("ConsumerGroupHeartbeat", "OffsetCommit")));
        assert!(!is_lost_answer("FAIL", lost));
    }
}
