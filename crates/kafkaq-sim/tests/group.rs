//! The group keeps its rules in every seed, and the simulation notices when one is taken out.

use kafkaq_core::group::GroupFault;
use kafkaq_sim::run_group;

#[test]
fn no_seed_breaks_a_rule_of_the_group() {
    let told: Vec<String> =
        (0..2_000).filter_map(|seed| run_group(seed, None).map(|v| format!("seed {seed}: {v}"))).collect();
    assert!(told.is_empty(), "{} seeds:\n{}", told.len(), told[..told.len().min(10)].join("\n"));
}

#[test]
fn every_planted_fault_of_the_group_is_found() {
    let missed: Vec<_> = GroupFault::ALL
        .iter()
        .filter(|fault| !(0..2_000).any(|seed| run_group(seed, Some(**fault)).is_some()))
        .collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn a_seed_of_the_group_replays_exactly() {
    let broken = |seed| run_group(seed, Some(GroupFault::ConflictOverwritten));
    for seed in 0..50 {
        assert_eq!(broken(seed), broken(seed), "seed {seed}");
    }
}
