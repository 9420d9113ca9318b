//! A group of members ([`kafkaq_core::group::Group`]) over a hostile store, in virtual time, from one seed.
//!
//! ```text
//!  topics ──records──> member ──read, swap──> store (late, silent, away, wiped, rolled back)
//!     ▲                  └──────checkpoints──> log
//!     └── grow, are cut, trimmed, deleted and recreated, answer with nothing, get partitions
//! ```
//! A run has a hostile phase: calls that take effect late or without an answer, calls that name a hold which is over, a
//! store that is away or forgets, members that stop, wake, crash, join and leave, topics that are replaced by others
//! unseen. Then a calm one, with a topic that is recreated, a crash, a leave, a join and a new partition of its own,
//! after each of which everything has to be in its place in time.

mod check;
mod member;
mod topic;
mod trouble;
mod world;

use crate::{search::on_all_cores, trace::stats};
use kafkaq_core::group::GroupFault;
use world::World;

stats! { GroupStats:
    /// Partitions taken by compare-and-swap.
    takes,
    /// Of these, taken from a member that had gone silent.
    takeovers,
    /// Partitions that a member asked another for.
    requests,
    /// Partitions that a member was asked to release.
    revocations,
    /// Revoked partitions that the member held too long.
    hold_limits,
    /// Partitions that were lost.
    lost,
    /// Commits that the store confirmed.
    commits_done,
    /// Commits that were refused, since the partition was another's.
    commits_refused,
    /// Commits that were lost with their partition.
    commits_unknown,
    /// Starts at the store's cursor.
    starts_stored,
    /// Starts at the log's checkpoint, because it was further than the store or the store had none.
    starts_kept,
    /// Starts at the first record.
    starts_first,
    /// Starts with a cursor of an earlier log at hand.
    starts_anew,
    /// Starts behind records that were deleted unread.
    starts_after_deleted,
    /// Checkpoints in the log.
    checkpoints,
    /// Checkpoints that failed.
    checkpoints_failed,
    /// Swaps that found something else.
    conflicts,
    /// Swaps whose effect was unknown and happened.
    swap_unknown_applied,
    /// Swaps whose effect was unknown and did not happen.
    swap_unknown_lost,
    /// Swaps that took effect after their answer.
    swap_late,
    /// The store lost everything.
    wipes,
    /// The store lost a key.
    evictions,
    /// The store came back with older data.
    rollbacks,
    /// Times the store was away.
    outages,
    /// Members that joined.
    joins,
    /// Members that left.
    leaves,
    /// Members that died.
    crashes,
    /// Members that stood still.
    pauses,
    /// Partitions that were recreated.
    recreated,
    /// Of these, partitions that were missing for a while.
    deleted,
    /// Logs that lost their end.
    cuts,
    /// Logs that lost their beginning.
    trims,
    /// Records that were deleted before anybody had read them.
    deleted_unread,
    /// Answers without a record although there was one.
    empty_answers,
    /// Fetches that failed.
    fetches_failed,
    /// Fetches that brought what had been read.
    repeated,
    /// Fetches that began beyond the position.
    gaps,
    /// Partitions whose reader found another log.
    broken,
    /// Calls that named a hold which was over.
    late_calls,
    /// Partitions that were added.
    partitions_added,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct GroupOutcome {
    /// The first broken rule.
    pub violation: Option<String>,
    /// What happened, how often.
    pub stats: GroupStats,
}

/// What many runs came to.
#[derive(Clone, Debug, Default)]
pub struct GroupFound {
    /// Seeds that broke a rule, ascending.
    pub violations: Vec<(u64, String)>,
    /// All runs' counts.
    pub stats: GroupStats,
}

/// Runs a seed.
#[must_use]
pub fn run_group(seed: u64, fault: Option<GroupFault>) -> GroupOutcome {
    World::new(seed, fault, false).run().0
}

/// Runs a seed and tells every event, a line each.
#[must_use]
pub fn trace_group(seed: u64, fault: Option<GroupFault>) -> (GroupOutcome, Vec<String>) {
    World::new(seed, fault, true).run()
}

/// Runs many seeds on all cores. With `stop_at_first` the first violation is the lowest seed's that has one.
#[must_use]
pub fn search_group(from: u64, count: u64, fault: Option<GroupFault>, stop_at_first: bool) -> GroupFound {
    let run = |seed, found: &mut GroupFound| {
        let outcome = run_group(seed, fault);
        found.stats.add(&outcome.stats);
        let broken = outcome.violation.is_some();
        found.violations.extend(outcome.violation.map(|v| (seed, v)));
        broken && stop_at_first
    };
    let mut all = GroupFound::default();
    for found in on_all_cores(from, count, run) {
        all.stats.add(&found.stats);
        all.violations.extend(found.violations);
    }
    all.violations.sort_by_key(|(seed, _)| *seed);
    all
}
