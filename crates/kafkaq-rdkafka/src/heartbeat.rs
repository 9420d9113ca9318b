//! When a member of a KIP-848 group asks for changes, which is more often than the servers want it to.
//!
//! A member learns what changed from the answer to its next heartbeat. The interval is the servers', 5 s by default, and a
//! partition that moves takes several heartbeats, one after the other. librdkafka sends one at once whenever it is
//! subscribed, also to what it is subscribed to already; to the group that is a heartbeat like any other.

use std::time::{Duration, Instant};

const STEADY: Duration = Duration::from_secs(1);
/// While partitions move.
const MOVING: Duration = Duration::from_millis(250);
/// How long they may move after a change.
const SETTLED: Duration = Duration::from_secs(10);

pub(crate) struct Heartbeat {
    next: Instant,
    changed: Instant,
}

impl Heartbeat {
    pub(crate) fn new(now: Instant) -> Self {
        Heartbeat { next: now + MOVING, changed: now }
    }

    /// The group has changed what is this member's.
    pub(crate) fn changed(&mut self, now: Instant) {
        self.changed = now;
        self.next = self.next.min(now + MOVING);
    }

    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Returns whether one is due, and plans the one after it.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next;
        if is_due {
            let is_moving = now.duration_since(self.changed) < SETTLED;
            self.next = now + if is_moving { MOVING } else { STEADY };
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_asks_often_for_some_seconds_after_each_change_and_every_second_otherwise() {
        let begin = Instant::now();
        let asked = |heartbeat: &mut Heartbeat, from: u64, until: u64| {
            let seconds = Duration::from_secs;
            let mut now = begin + seconds(from);
            let mut count = 0;
            while now < begin + seconds(until) {
                count += u32::from(heartbeat.take(now));
                now = heartbeat.due();
            }
            count
        };
        let mut heartbeat = Heartbeat::new(begin);
        assert_eq!(asked(&mut heartbeat, 0, 10), 39);
        assert_eq!(asked(&mut heartbeat, 11, 20), 9);
        heartbeat.changed(begin + Duration::from_millis(19_500));
        assert_eq!(
            heartbeat.due(),
            begin + Duration::from_millis(19_750),
            "not after the second that was planned"
        );
        assert_eq!(asked(&mut heartbeat, 20, 29), 36);
        assert_eq!(asked(&mut heartbeat, 30, 40), 10);
    }
}
