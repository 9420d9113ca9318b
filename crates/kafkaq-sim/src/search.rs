//! Many seeds on all cores.

use crate::{Counts, Profile, Stats, Trouble, Violation};
use kafkaq_core::machine::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// How many seeds of each profile are tried first.
const FEW: u64 = 64;

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Search {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// The profile of the runs.
    pub profile: Profile,
    /// The rule that is removed from the machine.
    pub fault: Option<Fault>,
    /// Whether one violation is enough.
    pub stop_at_first: bool,
}

impl Default for Search {
    fn default() -> Self {
        Search { from: 0, count: 1000, profile: Profile::default(), fault: None, stop_at_first: false }
    }
}

/// The result of a search.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Seeds that broke a rule, ascending. With `stop_at_first` the first is the lowest that does.
    pub violations: Vec<(u64, Violation)>,
    /// All runs' counts.
    pub stats: Stats,
    /// All runs' digests, in one.
    pub digest: u64,
}

/// Runs a search.
#[must_use]
pub fn search(search: &Search) -> Found {
    let run = |seed, found: &mut Found| {
        let outcome = crate::run(seed, &search.profile, search.fault);
        found.stats.add(&outcome.stats);
        // A sum, since the runs end in any order.
        found.digest = found.digest.wrapping_add(outcome.digest);
        let broken = outcome.violation.is_some();
        found.violations.extend(outcome.violation.map(|v| (seed, v)));
        broken && search.stop_at_first
    };
    let mut all = Found::default();
    for found in on_all_cores(search.from, search.count, run) {
        all.stats.add(&found.stats);
        all.digest = all.digest.wrapping_add(found.digest);
        all.violations.extend(found.violations);
    }
    all.violations.sort_by_key(|(seed, _)| *seed);
    all
}

/// Runs seeds in ascending order and returns what each core has collected. No higher seed is started once `run` has
/// returned that it is enough.
pub(crate) fn on_all_cores<T: Default + Send>(
    from: u64,
    count: u64,
    run: impl Fn(u64, &mut T) -> bool + Sync,
) -> Vec<T> {
    let (next, stop) = (AtomicU64::new(from), AtomicU64::new(from + count));
    let work = || {
        let mut gathered = T::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= stop.load(Ordering::Relaxed) {
                return gathered;
            }
            if run(seed, &mut gathered) {
                stop.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|t| t.join());
        joined.map(|r| r.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Searches for a violation with every trouble, with none, and with the few troubles that provoke what is rare among
/// many. Returns the profile that needed the fewest seeds, the seed, and the violation.
#[must_use]
pub fn find(fault: Fault, count: u64) -> Option<(Profile, u64, Violation)> {
    let profiles = [
        Profile::default(),
        Profile::only(&[]),
        Profile::only(&[Trouble::Rebalance, Trouble::Append, Trouble::Work]),
        Profile::only(&[Trouble::Amnesia, Trouble::Rebalance, Trouble::Work]),
        Profile::only(&[Trouble::Refused, Trouble::Store, Trouble::Append, Trouble::Work]),
        Profile::only(&[Trouble::Mixed, Trouble::Log, Trouble::Clock, Trouble::Work, Trouble::Tight]),
    ];
    // A few seeds of each profile are tried before many of one.
    let (mut from, mut until) = (0, FEW.min(count));
    while from < count {
        let first = profiles.iter().filter_map(|profile| find_within(fault, profile, from, until));
        if let Some(found) = first.min_by_key(|(_, seed, _)| *seed) {
            return Some(found);
        }
        (from, until) = (until, (until * 4).min(count));
    }
    None
}

fn find_within(fault: Fault, profile: &Profile, from: u64, until: u64) -> Option<(Profile, u64, Violation)> {
    let count = until - from;
    let wanted = Search { from, count, profile: profile.clone(), fault: Some(fault), stop_at_first: true };
    let (seed, violation) = search(&wanted).violations.into_iter().next()?;
    // A violation that occurs without the fault, too, proves nothing about it.
    let proves = crate::run(seed, profile, None).violation.is_none();
    proves.then(|| (profile.clone(), seed, violation))
}
