//! How long a process has had a key: after the duration of a lease, it gives other processes a chance.

use kafkaq_core::{Key, key_lock::KeyLockSettings};
use std::collections::HashMap;
use tokio::time::Instant;

/// A period in which this process held a key, with pauses too short for other processes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) since: Instant,
    pub(super) given_back: Instant,
}

impl Turn {
    /// By when every process that wants the key has tried since it was released.
    fn seen_by_all(&self, settings: &KeyLockSettings) -> Instant {
        self.given_back + settings.longest_pause().mul_f64(1.5)
    }

    /// When the key may be acquired again: at once, unless others have waited for a lease.
    pub(super) fn again(&self, settings: &KeyLockSettings) -> Instant {
        let is_over = self.given_back.duration_since(self.since) >= settings.lease;
        if is_over { self.seen_by_all(settings) } else { self.given_back }
    }

    /// Whether the next acquisition continues it.
    pub(super) fn goes_on(&self, settings: &KeyLockSettings) -> bool {
        Instant::now() < self.seen_by_all(settings)
    }
}

/// The turns of keys that nobody here holds or wants. It has at most twice those of the last seconds.
#[derive(Default)]
pub(super) struct Turns {
    by_key: HashMap<Key, Turn>,
    clean_at: usize,
}

impl Turns {
    pub(super) fn keep(&mut self, key: &Key, turn: Turn, settings: &KeyLockSettings) {
        if self.by_key.len() >= self.clean_at {
            self.by_key.retain(|_, turn| turn.goes_on(settings));
            self.clean_at = (2 * self.by_key.len()).max(64);
        }
        self.by_key.insert(key.clone(), turn);
    }

    pub(super) fn take(&mut self, key: &Key) -> Option<Turn> {
        self.by_key.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn turns_that_are_over_are_forgotten() {
        let settings = KeyLockSettings::new(Duration::from_secs(60), Duration::ZERO);
        let mut turns = Turns::default();
        for n in 0..10_000_u32 {
            let key = Key::of(&["x", "q", "g", &n.to_string()]).unwrap();
            let now = Instant::now();
            turns.keep(&key, Turn { since: now, given_back: now }, &settings);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(turns.by_key.len() <= 300, "{}", turns.by_key.len());
    }
}
