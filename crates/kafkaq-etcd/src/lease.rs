//! Times to live, with etcd leases that many keys share.
//!
//! etcd needs consensus twice per lease: to grant and to revoke it. One lease per key would cost more than the keys
//! themselves. But a time to live may be exceeded, so a key uses any open lease that ends soon enough after it should.
//! "Soon enough" is a twentieth of the time to live: however these differ between swaps, a few hundred leases serve
//! them all.
//!
//! A lease is never renewed. So its end is known when it is granted, and no stale leader can end it earlier. But a
//! machine that was suspended no longer knows how long its leases still live, since its monotonic clock has stood still.

use crate::{
    failure,
    link::{self, Clients, Link},
};
use kafkaq_core::{
    Result, Swap,
    connection::{Call, Connect},
    lock,
};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::MutexGuard,
    time::{Instant, timeout_at},
};

/// How far the wall clock may be set forward without casting doubt on the leases.
const SUSPENDED: Duration = Duration::from_secs(1);
/// The maximum number of keys per lease: etcd deletes all keys of an expiring lease at once, and serves nobody
/// meanwhile.
const KEYS_PER_LEASE: usize = 1000;

/// With this few places left, the next lease is requested. Early, because the driver has two calls of 500 swaps in
/// flight: one takes half of a lease at once, and the other may take the rest before the first returns.
const FEW_LEFT: usize = KEYS_PER_LEASE * 3 / 4;

/// The maximum number of open leases. Beyond that, those that end first are forgotten, and expire by themselves.
const MAX_OPEN: usize = 1024;

/// The minimum slack, so that short times to live don't need one lease per request either.
const MIN_SLACK: Duration = Duration::from_secs(5);

/// Longer means forever: etcd accepts at most 285 years.
const MAX_TTL: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time to live that etcd has to enforce.
fn finite(swap: &Swap) -> Option<Duration> {
    swap.ttl.filter(|ttl| swap.new.is_some() && *ttl < MAX_TTL)
}

/// The open leases.
pub(crate) struct Leases {
    open: Mutex<Open>,
    /// Held while one is granted, so that callers that need one wait for it instead of each requesting one.
    granting: tokio::sync::Mutex<()>,
    request_timeout: Duration,
}

impl Leases {
    pub(crate) fn new(request_timeout: Duration) -> Self {
        Leases { open: Mutex::default(), granting: tokio::sync::Mutex::default(), request_timeout }
    }

    /// Returns a lease for each swap.
    ///
    /// # Errors
    /// If one had to be granted and was not; nothing has changed then.
    pub(crate) async fn attach(&self, call: Call, link: &Link, swaps: &[Swap]) -> Result<Attached> {
        let mut attached = Attached { leases: Vec::with_capacity(swaps.len()), runs_short: None };
        for swap in swaps {
            let Some(ttl) = finite(swap) else {
                attached.leases.push(0);
                continue;
            };
            let span = Span::of(ttl, self.request_timeout);
            let lease = match self.take(span) {
                Some(Taken { lease, runs_short }) => {
                    attached.runs_short = attached.runs_short.or(runs_short.then_some(span));
                    lease
                }
                None => self.get(call, link, span).await?,
            };
            attached.leases.push(lease);
        }
        Ok(attached)
    }

    /// Requests the next lease before it is needed, while the swaps that used up the last one are in flight.
    pub(crate) async fn prepare(&self, call: Call, link: &Link, runs_short: Option<Span>) {
        let Some(span) = runs_short else { return };
        let granted = async {
            let _turn = self.turn(call, link).await?;
            // A faster caller that used it up has requested the next.
            let is_seen_to = self.up_to_date().has_plenty(Instant::now(), span);
            if is_seen_to { Ok(()) } else { self.grant(call, link, span).await.map(drop) }
        };
        if let Err(error) = granted.await {
            // A caller that needs it tries again.
            tracing::debug!(%error, "could not get a lease in advance");
        }
    }

    /// Drops these leases, at least one of which is gone: it was revoked, or etcd was wiped.
    pub(crate) fn forget(&self, leases: &[i64]) {
        self.open().by_end.retain(|(_, lease), _| !leases.contains(lease));
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        lock(&self.open)
    }

    /// Returns the open leases, without those whose ends are no longer known.
    fn up_to_date(&self) -> std::sync::MutexGuard<'_, Open> {
        let mut open = self.open();
        open.observe(Instant::now(), SystemTime::now());
        open
    }

    fn take(&self, span: Span) -> Option<Taken> {
        self.up_to_date().take(Instant::now(), span)
    }

    async fn turn(&self, call: Call, link: &Link) -> Result<MutexGuard<'_, ()>> {
        let turn = timeout_at(call.deadline(), self.granting.lock()).await;
        turn.map_err(|_elapsed| call.part(failure::GRANT).not_sent(link.connect().server(None)))
    }

    /// Returns one that others have obtained meanwhile, or a new one.
    async fn get(&self, call: Call, link: &Link, span: Span) -> Result<i64> {
        let _turn = self.turn(call, link).await?;
        match self.take(span) {
            Some(taken) => Ok(taken.lease),
            None => self.grant(call, link, span).await,
        }
    }

    /// Grants a new lease, in which one place is taken.
    async fn grant(&self, call: Call, link: &Link, span: Span) -> Result<i64> {
        // The lease begins when etcd grants it, which is not before this.
        let begin = Instant::now();
        let seconds = span.whole_seconds();
        let request = |to: Arc<Clients>| async move { to.lease.clone().grant(seconds, None).await };
        let granted = link::send(link, call.part(failure::GRANT), request).await?;
        // etcd may have made it longer.
        let seconds = u64::try_from(granted.ttl()).unwrap_or(0);
        self.open().add(begin, Duration::from_secs(seconds), granted.id());
        Ok(granted.id())
    }
}

/// The result of [`Leases::attach`].
pub(crate) struct Attached {
    /// One per swap, 0 for none.
    pub(crate) leases: Vec<i64>,
    /// The kind of lease that will soon be used up.
    pub(crate) runs_short: Option<Span>,
}

/// The range of ends, from now, in which a lease serves a time to live.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    earliest: Duration,
    latest: Duration,
}

impl Span {
    fn of(ttl: Duration, request_timeout: Duration) -> Span {
        // The value's life starts when it is written, which may be as late as the end of the request; and no two clocks
        // run equally fast.
        let earliest = ttl + request_timeout + ttl / 1000;
        Span { earliest, latest: earliest + (ttl / 20).max(MIN_SLACK) }
    }

    /// Returns the longest allowed length, so that the lease can be used as long as possible.
    fn whole_seconds(self) -> i64 {
        i64::try_from(self.latest.as_secs()).unwrap_or(i64::MAX)
    }
}

#[derive(Default)]
struct Open {
    /// By their ends, each with the number of keys that it may still take.
    by_end: BTreeMap<(Instant, i64), usize>,
    /// The last reading of both clocks.
    observed: Option<(Instant, SystemTime)>,
}

#[derive(Debug, PartialEq)]
struct Taken {
    lease: i64,
    /// True once per lease: when it is time to request the next one.
    runs_short: bool,
}

impl Open {
    /// If the wall clock has gone ahead of the monotonic one, the machine may have been suspended: the leases end
    /// earlier than noted.
    fn observe(&mut self, now: Instant, wall: SystemTime) {
        if let Some((then, wall_then)) = self.observed.replace((now, wall))
            && wall.duration_since(wall_then).unwrap_or_default() > now.duration_since(then) + SUSPENDED
        {
            self.by_end.clear();
        }
    }

    fn ends(now: Instant, span: Span) -> RangeInclusive<(Instant, i64)> {
        (now + span.earliest, i64::MIN)..=(now + span.latest, i64::MAX)
    }

    fn has_plenty(&self, now: Instant, span: Span) -> bool {
        self.by_end.range(Self::ends(now, span)).any(|(_, &room)| room > FEW_LEFT)
    }

    fn take(&mut self, now: Instant, span: Span) -> Option<Taken> {
        let (&place, room) = self.by_end.range_mut(Self::ends(now, span)).next()?;
        *room -= 1;
        let runs_short = *room == FEW_LEFT;
        if *room == 0 {
            self.by_end.remove(&place);
        }
        Some(Taken { lease: place.1, runs_short })
    }

    /// Adds a lease that has just been granted to one key.
    fn add(&mut self, begin: Instant, length: Duration, lease: i64) {
        self.by_end = self.by_end.split_off(&(begin, i64::MIN));
        if self.by_end.len() >= MAX_OPEN {
            self.by_end.pop_first();
        }
        self.by_end.insert((begin + length, lease), KEYS_PER_LEASE - 1);
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

    fn taken(open: &mut Open, now: Instant, ttl: Duration) -> Option<i64> {
        open.take(now, span(ttl)).map(|t| t.lease)
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
            assert_eq!(taken(&mut open, now, ttl), Some(7), "{ttl:?}");
            assert_eq!(taken(&mut open, now + slack - SECOND, ttl), Some(7), "{ttl:?}");
            assert_eq!(taken(&mut open, now + slack + SECOND, ttl), None, "{ttl:?}");
            assert!(span(ttl).earliest >= ttl + SECOND);
            assert!(slack <= (ttl / 20).max(5 * SECOND), "{ttl:?} lives too long");
        }
    }

    #[test]
    fn leases_granted_before_a_suspension_are_not_used() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        for (later, by_the_wall, serves) in [
            (SECOND, SECOND, true),
            (SECOND, 61 * SECOND, false),
            (30 * SECOND, 30 * SECOND, true),
            // The wall clock was adjusted slightly.
            (SECOND, 3 * SECOND / 2, true),
        ] {
            let mut open = Open::default();
            open.observe(now, wall);
            granted(&mut open, now, DAY, 7);
            open.observe(now + later, wall + by_the_wall);
            assert_eq!(taken(&mut open, now + later, DAY), serves.then_some(7), "{later:?} {by_the_wall:?}");
        }
        let mut open = Open::default();
        open.observe(now, wall);
        granted(&mut open, now, DAY, 7);
        open.observe(now + SECOND, wall - 3600 * SECOND);
        assert_eq!(taken(&mut open, now, DAY), Some(7), "set back");
    }

    #[test]
    fn lease_is_not_used_for_a_much_shorter_time_to_live() {
        let now = Instant::now();
        let mut open = Open::default();
        granted(&mut open, now, DAY, 7);
        assert_eq!(taken(&mut open, now, DAY / 2), None);
        assert_eq!(taken(&mut open, now, DAY * 2), None);
        assert_eq!(taken(&mut open, now, DAY + SECOND), Some(7));
    }

    #[test]
    fn lease_has_a_limit_of_keys_and_warns_before_it_is_reached() {
        let now = Instant::now();
        let mut open = Open::default();
        granted(&mut open, now, DAY, 7);
        let mut all = vec![];
        while let Some(Taken { runs_short, .. }) = open.take(now, span(DAY)) {
            all.push(runs_short);
        }
        assert_eq!(all.len(), KEYS_PER_LEASE - 1);
        let warnings: Vec<_> = (0..all.len()).filter(|&n| all[n]).collect();
        assert_eq!(warnings, [all.len() - FEW_LEFT - 1], "the warning comes once, and in time");
        assert!(warnings[0] < 500, "while the first of the driver's two calls takes its half");
    }

    #[test]
    fn few_leases_serve_many_different_times_to_live() {
        let now = Instant::now();
        let mut open = Open::default();
        let mut leases = 0;
        for minutes in 1..20_000_u32 {
            let ttl = minutes * 60 * SECOND;
            if taken(&mut open, now, ttl).is_none() {
                leases += 1;
                granted(&mut open, now, ttl, leases);
            }
        }
        assert!(leases < 250, "{leases}");
    }

    #[test]
    fn number_of_open_leases_is_bounded() {
        let now = Instant::now();
        let mut open = Open::default();
        for lease in 0..5000 {
            granted(&mut open, now + DAY, DAY, lease);
        }
        assert_eq!(open.by_end.len(), MAX_OPEN);
        granted(&mut open, now + 4 * DAY, DAY, 1);
        assert_eq!(open.by_end.len(), 1, "leases that have ended were kept");
    }
}
