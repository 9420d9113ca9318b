//! The time of the last input, by both clocks.

use super::{Mono, Now};
use crate::Wall;
use std::time::Duration;

/// By how much the difference of the clocks may seem to change, since both are rounded to milliseconds.
const ROUNDING: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Clock {
    now: Now,
    /// The most that the wall clock has been ahead of the monotonic one, in ms; a drop shows that it was set back.
    lead: i64,
}

impl Clock {
    pub(super) fn new(now: Now) -> Self {
        Clock { now, lead: lead(now) }
    }

    pub(super) fn mono(&self) -> Mono {
        self.now.mono
    }

    pub(super) fn wall(&self) -> Wall {
        self.now.wall
    }

    /// Records the time of an input. Returns whether the wall clock was set back by more than `tolerance` and
    /// [`ROUNDING`].
    pub(super) fn observe(&mut self, now: Now, tolerance: Duration) -> bool {
        self.now = now;
        let (lead, tolerance) = (lead(now), tolerance.max(ROUNDING));
        let set_back = lead < self.lead.saturating_sub_unsigned(tolerance.as_millis() as u64);
        self.lead = if set_back { lead } else { self.lead.max(lead) };
        set_back
    }

    /// Converts a time of the wall clock to the monotonic clock, which nobody sets.
    pub(super) fn mono_at(&self, wall: Wall) -> Mono {
        self.now.mono.plus(wall.since(self.now.wall))
    }
}

fn lead(now: Now) -> i64 {
    (now.wall.0 as i64).saturating_sub((now.mono.0 / 1_000_000) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_milliseconds_does_not_set_a_clock_back() {
        let at = |mono, wall| Now { mono: Mono(mono), wall: Wall(wall) };
        let mut clock = Clock::new(at(900_000, 11));
        assert!(!clock.observe(at(1_000_000, 11), Duration::ZERO));
    }

    #[test]
    fn clock_set_back_is_detected_against_the_monotonic_clock() {
        let second = Duration::from_secs(1);
        let at = |mono: u64, wall: u64| Now { mono: Mono(mono * 1_000_000), wall: Wall(wall) };
        let mut clock = Clock::new(at(0, 10_000));
        assert!(!clock.observe(at(5_000, 15_000), second));
        assert!(!clock.observe(at(6_000, 15_000), second), "within the tolerance");
        assert!(!clock.observe(at(7_000, 90_000), second), "ahead");
        assert!(clock.observe(at(8_000, 18_000), second));
        assert!(!clock.observe(at(9_000, 19_000), second), "reported once");
        assert_eq!(clock.mono_at(Wall(20_000)), Mono(10_000_000_000));
        assert_eq!(clock.mono_at(Wall(0)), clock.mono());
    }
}
