//! Processes that take the locks of keys ([`kafkaq_core::key_lock::KeyLock`]) in a hostile store, in virtual time, from
//! one seed.
//!
//! A run has a hostile phase: calls that are refused, take effect late, or are answered late or not at all, a store
//! that is away, ages values out late or is wiped, processes that stand still, with their monotonic clock or without,
//! and die at any step, clocks that are apart by up to the skew and are set. Then a calm one, in which a holder dies
//! once and the store is wiped once.

mod check;
mod world;

use crate::{search::on_all_cores, trace::stats};
use kafkaq_core::key_lock::KeyLockFault;
use world::World;

stats! { KeyLockStats:
    /// Locks taken.
    takes,
    /// Of these, over what another had left.
    takeovers,
    /// Locks renewed.
    renewals,
    /// Locks given back.
    releases,
    /// Takes that were given up.
    given_up,
    /// Locks that were lost.
    lost,
    /// Of these, before their time, since another had the key.
    lost_to_another,
    /// Swaps that found something else.
    conflicts,
    /// Swaps that were refused.
    swap_refused,
    /// Swaps whose effect was unknown and happened.
    swap_unknown_applied,
    /// Swaps whose effect was unknown and did not happen.
    swap_unknown_lost,
    /// Swaps that took effect after their answer.
    swap_late,
    /// Swaps whose answer took long.
    answers_slow,
    /// Values that the store aged out.
    expired,
    /// The store lost everything.
    wipes,
    /// Times the store was away.
    outages,
    /// Processes that died.
    crashes,
    /// Processes that died while they held a lock.
    crashed_holders,
    /// Processes that stood still.
    pauses,
    /// Processes that stood still with their monotonic clock.
    suspended,
    /// Wall clocks that were set, within the skew.
    clocks_set,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct KeyLockOutcome {
    /// The first broken rule.
    pub violation: Option<String>,
    /// What happened, how often.
    pub stats: KeyLockStats,
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct KeyLockFound {
    /// Seeds that broke a rule, ascending.
    pub violations: Vec<(u64, String)>,
    /// All runs' counts.
    pub stats: KeyLockStats,
}

/// Runs a seed.
#[must_use]
pub fn run_key_lock(seed: u64, fault: Option<KeyLockFault>) -> KeyLockOutcome {
    World::new(seed, fault, false).run().0
}

/// Runs a seed and tells every event, a line each.
#[must_use]
pub fn trace_key_lock(seed: u64, fault: Option<KeyLockFault>) -> (KeyLockOutcome, Vec<String>) {
    World::new(seed, fault, true).run()
}

/// Runs many seeds on all cores. With `stop_at_first` the first violation is the lowest seed's that has one.
#[must_use]
pub fn search_key_lock(
    from: u64,
    count: u64,
    fault: Option<KeyLockFault>,
    stop_at_first: bool,
) -> KeyLockFound {
    let run = |seed, found: &mut KeyLockFound| {
        let outcome = run_key_lock(seed, fault);
        found.stats.add(&outcome.stats);
        let broken = outcome.violation.is_some();
        found.violations.extend(outcome.violation.map(|v| (seed, v)));
        broken && stop_at_first
    };
    let mut all = KeyLockFound::default();
    for found in on_all_cores(from, count, run) {
        all.stats.add(&found.stats);
        all.violations.extend(found.violations);
    }
    all.violations.sort_by_key(|(seed, _)| *seed);
    all
}
