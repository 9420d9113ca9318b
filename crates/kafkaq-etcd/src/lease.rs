//! Times to live, by leases of etcd that many keys share.
//!
//! To etcd a lease is a thing to agree on, twice: once to grant it and once to revoke it. One a key would cost more
//! than the keys themselves. But a time to live may be exceeded, so a key takes any open lease that ends soon enough
//! after it should. "Soon enough" is a twentieth of the time to live: however these differ from swap to swap, a few
//! hundred leases serve them all.
//!
//! A lease is never renewed. So its end is known when it is granted, and no stale leader can end it earlier.

use crate::{
    failure::Op,
    link::{Call, Link},
};
use kafkaq_core::{Result, Swap};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout_at};

/// etcd deletes the keys of a lease that ends in one go, during which it serves nobody.
const KEYS_A_LEASE: usize = 1000;

/// Leases kept at hand. With more, those that end first are forgotten, and end by themselves.
const MAX_OPEN: usize = 1024;

/// So that short times to live don't need a lease for each request either.
const MIN_SLACK: Duration = Duration::from_secs(5);

/// Longer means for ever: etcd takes no more than 285 years.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time to live that etcd has to see to.
fn finite(swap: &Swap) -> Option<Duration> {
    swap.ttl.filter(|ttl| swap.new.is_some() && *ttl < FOR_EVER)
}

/// The open leases.
pub(crate) struct Leases {
    open: Mutex<Open>,
    /// Held while one is granted, so that callers that need one wait for it instead of getting one each.
    granting: tokio::sync::Mutex<()>,
    request_timeout: Duration,
}

impl Leases {
    pub(crate) fn new(request_timeout: Duration) -> Self {
        Leases { open: Mutex::default(), granting: tokio::sync::Mutex::default(), request_timeout }
    }

    /// A lease for each swap, 0 for none.
    ///
    /// # Errors
    /// If one had to be granted and was not; then nothing has changed.
    pub(crate) async fn attach(&self, call: Call, link: &Link, swaps: &[Swap]) -> Result<Vec<i64>> {
        let mut leases = Vec::with_capacity(swaps.len());
        for swap in swaps {
            leases.push(match finite(swap) {
                None => 0,
                Some(ttl) => {
                    let span = Span::of(ttl, self.request_timeout);
                    match self.take(span) {
                        Some(lease) => lease,
                        None => self.grant(call.part(Op::GRANT), link, span).await?,
                    }
                }
            });
        }
        Ok(leases)
    }

    /// At least one of them is gone: somebody has revoked it, or etcd was wiped.
    pub(crate) fn forget(&self, leases: &[i64]) {
        self.open().0.retain(|(_, lease), _| !leases.contains(lease));
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, span: Span) -> Option<i64> {
        self.open().take(Instant::now(), span)
    }

    async fn grant(&self, call: Call, link: &Link, span: Span) -> Result<i64> {
        let turn = timeout_at(call.deadline(), self.granting.lock()).await;
        let _turn = turn.map_err(|_elapsed| crate::failure::not_sent(call.op, call.limit))?;
        if let Some(lease) = self.take(span) {
            return Ok(lease);
        }
        // The lease begins when etcd grants it, which is not before this.
        let begin = Instant::now();
        let seconds = span.whole_seconds();
        let granted =
            link.send(call, |to| async move { to.lease.clone().grant(seconds, None).await }).await?;
        // etcd may have made it longer.
        let seconds = u64::try_from(granted.ttl()).unwrap_or(0);
        self.open().add(begin, Duration::from_secs(seconds), granted.id());
        Ok(granted.id())
    }
}

/// Between which ends, from now, a lease serves a time to live.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Span {
    earliest: Duration,
    latest: Duration,
}

impl Span {
    fn of(ttl: Duration, request_timeout: Duration) -> Span {
        // The value lives from when it is written, which may be as late as the request takes; and no two clocks run
        // equally fast.
        let earliest = ttl + request_timeout + ttl / 1000;
        Span { earliest, latest: earliest + (ttl / 20).max(MIN_SLACK) }
    }

    /// As long as it may be, so that it serves for as long as it can.
    fn whole_seconds(self) -> i64 {
        i64::try_from(self.latest.as_secs()).unwrap_or(i64::MAX)
    }
}

/// By their ends, each with the number of keys that it may still take.
#[derive(Default)]
struct Open(BTreeMap<(Instant, i64), usize>);

impl Open {
    fn take(&mut self, now: Instant, span: Span) -> Option<i64> {
        let ends = (now + span.earliest, i64::MIN)..=(now + span.latest, i64::MAX);
        let (&place, room) = self.0.range_mut(ends).next()?;
        *room -= 1;
        if *room == 0 {
            self.0.remove(&place);
        }
        Some(place.1)
    }

    /// The lease that has just been granted to one key.
    fn add(&mut self, begin: Instant, length: Duration, lease: i64) {
        self.0 = self.0.split_off(&(begin, i64::MIN));
        if self.0.len() >= MAX_OPEN {
            self.0.pop_first();
        }
        self.0.insert((begin + length, lease), KEYS_A_LEASE - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn span(ttl: Duration) -> Span {
        Span::of(ttl, SECOND)
    }

    fn granted(open: &mut Open, now: Instant, ttl: Duration, lease: i64) {
        let seconds = u64::try_from(span(ttl).whole_seconds()).unwrap();
        open.add(now, Duration::from_secs(seconds), lease);
    }

    #[test]
    fn a_lease_serves_until_it_would_end_too_early() {
        let now = Instant::now();
        for ttl in [Duration::ZERO, SECOND / 3, SECOND, 100 * SECOND, DAY, 30 * DAY] {
            let mut open = Open::default();
            granted(&mut open, now, ttl, 7);
            let slack = span(ttl).latest - span(ttl).earliest;
            assert_eq!(open.take(now, span(ttl)), Some(7), "{ttl:?}");
            assert_eq!(open.take(now + slack - SECOND, span(ttl)), Some(7), "{ttl:?}");
            assert_eq!(open.take(now + slack + SECOND, span(ttl)), None, "{ttl:?}");
            assert!(span(ttl).earliest >= ttl + SECOND);
            assert!(slack <= (ttl / 20).max(5 * SECOND), "{ttl:?} lives too long");
        }
    }

    #[test]
    fn a_lease_is_not_given_to_a_key_that_would_outlive_its_time_by_far() {
        let now = Instant::now();
        let mut open = Open::default();
        granted(&mut open, now, DAY, 7);
        assert_eq!(open.take(now, span(DAY / 2)), None);
        assert_eq!(open.take(now, span(DAY * 2)), None);
        assert_eq!(open.take(now, span(DAY + SECOND)), Some(7));
    }

    #[test]
    fn a_lease_takes_so_many_keys_and_no_more() {
        let now = Instant::now();
        let mut open = Open::default();
        granted(&mut open, now, DAY, 7);
        let mut keys = 1;
        while open.take(now, span(DAY)).is_some() {
            keys += 1;
        }
        assert_eq!(keys, KEYS_A_LEASE);
    }

    #[test]
    fn few_leases_serve_many_different_times_to_live() {
        let now = Instant::now();
        let mut open = Open::default();
        let mut leases = 0;
        for minutes in 1..20_000_u32 {
            let ttl = minutes * 60 * SECOND;
            if open.take(now, span(ttl)).is_none() {
                leases += 1;
                granted(&mut open, now, ttl, leases);
            }
        }
        assert!(leases < 250, "{leases}");
    }

    #[test]
    fn what_is_kept_at_hand_is_bounded() {
        let now = Instant::now();
        let mut open = Open::default();
        for lease in 0..5000 {
            granted(&mut open, now + DAY, DAY, lease);
        }
        assert_eq!(open.0.len(), MAX_OPEN);
        granted(&mut open, now + 4 * DAY, DAY, 1);
        assert_eq!(open.0.len(), 1, "leases that have ended were kept");
    }
}
