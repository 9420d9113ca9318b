//! Backoff for a failing server: the gate is closed after each failure, each time for longer.

use super::Mono;
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Gate {
    closed_until: Mono,
    pause: Duration,
}

impl Gate {
    /// Closes the gate. Failures of concurrent calls count as one.
    pub(super) fn failed(&mut self, now: Mono) {
        if now >= self.closed_until {
            self.pause = (self.pause * 2).clamp(FIRST, LONGEST);
            self.closed_until = now.plus(self.pause);
        }
    }

    pub(super) fn worked(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// Whether the last call failed.
    pub(super) fn is_failing(&self) -> bool {
        !self.pause.is_zero()
    }

    pub(super) fn is_open(&self, now: Mono) -> bool {
        now >= self.closed_until
    }

    pub(super) fn opens_at(&self) -> Mono {
        self.closed_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_up_to_a_second_and_resets_on_success() {
        let mut gate = Gate::default();
        let mut now = Mono(0);
        let mut pauses = vec![];
        for _ in 0..9 {
            gate.failed(now);
            gate.failed(now);
            assert!(!gate.is_open(now));
            pauses.push((gate.opens_at().0 - now.0) / 1_000_000);
            now = gate.opens_at();
            assert!(gate.is_open(now));
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        gate.worked();
        gate.failed(now);
        assert_eq!(gate.opens_at(), now.plus(FIRST));
    }
}
