//! When a failed task is retried.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// Computed from the number of the failure and its reason.
type Delay = dyn Fn(u32, &str) -> Duration + Send + Sync;

/// When a failed task is retried, and how often.
///
/// The default doubles from 1 s to 1 h, with jitter, and leaves the number of failures to the queue's
/// [`max_failures`](crate::QueueBuilder::max_failures). No delay is longer than the queue's
/// [`max_delay`](crate::QueueBuilder::max_delay). No delay is longer than the queue's
/// [`max_delay`](crate::QueueBuilder::max_delay).
#[derive(Clone)]
pub struct Backoff {
    delay: Arc<Delay>,
    jitter: bool,
    max_failures: Option<u32>,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::exponential(Duration::from_secs(1)..=Duration::from_secs(3600))
    }
}

impl Backoff {
    /// Doubles the delay with each failure, from the range's start to its end.
    #[must_use]
    pub fn exponential(range: RangeInclusive<Duration>) -> Self {
        let (first, last) = range.into_inner();
        Backoff::custom(move |failure, _| {
            let factor = 1_u32.checked_shl(failure.saturating_sub(1)).unwrap_or(u32::MAX);
            first.saturating_mul(factor).min(last)
        })
    }

    /// Waits equally long after each failure.
    #[must_use]
    pub fn fixed(delay: Duration) -> Self {
        Backoff::custom(move |_, _| delay)
    }

    /// Calls a function with the number of the failure, from 1, and its reason. It must not block: the worker confirms
    /// nothing until it returns.
    #[must_use]
    pub fn custom(delay: impl Fn(u32, &str) -> Duration + Send + Sync + 'static) -> Self {
        Backoff { delay: Arc::new(delay), jitter: true, max_failures: None }
    }

    /// Whether a delay is randomized between half and all of the computed value, so that tasks that failed together are
    /// not retried together. Default: on.
    #[must_use]
    pub fn jitter(mut self, jitter: bool) -> Self {
        self.jitter = jitter;
        self
    }

    /// Dead-letters a task at its `n`th failure. The queue's own limit applies as well.
    #[must_use]
    pub fn max_failures(mut self, n: u32) -> Self {
        self.max_failures = Some(n);
        self
    }

    /// Returns how long to wait after this failure, counted from 1; `None` if it was the last.
    pub(super) fn after(&self, failure: u32, reason: &str) -> Option<Duration> {
        if self.max_failures.is_some_and(|max| failure >= max) {
            return None;
        }
        let delay = (self.delay)(failure, reason);
        Some(if self.jitter { delay.mul_f64(0.5 + 0.5 * fastrand::f64()) } else { delay })
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backoff")
            .field("jitter", &self.jitter)
            .field("max_failures", &self.max_failures)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delay_doubles_up_to_its_limit() {
        let backoff = Backoff::exponential(SECOND..=60 * SECOND).jitter(false);
        let delays: Vec<_> = (1..=8).map(|n| backoff.after(n, "").unwrap().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.after(u32::MAX, ""), Some(60 * SECOND));
    }

    #[test]
    fn jitter_takes_at_most_half() {
        let backoff = Backoff::fixed(SECOND);
        let delays: Vec<_> = (0..100).map(|_| backoff.after(1, "").unwrap()).collect();
        assert!(delays.iter().all(|d| (SECOND / 2..=SECOND).contains(d)));
        assert!(delays.iter().any(|d| *d != delays[0]));
    }

    #[test]
    fn custom_backoff_sees_the_reason_and_the_last_failure_has_no_delay() {
        let by_reason = |n: u32, reason: &str| if reason == "busy" { SECOND * n } else { Duration::ZERO };
        let backoff = Backoff::custom(by_reason).jitter(false).max_failures(3);
        assert_eq!(backoff.after(2, "busy"), Some(2 * SECOND));
        assert_eq!(backoff.after(2, "broken"), Some(Duration::ZERO));
        assert_eq!(backoff.after(3, "busy"), None);
    }
}
