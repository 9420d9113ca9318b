//! Processes that take the locks of keys ([`kafkaq_core::key_lock::KeyLock`]) in a hostile store, in virtual time, from
//! one seed.
//!
//! A run has a hostile phase: calls that are refused, take effect late, or get a late response or none, a store that is
//! down, expires values late or is wiped, processes that are paused, with or without their monotonic clock, and die at
//! any step, clocks that differ by up to the skew and are set. Then a calm one, in which a holder dies once and the
//! store is wiped once.

mod check;
mod world;

use crate::{
    subject::{Played, Subject},
    trace::stats,
};
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
    /// Takes that were abandoned.
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
    /// Swaps whose response took long.
    answers_slow,
    /// Values that the store aged out.
    expired,
    /// The store lost everything.
    wipes,
    /// Times the store was down.
    outages,
    /// Processes that died.
    crashes,
    /// Processes that died while they held a lock.
    crashed_holders,
    /// Processes that were paused.
    pauses,
    /// Processes that were paused together with their monotonic clock.
    suspended,
    /// Wall clocks that were set, within the skew.
    clocks_set,
}

/// The lock of a key, simulated.
#[derive(Debug)]
pub enum KeyLockSim {}

impl Subject for KeyLockSim {
    type Fault = KeyLockFault;
    type Stats = KeyLockStats;
    const FAULTS: &'static [KeyLockFault] = KeyLockFault::ALL;

    fn play(seed: u64, fault: Option<KeyLockFault>, traced: bool) -> (Played<KeyLockStats>, Vec<String>) {
        World::new(seed, fault, traced).run()
    }
}
