//! A consumer group for a log without one, as a pure machine: owners of partitions, their cursors, and rebalancing, all
//! with compare-and-swap on one value per partition.
//!
//! ```text
//!         swap won            start found        wanted by another       released, or time is up
//!  free ───────────▶ Locating ───────────▶ Held ─────────────────▶ Revoking ─────────────┐
//!   ▲                   │ Lost               │ Lost                  │ Lost              ▼
//!   │                   └────────────────────┴───────┬───────────────┘             Releasing
//!   │◀── the counter stood still for member_timeout ─┘                                   │
//!   └──────────────────────── the owner is cleared by a swap ◀───────────────────────────┘
//! ```
//! - An owner renews by incrementing the value's counter, ten times per `member_timeout`. A member that sees no change
//!   of the counter for `member_timeout`, by its own monotonic clock, takes the partition. The owner stops earlier than
//!   that by its own clock, counted from when the last renewal was sent: no two clocks are compared.
//! - A commit is a swap too, so only the owner can make it, and it is also a renewal.
//! - A member with too few partitions asks the one with the most for one of them, by writing its name into the value.
//!   The owner finds it at its next renewal, releases it in two phases, and the partition is reserved for the requester
//!   for a while.
//! - The store may lose data: an owner that finds nothing, or an earlier state that is no further than its own, writes
//!   its own again. To decide where reading starts, the log's checkpoint counts as much as the store's cursor.
//! - A topic may be truncated, or deleted and recreated: a cursor of an earlier log is ignored when reading starts, and
//!   a member that finds its log replaced loses the partition and takes it again.
//! - A leaving member checkpoints its cursors first, and then releases its partitions.
//!
//! No async, no clock, no randomness, no I/O: inputs are `handle_*`, outputs are `poll_*`.

mod balance;
mod fault;
mod hold;
#[cfg(test)]
mod properties;
mod start;
mod swaps;
mod takes;
#[cfg(test)]
mod tests;
mod trail;
mod value;
mod view;

pub use fault::GroupFault;
pub use start::start;
pub use trail::Trail;
pub use value::Value;

use crate::{Assignment, Cursor, Key, Partition, faults::Planted, machine::Mono};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use view::{Own, PartitionView, Phase};

/// Identifies a member.
pub type MemberId = [u8; 16];

/// The configuration of a member. The same for all members of a group.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group's name.
    pub group: Arc<str>,
    /// This member.
    pub member: MemberId,
    /// After this long without a renewal a member is considered dead.
    pub member_timeout: Duration,
    /// How long a revoked partition may be held.
    pub release_limit: Duration,
    /// How often a cursor is written to the log.
    pub checkpoint_every: Duration,
}

/// A change of the member's assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Ours now; reading starts here.
    Assigned(Assignment, Cursor),
    /// To be released.
    Revoking(Assignment),
    /// No longer ours.
    Lost(Assignment),
}

/// The outcome of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// The store has it.
    Done,
    /// Another member owns the partition.
    NotOwner,
    /// The partition was lost while the commit was in flight.
    Unknown,
}

/// Identifies the swap that an outcome belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapToken(usize);

/// Identifies the read that an outcome belongs to.
#[derive(Clone, Debug)]
pub struct ReadToken(Vec<(usize, u64)>);

/// A member of a group.
#[derive(Debug)]
pub struct Group {
    config: GroupConfig,
    views: Vec<PartitionView>,
    by_partition: HashMap<Partition, usize>,
    next_read: Mono,
    /// The view that the next read starts with: one read may not cover all of them.
    read_from: usize,
    reading: bool,
    leaving: bool,
    changes: VecDeque<Change>,
    answers: Vec<(u64, CommitOutcome)>,
    planted: Planted<GroupFault>,
}

/// How soon a failed call is retried.
const RETRY: Duration = Duration::from_millis(100);

impl Group {
    /// Creates a member that knows no partitions yet.
    #[must_use]
    pub fn new(config: GroupConfig) -> Self {
        Group {
            config,
            views: Vec::new(),
            by_partition: HashMap::new(),
            next_read: Mono(0),
            read_from: 0,
            reading: false,
            leaving: false,
            changes: VecDeque::new(),
            answers: Vec::new(),
            planted: Planted::NOTHING,
        }
    }

    /// Removes a rule.
    pub fn plant(&mut self, planted: Planted<GroupFault>) {
        self.planted = planted;
    }

    /// How often an owner renews.
    fn tick(&self) -> Duration {
        self.config.member_timeout / 10
    }

    /// An owner gives up this long after its last renewal was sent: before anybody else may take over.
    fn own_limit(&self) -> Duration {
        self.config.member_timeout - self.tick()
    }

    /// Sets all existing partitions. Those that are no longer among them are lost.
    pub fn handle_partitions(&mut self, partitions: impl IntoIterator<Item = Partition>) {
        let mut there = vec![false; self.views.len()];
        for partition in partitions {
            if let Some(i) = self.by_partition.get(&partition) {
                there[*i] = true;
                continue;
            }
            there.push(true);
            self.by_partition.insert(partition.clone(), self.views.len());
            self.views.push(PartitionView::new(Key::partition(&self.config.group, &partition), partition));
            self.next_read = Mono(0);
        }
        for (i, there) in there.into_iter().enumerate() {
            let gone = !there && !self.planted.is(GroupFault::MissingKept);
            self.views[i].gone = gone;
            if gone {
                self.lose(i, CommitOutcome::Unknown);
            }
        }
    }

    /// Advances time: partitions that could not be renewed are lost, revoked ones are released at their limit.
    pub fn handle_time(&mut self, now: Mono) {
        let limit = self.own_limit();
        for i in 0..self.views.len() {
            let view = &mut self.views[i];
            let Some(own) = &mut view.own else { continue };
            let revoked = matches!(own.phase, Phase::Revoking(by) if now >= by);
            if now >= own.renewed.plus(limit) && !self.planted.is(GroupFault::NeverStops) {
                self.lose(i, CommitOutcome::Unknown);
            } else if revoked && !self.planted.is(GroupFault::NoReleaseLimit) {
                own.phase = Phase::Releasing;
                let (epoch, view) = (own.epoch, &self.views[i]);
                self.changes.push_back(Change::Lost(view.assignment(epoch)));
            }
        }
    }

    fn lose(&mut self, i: usize, why: CommitOutcome) {
        let view = &mut self.views[i];
        if let Some(own) = view.own.take() {
            self.answers.extend(own.commits.iter().map(|(id, _)| (*id, why)));
            if matches!(own.phase, Phase::Held | Phase::Revoking(_)) {
                self.changes.push_back(Change::Lost(view.assignment(own.epoch)));
            }
        }
    }

    /// Stops taking partitions and releases all.
    pub fn handle_leave(&mut self) {
        self.leaving = true;
        self.views.iter_mut().filter_map(|s| s.own.as_mut()).for_each(|own| own.phase = Phase::Releasing);
    }

    /// Whether everything is released.
    #[must_use]
    pub fn has_left(&self) -> bool {
        let is_over = |s: &PartitionView| s.own.is_none() && s.sent.is_none() && !self.is_left_behind(s);
        self.leaving && self.views.iter().all(is_over)
    }

    /// Whether the store still names this member as the owner of a lost partition. A member that stays would take it
    /// again; if one leaves, the others would have to wait for the member timeout.
    fn is_left_behind(&self, view: &PartitionView) -> bool {
        view.own.is_none() && view.owner() == Some(self.config.member) && !view.newer
    }

    /// Returns the member's next change.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Returns the outcomes of commits.
    pub fn poll_answers(&mut self) -> Vec<(u64, CommitOutcome)> {
        std::mem::take(&mut self.answers)
    }

    /// Returns when to call [`Group::handle_time`] next, if nothing happens before.
    #[must_use]
    pub fn next_time(&self, now: Mono) -> Option<Mono> {
        let read = (!self.reading && !self.leaving).then_some(self.next_read);
        let later = |at: &Mono| *at > now;
        let views = self.views.iter().filter_map(|view| match &view.own {
            Some(own) => Some(self.next_of_own(view, own)),
            None if view.gone || view.sent.is_some() => None,
            None => view
                .owner()
                .map(|owner| match owner == self.config.member {
                    true => view.retry_at,
                    false => view.changed.plus(self.config.member_timeout).max(view.retry_at),
                })
                .filter(later),
        });
        read.into_iter().chain(views).min()
    }

    fn next_of_own(&self, view: &PartitionView, own: &Own) -> Mono {
        let lost = own.renewed.plus(self.own_limit());
        let written = view.sent.is_none().then(|| self.write_at(view, own));
        let phase = match own.phase {
            Phase::Revoking(by) => Some(by),
            Phase::Locating(at) => at,
            Phase::Held | Phase::Releasing => None,
        };
        let kept = self.pending_checkpoint(own).map(|(_, at)| at);
        [written, phase, kept].into_iter().flatten().fold(lost, Mono::min)
    }
}
