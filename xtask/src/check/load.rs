//! How busy the machine is.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The share of CPU time that must be free. With less, tests wait for each other instead of for servers and leases: a
/// short lease ends before its holder runs, and the group expels members that can't send heartbeats.
const ENOUGH: f64 = 0.2;

/// How long each measurement takes.
const SAMPLE: Duration = Duration::from_secs(2);

/// Waits until some CPU time is free, or `is_over`. Doesn't wait where it can't be measured.
pub(super) fn wait_until_low(is_over: impl Fn() -> bool) {
    // One at a time, so that each sees what the one before it has started.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut before) = Times::now() else { return };
    while !is_over() {
        thread::sleep(SAMPLE);
        let Some(now) = Times::now() else { return };
        if now.free_since(before) >= ENOUGH {
            return;
        }
        before = now;
    }
}

/// CPU time of the machine since it started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    /// Idle, or used by processes of a lower priority.
    free: u64,
    all: u64,
}

impl Times {
    fn now() -> Option<Self> {
        // Only Linux has it.
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line: `cpu`, then user, nice, system, idle, iowait, irq, softirq and steal. What follows is part of
    /// user and nice.
    fn parse(stat: &str) -> Option<Self> {
        let ticks = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(8);
        let ticks = ticks.map(|tick| tick.parse().ok()).collect::<Option<Vec<u64>>>()?;
        let free = [1, 3, 4].iter().map(|&at| ticks.get(at)).sum::<Option<u64>>()?;
        Some(Self { free, all: ticks.iter().sum() })
    }

    #[expect(clippy::cast_precision_loss, reason = "a share")]
    fn free_since(self, before: Self) -> f64 {
        // The time of waiting for disks may go back.
        let (free, all) = (self.free.saturating_sub(before.free), self.all.saturating_sub(before.all));
        free as f64 / all.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_is_idle_or_of_a_low_priority_is_free() {
        let at = |line: &str| Times::parse(line).unwrap();
        let before = at("cpu  100 20 30 1000 10 1 2 3 50 60\ncpu0 1 2 3 4 5 6 7 8 9 10\n");
        assert_eq!(before, Times { free: 1_030, all: 1_166 });
        let now = at("cpu  160 30 50 1005 15 1 2 3 99 99");
        assert!((now.free_since(before) - 0.2).abs() < 1e-9);
        let disks_went_back = at("cpu  260 30 50 1000 5 1 2 3 99 99");
        assert_eq!(disks_went_back.free_since(now), 0.0);
        assert_eq!(Times::parse("intr 1 2 3"), None);
    }

    #[test]
    fn waiting_ends_when_it_is_over() {
        let begun = Instant::now();
        wait_until_low(|| true);
        assert!(begun.elapsed() < SAMPLE);
    }
}
