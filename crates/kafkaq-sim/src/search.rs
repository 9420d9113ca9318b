//! Many seeds on all cores.

use crate::{Profile, Stats, Trouble, Violation};
use kafkaq_core::machine::Fault;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Which seeds to run, and how.
#[derive(Clone, Debug)]
pub struct Search {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub count: u64,
    /// What the runs are like.
    pub profile: Profile,
    /// The rule that is taken out of the machine.
    pub fault: Option<Fault>,
    /// Whether one violation is enough.
    pub stop_at_first: bool,
}

impl Default for Search {
    fn default() -> Self {
        Search { from: 0, count: 1000, profile: Profile::default(), fault: None, stop_at_first: false }
    }
}

/// What a search came to.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Seeds that broke a rule, ascending. With `stop_at_first` the first is the lowest that does.
    pub violations: Vec<(u64, Violation)>,
    /// All runs' counts.
    pub stats: Stats,
}

/// Runs them.
#[must_use]
pub fn search(search: &Search) -> Found {
    let (next, end) = (AtomicU64::new(search.from), search.from + search.count);
    let stop = AtomicU64::new(end);
    let work = || {
        let mut found = Found::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= stop.load(Ordering::Relaxed) {
                return found;
            }
            let outcome = crate::run(seed, &search.profile, search.fault);
            found.stats.add(&outcome.stats);
            if let Some(v) = outcome.violation {
                found.violations.push((seed, v));
                if search.stop_at_first {
                    stop.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut all = Found::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for found in threads {
            match found.join() {
                Ok(found) => {
                    all.stats.add(&found.stats);
                    all.violations.extend(found.violations);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    all.violations.sort_by_key(|(seed, _)| *seed);
    all
}

/// Looks for a violation with every trouble there is, and with the few troubles that bring out what is rare among
/// many. Answers the profile that needed the fewest seeds, the seed, and what it broke.
#[must_use]
pub fn find(fault: Fault, count: u64) -> Option<(Profile, u64, Violation)> {
    let profiles = [
        Profile::default(),
        Profile::only(&[Trouble::Rebalance, Trouble::Append, Trouble::Work]),
        Profile::only(&[Trouble::Amnesia, Trouble::Rebalance, Trouble::Work]),
    ];
    let mut best: Option<(Profile, u64, Violation)> = None;
    for profile in profiles {
        let count = best.as_ref().map_or(count, |b| b.1);
        let wanted =
            Search { from: 0, count, profile: profile.clone(), fault: Some(fault), stop_at_first: true };
        if let Some((seed, v)) = search(&wanted).violations.into_iter().next() {
            best = Some((profile, seed, v));
        }
    }
    best
}
