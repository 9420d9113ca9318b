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

use crate::{
    subject::{Played, Subject},
    trace::stats,
};
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
    /// Times the log was away for those who look for a start.
    log_outages,
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

/// The group, simulated.
#[derive(Debug)]
pub enum GroupSim {}

impl Subject for GroupSim {
    type Fault = GroupFault;
    type Stats = GroupStats;
    const FAULTS: &'static [GroupFault] = GroupFault::ALL;

    fn play(seed: u64, fault: Option<GroupFault>, traced: bool) -> (Played<GroupStats>, Vec<String>) {
        World::new(seed, fault, traced).run()
    }
}
