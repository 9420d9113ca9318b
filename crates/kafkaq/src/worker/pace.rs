//! Spaces starts evenly in time.

use std::time::Duration;
use tokio::time::Instant;

/// How far behind its rate something may fall and still catch up: timers are late.
const LATE: Duration = Duration::from_millis(100);

pub(super) struct Pace {
    /// The time between two starts. `None`: there is no limit.
    spacing: Option<Duration>,
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: Option<f64>) -> Self {
        Pace { spacing: per_second.map(|rate| Duration::from_secs_f64(1.0 / rate)), next: None }
    }

    /// Returns how many may start now.
    pub(super) fn allows(&self, now: Instant) -> usize {
        match (self.spacing, self.next) {
            (None, _) => usize::MAX,
            (Some(_), None) => 1,
            (Some(_), Some(next)) if next > now => 0,
            (Some(spacing), Some(next)) => {
                1 + (now.duration_since(next).min(LATE).as_nanos() / spacing.as_nanos().max(1)) as usize
            }
        }
    }

    /// Records that this many have started.
    pub(super) fn started(&mut self, n: usize, now: Instant) {
        let late = now.checked_sub(LATE).unwrap_or(now);
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        self.next = self.spacing.map(|spacing| self.next.map_or(now, |next| next.max(late)) + spacing * n);
    }

    /// When the next may start, if none may now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|next| *next > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_spaced_and_a_late_timer_catches_up() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let mut pace = Pace::new(Some(100.0));
        assert_eq!((pace.allows(now), pace.next(now)), (1, None));
        pace.started(1, now);
        assert_eq!((pace.allows(after(9)), pace.next(after(9))), (0, Some(after(10))));
        assert_eq!(pace.allows(after(10)), 1);
        assert_eq!(pace.allows(after(35)), 3, "those of 10, 20 and 30 ms");
        pace.started(3, after(35));
        assert_eq!(pace.next(after(35)), Some(after(40)));
        assert_eq!(pace.allows(after(5000)), 11, "and no more than a tenth of a second");
        pace.started(11, after(5000));
        assert_eq!(pace.next(after(5000)), Some(after(5010)));
        assert_eq!(Pace::new(None).allows(now), usize::MAX);
    }
}
