//! The lock of a key keeps its rules in every seed, and the simulation notices when one is taken out.

use kafkaq_core::key_lock::KeyLockFault;
use kafkaq_sim::{run_key_lock, search_key_lock, trace_key_lock};

/// A simulation that never reaches a rule proves nothing about it.
#[test]
fn no_seed_breaks_a_rule_of_the_key_lock_and_everything_happens() {
    let found = search_key_lock(0, 5_000, None, false);
    let told: Vec<String> = found.violations.iter().take(10).map(|(s, v)| format!("seed {s}: {v}")).collect();
    assert!(told.is_empty(), "{} seeds:\n{}", found.violations.len(), told.join("\n"));
    let happened = found.stats.list().into_iter();
    let never: Vec<&str> = happened.filter(|(_, n)| *n == 0).map(|(name, _)| name).collect();
    assert!(never.is_empty(), "never happened: {never:?}");
}

#[test]
fn every_planted_fault_of_the_key_lock_is_found() {
    let missed: Vec<_> = KeyLockFault::ALL
        .iter()
        .filter(|fault| search_key_lock(0, 5_000, Some(**fault), true).violations.is_empty())
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_seed_of_the_key_lock_replays_exactly() {
    let fault = Some(KeyLockFault::SkewIgnored);
    for seed in 0..20 {
        let (_, lines) = trace_key_lock(seed, None);
        assert!(lines.len() > 200, "seed {seed}: nothing happens");
        assert_eq!(lines, trace_key_lock(seed, None).1, "seed {seed}");
        let broken = run_key_lock(seed, fault).violation;
        assert_eq!(broken, trace_key_lock(seed, fault).0.violation, "seed {seed}, traced");
    }
}
