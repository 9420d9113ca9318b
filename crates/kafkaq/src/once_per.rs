//! Tasks that are executed once per time window. The id is derived from the key and the window, so publishing needs no
//! store: the queue executes an id once. The task is due when the window has ended by every clock, so whatever was
//! published under the id came before the execution.

use crate::timed_id::timed_id;
use kafkaq_core::{Error, ErrorKind, Result, TaskId, Wall};
use std::time::Duration;
use uuid::Uuid;

/// The prefix of the ids.
const PREFIX: &str = "once/";

/// A key's current window.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The id of its task.
    pub(crate) id: TaskId,
    /// When it has ended by the clocks of all processes.
    pub(crate) due: Wall,
}

impl Window {
    /// The window of `key` at the time `now`.
    ///
    /// # Errors
    /// `Invalid` unless the length is in whole milliseconds, and at least one.
    pub(crate) fn at(now: Wall, key: &[u8], length: Duration, clock_skew: Duration) -> Result<Self> {
        let ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        if ms == 0 || !length.subsec_nanos().is_multiple_of(1_000_000) {
            return Err(refused(length).with_advice("A window is at least 1 ms, in whole milliseconds"));
        }
        let name = Uuid::new_v5(&Uuid::NAMESPACE_OID, key);
        // Otherwise the windows of all keys would end at once.
        let shift = name.as_u64_pair().1 % ms;
        let begun = now.0.saturating_add(shift) / ms;
        let end = Wall((begun + 1).saturating_mul(ms) - shift);
        let id = timed_id(&format!("{PREFIX}{}", name.simple()), ms, end)?;
        Ok(Window { id, due: end.plus(clock_skew) })
    }

    /// When the window of an id ends, if it is the id of one.
    pub(crate) fn end_of(id: &TaskId) -> Option<Wall> {
        let (name, time) = id.as_str().strip_prefix(PREFIX)?.split_once('@')?;
        let (length, end) = time.split_once('.')?;
        let _ = (Uuid::try_parse(name).ok()?, length.parse::<u64>().ok()?);
        end.parse().ok().map(Wall)
    }
}

pub(crate) fn refused(length: Duration) -> Error {
    Error::not_applied(ErrorKind::Invalid, "publish").on(format!("once per window of {length:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SECOND: Duration = Duration::from_secs(1);
    const NOW: Wall = Wall(1_700_000_000_123);

    fn at(now: Wall, key: &str, length: Duration) -> Window {
        Window::at(now, key.as_bytes(), length, SECOND).unwrap()
    }

    #[test]
    fn window_of_no_whole_milliseconds_is_refused() {
        for length in [Duration::ZERO, Duration::from_micros(999), Duration::from_micros(1001)] {
            let e = Window::at(NOW, b"k", length, SECOND).unwrap_err();
            assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("whole milliseconds"), "{e}");
        }
        let longest = at(NOW, "k", Duration::MAX - Duration::from_nanos(999_999_999));
        assert!(longest.id.as_str().len() <= TaskId::MAX_LEN);
    }

    #[test]
    fn end_of_a_window_is_read_from_its_id() {
        let Window { id, due } = at(NOW, "k", 60 * SECOND);
        assert_eq!(Window::end_of(&id).map(|end| end.plus(SECOND)), Some(due));
        for other in ["once/k@60000.1", "once/7", "report-7", "report/7@1.60000"] {
            assert_eq!(Window::end_of(&TaskId::new(other).unwrap()), None, "{other}");
        }
    }

    #[test]
    fn keys_and_lengths_have_ids_of_their_own_and_keys_end_at_different_times() {
        let one = at(NOW, "customer-17", 60 * SECOND);
        for other in [at(NOW, "customer-18", 60 * SECOND), at(NOW, "customer-17", 61 * SECOND)] {
            assert_ne!(one.id, other.id);
        }
        let ends: std::collections::BTreeSet<_> =
            (0..100).map(|n| at(NOW, &format!("customer-{n}"), 60 * SECOND).due).collect();
        assert!(ends.len() > 90, "{}", ends.len());
    }

    proptest! {
        /// Publishers and workers whose clocks are apart by up to the skew. A worker executes each id when the first of
        /// its records is due, as early as its clock allows.
        #[test]
        fn every_call_is_followed_by_an_execution_that_begins_after_it(
            length in 1_u64..5_000,
            skew in 0_u64..3_000,
            calls in prop::collection::vec((0_u64..60_000, 0.0..=1.0), 1..200),
            worker in 0.0..=1.0,
        ) {
            let clock = |at: u64, ahead: f64| Wall(NOW.0 + at + (skew as f64 * ahead) as u64);
            let (window, allowed) = (Duration::from_millis(length), Duration::from_millis(skew));
            let mut due = BTreeMap::new();
            for (at, publisher) in &calls {
                let window = Window::at(clock(*at, *publisher), b"k", window, allowed).unwrap();
                // In true time.
                let begins = window.due.0 - (clock(0, worker).0);
                prop_assert!(begins >= *at, "called at {at}, executed at {begins}");
                prop_assert!(begins <= at + length + 2 * skew, "called at {at}, executed at {begins}");
                prop_assert_eq!(*due.entry(window.id).or_insert(window.due), window.due);
            }
            let (first, last) = (due.values().min().unwrap().0, due.values().max().unwrap().0);
            prop_assert_eq!((last - first) % length, 0);
            prop_assert!(due.len() as u64 <= (60_000 + skew) / length + 2, "more than one per window");
        }
    }
}
