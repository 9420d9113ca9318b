//! The machine keeps its guarantees in every seed, and the simulation notices when a rule is removed from it.

use kafkaq_core::machine::Fault;
use kafkaq_sim::{Counts, Profile, Search, Trouble, WorldFault, search};
use std::hash::{DefaultHasher, Hash, Hasher};

const SEEDS: u64 = 10_000;
/// The number of seeds after which a planted fault counts as missed.
const ENOUGH: u64 = 2_000;

#[test]
fn no_seed_breaks_a_rule() {
    let found = search(&Search { count: SEEDS, ..Search::default() });
    let told: Vec<String> =
        found.violations.iter().take(10).map(|(seed, v)| format!("seed {seed}: {v}")).collect();
    assert!(told.is_empty(), "{} of {SEEDS} seeds:\n{}", found.violations.len(), told.join("\n"));
}

#[test]
fn every_planted_fault_is_found() {
    let missed: Vec<&Fault> =
        Fault::ALL.iter().filter(|fault| kafkaq_sim::find(**fault, ENOUGH).is_none()).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Rules outside of the machine: without them its guarantees don't hold.
#[test]
fn every_rule_of_the_world_is_needed() {
    for world in WorldFault::ALL {
        let profile = Profile { world: Some(*world), ..Profile::default() };
        let found = search(&Search { count: ENOUGH, profile, stop_at_first: true, ..Search::default() });
        assert!(!found.violations.is_empty(), "{world:?} is not noticed");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let hash = |seed| {
        let (outcome, lines) = kafkaq_sim::trace(seed, &Profile::default(), None);
        let mut hasher = DefaultHasher::new();
        lines.hash(&mut hasher);
        (hasher.finish(), lines.len(), outcome.stats, outcome.digest)
    };
    for seed in 0..200 {
        let first = hash(seed);
        assert!(first.1 > 20, "seed {seed}: nothing happens");
        assert_eq!(first, hash(seed), "seed {seed}");
        let untraced = kafkaq_sim::run(seed, &Profile::default(), None);
        assert_eq!((first.2, first.3), (untraced.stats, untraced.digest), "seed {seed}, untraced");
    }
}

/// A simulation that never reaches a rule proves nothing about it.
#[test]
fn everything_happens() {
    let found = search(&Search { count: 8_000, ..Search::default() });
    let never: Vec<&str> =
        found.stats.list().into_iter().filter(|(_, n)| *n == 0).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "never happened in 8,000 seeds: {never:?}");
}

#[test]
fn each_trouble_alone_breaks_nothing() {
    for trouble in Trouble::ALL {
        let profile = Profile::only(&[trouble]);
        let found = search(&Search { count: 300, profile, ..Search::default() });
        let first = found.violations.first().map(|(seed, v)| format!("seed {seed}: {v}"));
        assert_eq!(first, None, "{trouble:?}");
    }
}

#[test]
fn without_trouble_every_task_runs_exactly_once() {
    let found = search(&Search { count: 500, profile: Profile::only(&[]), ..Search::default() });
    assert!(found.violations.is_empty(), "{:?}", found.violations.first());
    let s = found.stats;
    // Once its lease has expired, an id is free for another task. An execution without a lease does not keep a second
    // publication from being executed.
    assert_eq!(s.handed_out + s.undecodable, s.published - s.published_again + s.expired + s.unleased_again);
    assert_eq!(s.takeovers + s.lost_taken_over + s.ask_failed, 0);
}
