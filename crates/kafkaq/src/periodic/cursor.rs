//! Tracks which ticks of a schedule this process has yet to publish.

use super::{Missed, Schedule};
use kafkaq_core::Wall;
use std::time::Duration;

/// A tick that is this late is missed.
pub(super) const LATE: Duration = Duration::from_secs(60);
/// How many ticks are published in one call.
const BATCH: usize = 100;

/// A schedule's position in time.
#[derive(Debug)]
pub(super) struct Cursor {
    schedule: Schedule,
    /// The maximum age of published ticks.
    reach: Duration,
    /// Of several ticks that are due, only the last is published.
    only_last: bool,
    /// Ticks up to here are published or skipped. `None` at first.
    after: Option<Wall>,
}

/// What to do at one time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// To be published now, oldest first.
    pub(super) ticks: Vec<Wall>,
    /// The first of those that were skipped since the last call.
    pub(super) skipped: Option<Wall>,
    /// If none is to be published now: the next one.
    pub(super) next: Option<Wall>,
}

impl Cursor {
    pub(super) fn new(schedule: Schedule, missed: Missed, window: Duration) -> Self {
        let (reach, only_last) = match missed {
            Missed::Skip => (LATE, true),
            Missed::RunLast => (window, true),
            Missed::RunAll { within } => (within.max(LATE), false),
        };
        Cursor { schedule, reach: reach.min(window), only_last, after: None }
    }

    pub(super) fn due(&mut self, now: Wall) -> Due {
        let mut due = Due::default();
        let horizon = Wall(now.0.saturating_sub(u64::try_from(self.reach.as_millis()).unwrap_or(u64::MAX)));
        // A clock that was set back reaches its ticks again.
        let mut after = self.after.unwrap_or(horizon).min(now);
        if after < horizon {
            due.skipped = self.schedule.next_tick(after).filter(|tick| *tick <= horizon);
            after = horizon;
        }
        let Some(first) = self.schedule.next_tick(after) else { return due };
        if first > now {
            due.next = Some(first);
            self.after = Some(now);
            return due;
        }
        if self.only_last {
            let last = self.last(first, now);
            if last > first {
                if self.after.is_some() {
                    due.skipped = due.skipped.or(Some(first));
                }
                after = Wall(last.0 - 1);
            }
            due.ticks.push(last);
        } else {
            let following = |tick: &Wall| self.schedule.next_tick(*tick);
            let all = std::iter::successors(Some(first), following);
            due.ticks.extend(all.take_while(|tick| *tick <= now).take(BATCH));
        }
        self.after = Some(after);
        due
    }

    /// Ticks up to this one are finished.
    pub(super) fn handled(&mut self, tick: Wall) {
        self.after = self.after.max(Some(tick));
    }

    /// The last tick up to `now`, of which `first` is one: found by bisection, since there can be millions.
    fn last(&self, first: Wall, now: Wall) -> Wall {
        let next = |after| self.schedule.next_tick(after).filter(|tick| *tick <= now);
        let mut last = first;
        let Some(second) = next(first) else { return last };
        last = second;
        // There is no tick after `high`.
        let mut high = now;
        while last < high {
            let middle = Wall(last.0 + (high.0 - last.0) / 2);
            match next(middle) {
                Some(tick) => last = tick,
                None => high = middle,
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    /// A multiple of every period here.
    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> Wall {
        Wall((START + seconds) * 1000)
    }

    fn cursor(period: Duration, missed: Missed) -> Cursor {
        Cursor::new(Schedule::every(period).unwrap(), missed, HOUR)
    }

    /// Publishes all that is due; returns the seconds of the ticks.
    fn publish(cursor: &mut Cursor, now: u64) -> Vec<u64> {
        let mut all = Vec::new();
        loop {
            let due = cursor.due(at(now));
            let Some(last) = due.ticks.last() else { return all };
            all.extend(due.ticks.iter().map(|tick| tick.0 / 1000 - START));
            cursor.handled(*last);
        }
    }

    #[test]
    fn each_tick_is_due_once_and_at_its_time() {
        for missed in [Missed::Skip, Missed::RunLast, Missed::RunAll { within: HOUR }] {
            let mut cursor = cursor(300 * SECOND, missed);
            cursor.handled(at(1));
            assert_eq!(cursor.due(at(1)), Due { next: Some(at(300)), ..Due::default() });
            assert_eq!(publish(&mut cursor, 299), [0_u64; 0]);
            assert_eq!(publish(&mut cursor, 300), [300]);
            assert_eq!(publish(&mut cursor, 300), [0_u64; 0]);
            assert_eq!(publish(&mut cursor, 600), [600]);
        }
    }

    #[test]
    fn a_fresh_process_publishes_what_the_policy_asks_for() {
        let fresh = |missed, now| publish(&mut cursor(600 * SECOND, missed), now);
        assert_eq!(fresh(Missed::Skip, 7_259), [7_200], "it is not late yet");
        assert_eq!(fresh(Missed::Skip, 7_260), [0_u64; 0]);
        assert_eq!(fresh(Missed::RunLast, 7_790), [7_200]);
        let all = |within| Missed::RunAll { within };
        assert_eq!(fresh(all(1800 * SECOND), 7_300), [6_000, 6_600, 7_200]);
        assert_eq!(fresh(all(Duration::ZERO), 7_259), [7_200], "what is not late is not missed");
        assert_eq!(fresh(all(Duration::ZERO), 7_260), [0_u64; 0]);
    }

    #[test]
    fn a_process_that_was_held_up_follows_the_policy_too() {
        let held_up = |missed| {
            let mut cursor = cursor(600 * SECOND, missed);
            cursor.handled(at(1));
            let skipped = cursor.due(at(7_300)).skipped;
            (publish(&mut cursor, 7_300), skipped.map(|tick| tick.0 / 1000 - START))
        };
        assert_eq!(held_up(Missed::Skip), (vec![], Some(600)));
        assert_eq!(held_up(Missed::RunLast), (vec![7_200], Some(600)));
        assert_eq!(held_up(Missed::RunAll { within: 1800 * SECOND }), (vec![6_000, 6_600, 7_200], Some(600)));
        assert_eq!(held_up(Missed::RunAll { within: HOUR }).0.len(), 6, "no further than the window");
    }

    #[test]
    fn nothing_older_than_the_window_is_due() {
        for missed in [Missed::Skip, Missed::RunLast, Missed::RunAll { within: HOUR }] {
            let schedule = Schedule::every(600 * SECOND).unwrap();
            let mut cursor = Cursor::new(schedule, missed, 10 * SECOND);
            assert_eq!(publish(&mut cursor, 7_209), [7_200], "{missed:?}");
            assert_eq!(publish(&mut cursor, 7_810), [0_u64; 0], "{missed:?}");
        }
    }

    #[test]
    fn a_tick_that_cannot_be_published_stays_due_until_it_is_too_late() {
        let mut daily = cursor(24 * HOUR, Missed::Skip);
        let day = START.next_multiple_of(86_400) - START;
        daily.due(at(day - 1));
        assert_eq!(daily.due(at(day)).ticks, [at(day)]);
        assert_eq!(daily.due(at(day + 59)).ticks, [at(day)]);
        let given_up = daily.due(at(day + 60));
        assert_eq!((given_up.ticks, given_up.skipped), (vec![], Some(at(day))));
        assert_eq!(daily.due(at(day + 61)).skipped, None, "it is reported once");

        let mut often = cursor(SECOND, Missed::RunLast);
        often.handled(at(10));
        assert_eq!(often.due(at(11)).ticks, [at(11)]);
        let later = often.due(at(13));
        assert_eq!((later.ticks, later.skipped), (vec![at(13)], Some(at(11))));
        assert_eq!(often.due(at(13)).skipped, None, "it is reported once");
    }

    #[test]
    fn many_ticks_are_due_in_batches_and_the_last_of_millions_is_found() {
        let mut all = cursor(SECOND, Missed::RunAll { within: HOUR });
        assert_eq!(all.due(at(7_200)).ticks.len(), BATCH);
        assert_eq!(publish(&mut all, 7_200), (3_601..=7_200).collect::<Vec<_>>());
        let every = Schedule::every(Duration::from_millis(1_001)).unwrap();
        for ms in (0..5_000).step_by(173) {
            let mut last = Cursor::new(every.clone(), Missed::RunLast, 3650 * 24 * HOUR);
            let now = Wall(at(0).0 + ms);
            assert_eq!(last.due(now).ticks, [Wall(now.0 / 1_001 * 1_001)]);
        }
        // Unlike an interval's, these are unevenly spaced.
        let midnight = START.next_multiple_of(86_400) - START;
        for hour in 1..24 {
            let uneven = Schedule::cron("0 0,1 * * *").unwrap();
            let mut last = Cursor::new(uneven, Missed::RunLast, 100 * 24 * HOUR);
            let due = last.due(at(midnight + hour * 3_600 + 1_800));
            assert_eq!(due.ticks, [at(midnight + 3_600)], "{hour}:30");
        }
    }

    #[test]
    fn clock_that_is_set_back_reaches_its_ticks_again() {
        let mut cursor = cursor(600 * SECOND, Missed::Skip);
        cursor.handled(at(1));
        assert_eq!(publish(&mut cursor, 6_000), [6_000]);
        assert_eq!(cursor.due(at(700)).next, Some(at(1_200)));
        assert_eq!(publish(&mut cursor, 1_200), [1_200]);
    }
}
