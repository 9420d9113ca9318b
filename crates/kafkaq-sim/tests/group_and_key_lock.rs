//! The group and the lock of a key keep their rules in every seed, and the simulation notices when one is removed.

use kafkaq_core::{group::GroupFault, key_lock::KeyLockFault};
use kafkaq_sim::{Counts, GroupSim, KeyLockSim, Subject};

/// A simulation that never reaches a rule proves nothing about it.
fn no_seed_breaks_a_rule_and_everything_happens<S: Subject>(seeds: u64) {
    let found = S::search(0, seeds, None, false);
    let told: Vec<String> = found.violations.iter().take(10).map(|(s, v)| format!("seed {s}: {v}")).collect();
    assert!(told.is_empty(), "{} seeds:\n{}", found.violations.len(), told.join("\n"));
    let happened = found.stats.list().into_iter();
    let never: Vec<&str> = happened.filter(|(_, n)| *n == 0).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "never happened: {never:?}");
}

fn every_planted_fault_is_found<S: Subject>() {
    let missed: Vec<_> = S::FAULTS
        .iter()
        .filter(|fault| S::search(0, 5_000, Some(**fault), true).violations.is_empty())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

fn a_seed_replays_exactly<S: Subject>(fault: S::Fault, least_lines: usize) {
    for seed in 0..20 {
        let (_, lines) = S::play(seed, None, true);
        assert!(lines.len() > least_lines, "seed {seed}: nothing happens");
        assert_eq!(lines, S::play(seed, None, true).1, "seed {seed}");
        let broken = S::play(seed, Some(fault), false).0.violation;
        assert_eq!(broken, S::play(seed, Some(fault), true).0.violation, "seed {seed}, traced");
    }
}

#[test]
fn no_seed_breaks_a_rule_of_the_group_and_everything_happens() {
    no_seed_breaks_a_rule_and_everything_happens::<GroupSim>(1_500);
}

#[test]
fn every_planted_fault_of_the_group_is_found() {
    every_planted_fault_is_found::<GroupSim>();
}

#[test]
fn a_seed_of_the_group_replays_exactly() {
    a_seed_replays_exactly::<GroupSim>(GroupFault::ConflictOverwritten, 500);
}

#[test]
fn no_seed_breaks_a_rule_of_the_key_lock_and_everything_happens() {
    no_seed_breaks_a_rule_and_everything_happens::<KeyLockSim>(5_000);
}

#[test]
fn every_planted_fault_of_the_key_lock_is_found() {
    every_planted_fault_is_found::<KeyLockSim>();
}

#[test]
fn a_seed_of_the_key_lock_replays_exactly() {
    a_seed_replays_exactly::<KeyLockSim>(KeyLockFault::SkewIgnored, 200);
}
