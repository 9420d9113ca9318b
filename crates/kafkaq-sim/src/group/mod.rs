//! A group of members ([`kafkaq_core::group::Group`]) over a hostile store, in virtual time, from one seed.
//!
//! ```text
//!  topics ──records──> member ──read, swap──> store (late, silent, away, wiped, rolled back)
//!     ▲                  └──────checkpoints──> log
//!     └── grow, are truncated, trimmed, deleted and recreated, return nothing, get partitions
//! ```
//! A run has a hostile phase: calls that take effect late or without a response, calls that name a hold which is over,
//! a store that is down or loses data, members that pause, resume, crash, join and leave, topics that are replaced
//! unnoticed. Then a calm one, with one recreated topic, one crash, one leave, one join and one added partition, after
//! each of which the group has to settle in time.

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
    /// Commits that were refused, since another member owned the partition.
    commits_refused,
    /// Commits that were lost with their partition.
    commits_unknown,
    /// Starts at the store's cursor.
    starts_stored,
    /// Starts at the log's checkpoint, because it was further than the store or the store had none.
    starts_kept,
    /// Starts at the first record.
    starts_first,
    /// Starts for which a cursor of an earlier log was known.
    starts_anew,
    /// Starts after records that were deleted unread.
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
    /// Times the store was down.
    outages,
    /// Times the log was down for members that look for a start.
    log_outages,
    /// Members that joined.
    joins,
    /// Members that left.
    leaves,
    /// Members that died.
    crashes,
    /// Members that were paused.
    pauses,
    /// Partitions that were recreated.
    recreated,
    /// Of these, partitions that were missing for a while.
    deleted,
    /// Logs that were truncated at the end.
    cuts,
    /// Logs that were trimmed at the beginning.
    trims,
    /// Records that were deleted before anybody had read them.
    deleted_unread,
    /// Responses without a record although there was one.
    empty_answers,
    /// Fetches that failed.
    fetches_failed,
    /// Fetches that returned records that had been read.
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
