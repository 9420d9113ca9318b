//! What the simulations of the smaller machines have in common: each has a world, faults and counts of its own.

use crate::{search::on_all_cores, trace::Counts};
use std::fmt::Debug;

/// A pure machine in a world of its own.
pub trait Subject {
    /// A rule that can be removed from the machine.
    type Fault: Copy + Debug + Sync + 'static;

    /// How often each thing happened in a run.
    type Stats: Counts;

    /// All rules that can be removed.
    const FAULTS: &'static [Self::Fault];

    /// Runs a seed. If it is `traced`, returns its events, one line per event.
    fn play(seed: u64, fault: Option<Self::Fault>, traced: bool) -> (Played<Self::Stats>, Vec<String>);

    /// Runs many seeds on all cores. With `stop_at_first` the first violation is the lowest seed's that has one.
    #[must_use]
    fn search(
        from: u64,
        count: u64,
        fault: Option<Self::Fault>,
        stop_at_first: bool,
    ) -> Searched<Self::Stats> {
        let run = |seed, found: &mut Searched<Self::Stats>| {
            let (played, _) = Self::play(seed, fault, false);
            found.stats.add(&played.stats);
            let broken = played.violation.is_some();
            found.violations.extend(played.violation.map(|v| (seed, v)));
            broken && stop_at_first
        };
        let mut all = Searched::<Self::Stats>::default();
        for found in on_all_cores(from, count, run) {
            all.stats.add(&found.stats);
            all.violations.extend(found.violations);
        }
        all.violations.sort_by_key(|(seed, _)| *seed);
        all
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Played<S> {
    /// The first broken rule.
    pub violation: Option<String>,
    /// How often each thing happened.
    pub stats: S,
}

/// The result of many runs.
#[derive(Clone, Debug, Default)]
pub struct Searched<S> {
    /// Seeds that broke a rule, ascending.
    pub violations: Vec<(u64, String)>,
    /// All runs' counts.
    pub stats: S,
}
