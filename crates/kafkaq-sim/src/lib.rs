//! A deterministic simulation: several kafkaq processes, each one a [`kafkaq_core::machine::Machine`], against a
//! hostile log and a hostile store, in virtual time, everything from one seed.
//!
//! ```text
//!  clients ──publish──> log ──events──> process ──jobs──> workers
//!     └──cancel──> store <──swaps, gets──┘ └──appends, commits──> log
//! ```
//! A run has a hostile phase, with faults drawn from the seed, and then a calm one, in which everything has to
//! complete. The checks ([`Violation`]) see what the log and the store contain at every moment, and the machine only
//! from outside.

mod check;
mod clients;
mod digest;
mod driver;
mod group;
mod key_lock;
mod later;
mod log;
mod members;
mod process;
mod profile;
mod rng;
mod search;
mod store;
mod subject;
mod task;
mod trace;
mod transition;
mod workers;
mod world;

pub use check::Violation;
pub use group::{GroupSim, GroupStats};
pub use key_lock::{KeyLockSim, KeyLockStats};
pub use profile::{Profile, Trouble, WorldFault};
pub use search::{Found, Search, find, search};
pub use subject::{Played, Searched, Subject};
pub use trace::{Counts, Stats};

use kafkaq_core::machine::Fault;

/// The outcome of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// How often each thing happened.
    pub stats: Stats,
    /// A digest of all outputs of the machines, and their times. It is comparable between builds by one compiler.
    pub digest: u64,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, profile: &Profile, fault: Option<Fault>) -> Outcome {
    world::World::new(seed, profile, fault, false).run().0
}

/// Runs a seed and returns its events, one line per event.
#[must_use]
pub fn trace(seed: u64, profile: &Profile, fault: Option<Fault>) -> (Outcome, Vec<String>) {
    world::World::new(seed, profile, fault, true).run()
}
