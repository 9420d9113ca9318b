//! The ladder: delays of any length in the log, not in memory.
//!
//! ```text
//! lane 0   lane 1   lane 2 ...            lane n-2        lane n-1
//!  1 s      4 s      16 s                  4^(n-2) s       half a lease .. all of it, in one hop
//! ```
//! A record goes to the lane with the longest delay that is not longer than what remains, stays exactly that long, and
//! hops on with the remainder; if less than [`SLACK`] would remain, it stays for that as well. Because all records of a
//! lane stay about equally long, they leave it nearly in order. No partition belongs to two lanes, so a long delay
//! never blocks a short one. The last lane is for copies that wait for a lease to end: how long that takes differs, but
//! there are no more of them than jobs.

use crate::{TaskId, Wall};
use std::time::Duration;

/// A remainder below this is spent in the same lane. That saves hops, but is how far the records of a lane may be out of
/// order, and so how many have to be held in memory. Those of the first lane stay for up to four seconds.
const SLACK: Duration = Duration::from_secs(3);
/// How far ahead of its time a lane is read.
const AHEAD: Duration = Duration::from_secs(5);

/// Assigns delayed records to partitions of the wait topic.
#[derive(Clone, Debug)]
pub struct Ladder {
    lease: Duration,
    /// Lanes of powers of four; the lease lane follows them.
    steps: u32,
    partitions: u32,
}

impl Ladder {
    /// Returns the number of lanes of a queue, which its wait topic needs as partitions at least.
    #[must_use]
    pub fn lanes(max_delay: Duration) -> i32 {
        Self::steps(max_delay) as i32 + 1
    }

    fn steps(max_delay: Duration) -> u32 {
        // Never below one, and 4^15 s is 34 years.
        (1..15).find(|k| step(*k) > max_delay).unwrap_or(15)
    }

    /// Creates a ladder. `lease` is the longest that a copy waits for a lease: its length and the clock skew.
    /// `partitions` should be at least [`Ladder::lanes`].
    #[must_use]
    pub fn new(lease: Duration, max_delay: Duration, partitions: i32) -> Self {
        Ladder { lease, steps: Self::steps(max_delay), partitions: partitions.max(1) as u32 }
    }

    /// Returns the partition for a record that is due at `due`, and when it leaves it: at `due`, or to hop on.
    #[must_use]
    pub fn place(&self, now: Wall, due: Wall, id: &TaskId) -> (i32, Wall) {
        let rest = due.since(now);
        let lane = (1..self.steps).take_while(|k| step(*k) <= rest).last().unwrap_or(0);
        let stay = if rest < step(lane) + SLACK { rest } else { step(lane) };
        (self.partition(lane, id), now.plus(stay))
    }

    /// Like [`Ladder::place`], for a copy that waits for a live lease to expire.
    #[must_use]
    pub fn place_park(&self, now: Wall, due: Wall, id: &TaskId) -> (i32, Wall) {
        let rest = due.since(now);
        if rest >= self.lease / 2 && rest <= self.lease {
            (self.partition(self.steps, id), now.plus(rest))
        } else {
            self.place(now, due, id)
        }
    }

    /// Returns the longest that a record stays in the lane of `partition`.
    #[must_use]
    pub fn longest_stay(&self, partition: i32) -> Duration {
        let lane = partition.unsigned_abs() % self.lane_count();
        if lane == self.steps { self.lease } else { step(lane) + SLACK }
    }

    /// Returns how far a lane has to be read ahead. Behind a record of `partition` that leaves it later than that, no
    /// record leaves now, except one that was appended out of order or late. `None`: they may leave in any order.
    #[must_use]
    pub fn ahead(&self, partition: i32) -> Option<Duration> {
        let shared = self.partitions <= self.steps;
        let lane = partition.unsigned_abs() % self.lane_count();
        (!shared && lane != self.steps).then_some(SLACK + AHEAD)
    }

    /// Returns whether `partition` is always read to its end, since no record stays there for long.
    #[must_use]
    pub fn is_read_soon(&self, partition: i32) -> bool {
        self.ahead(partition).is_none_or(|ahead| self.longest_stay(partition) <= ahead)
    }

    fn lane_count(&self) -> u32 {
        // With too few partitions lanes share them: slower, never wrong.
        (self.steps + 1).min(self.partitions)
    }

    fn partition(&self, lane: u32, id: &TaskId) -> i32 {
        let lanes = self.lane_count();
        let lane = lane % lanes;
        let width = (self.partitions - lane).div_ceil(lanes);
        let pick = crate::partitioner::for_key(id.as_str().as_bytes(), width as i32) as u32;
        (lane + pick * lanes) as i32
    }
}

fn step(lane: u32) -> Duration {
    Duration::from_secs(4_u64.saturating_pow(lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Duration = Duration::from_secs(61);
    const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

    fn id(n: u32) -> TaskId {
        TaskId::new(format!("task-{n}")).unwrap()
    }

    #[test]
    fn delay_of_a_day_takes_few_hops() {
        let ladder = Ladder::new(LEASE, WEEK, Ladder::lanes(WEEK));
        let due = Wall(86_399_000);
        let (mut now, mut hops) = (Wall(0), 0);
        while now < due {
            now = ladder.place(now, due, &id(1)).1;
            hops += 1;
        }
        assert_eq!(now, due);
        assert!((5..=15).contains(&hops), "{hops}");
    }

    #[test]
    fn park_for_a_lease_takes_one_hop() {
        let ladder = Ladder::new(LEASE, WEEK, Ladder::lanes(WEEK));
        for rest in [30_500, 45_000, 61_000] {
            assert_eq!(ladder.place_park(Wall(7), Wall(7 + rest), &id(1)).1, Wall(7 + rest));
        }
    }

    proptest! {
        #[test]
        fn every_delay_ends_exactly_after_bounded_hops(
            delay in 0..WEEK.as_millis() as u64, extra in 0..9_i32, lease in 2_000..600_000_u64, n: u32,
        ) {
            let partitions = Ladder::lanes(WEEK) + extra;
            let ladder = Ladder::new(Duration::from_millis(lease), WEEK, partitions);
            let (mut now, due, mut hops) = (Wall(5), Wall(5 + delay), 0);
            while now < due {
                let (partition, leaves) = ladder.place(now, due, &id(n));
                prop_assert!((0..partitions).contains(&partition));
                prop_assert!(leaves > now && leaves <= due);
                prop_assert!(leaves.since(now) <= ladder.longest_stay(partition));
                now = leaves;
                hops += 1;
            }
            prop_assert!(hops <= 3 * Ladder::lanes(WEEK) + 3, "{} hops", hops);
        }

        #[test]
        fn partition_belongs_to_one_lane(a in 0..WEEK.as_millis() as u64, b in 0..WEEK.as_millis() as u64, n: u32, m: u32) {
            let ladder = Ladder::new(LEASE, WEEK, Ladder::lanes(WEEK) + 5);
            let (pa, la) = ladder.place(Wall(0), Wall(a), &id(n));
            let (pb, lb) = ladder.place(Wall(0), Wall(b), &id(m));
            if pa == pb && a >= 1000 && b >= 1000 {
                prop_assert!(la.since(lb).max(lb.since(la)) <= SLACK, "a head that leaves later blocks");
            }
        }

        #[test]
        fn fewer_partitions_than_lanes_share_them(partitions in 1..11_i32, delay in 0..WEEK.as_millis() as u64, n: u32) {
            let ladder = Ladder::new(LEASE, WEEK, partitions);
            let (partition, _) = ladder.place(Wall(0), Wall(delay), &id(n));
            prop_assert!((0..partitions).contains(&partition));
        }
    }
}
