//! The rules, checked from outside: by what the store and the members do.
//!
//! The store may lose data: it is wiped, loses a key, or is rolled back. Some rules have to hold nevertheless, others
//! only without a loss:
//!
//! | rule | across losses |
//! |---|---|
//! | reading never starts beyond a record of the log that nobody has read | yes |
//! | reading never starts before a checkpoint of this log | yes |
//! | reading never starts before a commit of this log that the store was given | since it last forgot |
//! | in one hold, no swap is sent with a lower cursor than one before it | yes |
//! | in one hold, no swap puts a lower cursor into the store | since it last forgot (1) |
//! | a commit is confirmed only if the store had it, and never for a hold that is over | yes |
//! | an epoch never goes back by a swap | yes |
//! | two members never commit under one epoch | since it last forgot |
//! | nobody takes a partition from a member that has just renewed it | unless it forgot that |
//! | a member that could not renew for the timeout holds nothing | yes |
//! | two members never hold a partition at once | since two timeouts after it last forgot (2) |
//! | a member that leaves in the calm phase leaves its last commit in the log | yes |
//! | a dead member's partitions have a new owner within the timeout plus one second; after a leave, much sooner | in peace |
//! | no member that has checked the topics holds a missing one | yes |
//! | at rest, all partitions are balanced, every record of each log was read, everything is committed, and nothing moves | in peace |
//!
//! (1) A swap whose response was lost may still be in flight when the store is rolled back to exactly the value that it
//! expects. It then takes effect after later ones. The owner meets the conflict at its next renewal and overwrites it
//! with its own cursor; if it dies before that, the log's checkpoint counts.
//!
//! (2) Another member takes a partition that the store has lost. The previous owner writes itself in again just before
//! its own time is up, and the other one, cut off from the store, continues until its time is up, too.

use super::world::{Id, TIMEOUT, WAY, World, cursor, shown};
use crate::trace::{MS, SEC, Us};
use kafkaq_core::group::{CommitOutcome, Value};
use kafkaq_core::{Assignment, Cursor};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A member's hold of a partition under an epoch.
type Hold = (Id, i32, u64);

#[derive(Default)]
pub(super) struct Check {
    pub(super) violation: Option<String>,
    /// When the store last forgot something, if ever.
    forgot: Option<Us>,
    /// The highest cursor of this log that the store was given, since it last forgot.
    given: BTreeMap<i32, i64>,
    /// When a swap of a member last took effect on a partition.
    renewed: HashMap<(Id, i32), Us>,
    /// The highest cursor that was sent in a hold.
    sent: HashMap<Hold, i64>,
    /// The highest cursor that took effect in a hold.
    had: HashMap<Hold, i64>,
    /// The same, since the store last forgot.
    has: HashMap<Hold, i64>,
    /// Holds that took effect in the store.
    begun: HashSet<(Id, i32, u64)>,
    /// Holds in which reading has begun: only they have a cursor of their own.
    started: HashSet<(Id, i32, u64)>,
    /// Values that were sent before: epoch and counter. Their cursor is what the last owner has left.
    carried: HashSet<(Id, i32, u64, u64)>,
    committers: HashMap<(i32, u64), Id>,
    /// Partitions without an owner: by when another member has to hold them.
    orphans: BTreeMap<i32, (Id, Us)>,
    /// Topics that are missing, and from when on nobody may hold them.
    missing: BTreeMap<i32, Us>,
}

impl Check {
    pub(super) fn forgot(&mut self, now: Us) {
        self.forgot = Some(now);
        self.given.clear();
        self.has.clear();
        self.committers.clear();
    }

    /// Returns whether the last loss of data is so long ago that every member has noticed it.
    fn is_settled(&self, now: Us) -> bool {
        self.forgot.is_none_or(|at| now >= at + 2 * TIMEOUT + 3 * WAY * MS)
    }

    /// Records that the log of a partition was replaced.
    pub(super) fn replaced(&mut self, p: i32) {
        self.given.remove(&p);
    }

    pub(super) fn missing(&mut self, p: i32, noticed: Us) {
        self.missing.insert(p, noticed);
    }

    pub(super) fn is_back(&mut self, p: i32) {
        self.missing.remove(&p);
    }

    pub(super) fn orphaned(&mut self, by: Id, partitions: impl IntoIterator<Item = i32>, until: Us) {
        self.orphans.extend(partitions.into_iter().map(|p| (p, (by, until))));
    }

    pub(super) fn found(&mut self, id: Id, p: i32) {
        if self.orphans.get(&p).is_some_and(|(by, _)| *by != id) {
            self.orphans.remove(&p);
        }
    }
}

impl World {
    fn broken(&mut self, rule: impl Into<String>) {
        let at = self.now / MS;
        self.check.violation.get_or_insert(format!("at {at} ms: {}", rule.into()));
    }

    /// A member sends this value: to take a partition, to ask for one, or for its own hold.
    pub(super) fn check_sent(&mut self, id: Id, p: i32, new: &Value) {
        let own = self.check.started.contains(&(id, p, new.epoch)) && new.owner.is_none_or(|m| m == id);
        if !own {
            self.check.carried.insert((id, p, new.epoch, new.counter));
        }
        let Some(at) = new.cursor.filter(|_| own) else { return };
        let before = self.check.sent.insert((id, p, new.epoch), at.offset);
        if before.is_some_and(|b| b > at.offset) {
            self.broken(format!("the cursor of partition {p} goes back within one hold: {}", shown(new)));
        }
    }

    /// A swap takes effect.
    pub(super) fn check_swap(&mut self, id: Id, p: i32, old: Option<&Value>, new: &Value) {
        if old.is_some_and(|o| o.epoch > new.epoch) {
            self.broken(format!("the epoch of partition {p} goes back: {}", shown(new)));
        }
        if new.owner.is_some_and(|m| m != id) {
            self.stats.requests += 1;
            return;
        }
        let begins = self.check.begun.insert((id, p, new.epoch)) && new.owner == Some(id);
        self.stats.takes += u64::from(begins);
        if begins && self.now >= super::world::REST + 5 * SEC {
            self.broken(format!("partition {p} changes hands at rest"));
        }
        if let Some(was) = old.and_then(|v| v.owner).filter(|was| new.owner.is_some_and(|m| m != *was)) {
            self.stats.takeovers += u64::from(begins);
            let last = self.check.renewed.get(&(was, p)).copied().unwrap_or_default();
            // An owner that finds an earlier one in a store that was rolled back writes itself in again.
            let forgot = self.check.forgot.is_some_and(|at| at >= last || !begins);
            if self.now < last + TIMEOUT && !forgot {
                self.broken(format!("partition {p} was taken from a member that is alive"));
            }
        }
        self.check.renewed.insert((id, p), self.now);
        if let Some(at) = new.cursor {
            self.check_cursor(id, p, old, new, at);
        }
    }

    fn check_cursor(&mut self, id: Id, p: i32, old: Option<&Value>, new: &Value, at: Cursor) {
        let hold = (id, p, new.epoch);
        if self.topics[&p].made(at) {
            let given = self.check.given.entry(p).or_default();
            *given = (*given).max(at.offset);
        } else {
            // A cursor of the log before it was truncated: the records below it were overwritten.
            self.check.given.remove(&p);
        }
        // Also into a store that has forgotten it.
        if self.check.carried.contains(&(id, p, new.epoch, new.counter)) {
            return;
        }
        let had = self.check.had.entry(hold).or_insert(at.offset);
        *had = (*had).max(at.offset);
        if Some(at) == old.and_then(|v| v.cursor) {
            return;
        }
        let has = self.check.has.entry(hold).or_insert(at.offset);
        let (before, highest) = (*has, at.offset.max(*has));
        *has = highest;
        if before > at.offset {
            self.broken(format!("the store's cursor of partition {p} goes back within one hold"));
        }
        let by = *self.check.committers.entry((p, new.epoch)).or_insert(id);
        if by != id {
            self.broken(format!("two members committed partition {p} under epoch {}", new.epoch));
        }
    }

    /// Where a member begins to read.
    pub(super) fn check_start(&mut self, id: Id, of: &Assignment, found: Cursor) {
        let p = of.partition.index;
        self.check.started.insert((id, p, of.epoch));
        let topic = &self.topics[&p];
        let unread = topic.unread(topic.first(), found.offset);
        let kept = self.checkpoints.get(&p).filter(|c| topic.made(**c)).map_or(0, |c| c.offset);
        if unread > 0 {
            self.broken(format!(
                "partition {p} is read from {}, beyond {unread} that nobody read",
                found.offset
            ));
        }
        if found.offset < kept {
            self.broken(format!("partition {p} is read from {} although the log has {kept}", found.offset));
        }
        // A member that was overtaken and doesn't know it yet starts in vain.
        let owner = self.stored(p).is_some_and(|v| v.owner == Some(id) && v.epoch == of.epoch);
        let given = self.check.given.get(&p).copied().unwrap_or_default();
        if owner && found.offset < given {
            let at = cursor(found);
            self.broken(format!("partition {p} is read from {at} although the store was given {given}"));
        }
    }

    /// A member writes a cursor to the log. Before it knows where to start, it has none of its own.
    pub(super) fn check_checkpoint(&mut self, id: Id, of: &Assignment) {
        let p = of.partition.index;
        if !self.check.started.contains(&(id, p, of.epoch)) {
            self.broken(format!("a cursor of partition {p} goes to the log before the start is found"));
        }
    }

    /// A member continues although it was given records that don't follow.
    pub(super) fn check_passed(&mut self, p: i32, position: Cursor) {
        if !self.topics[&p].made(position) {
            self.broken(format!(
                "a member continues with partition {p} although it was given records of \
                another log"
            ));
        }
    }

    pub(super) fn check_confirmed(&mut self, id: Id, of: &Assignment, to: Cursor) {
        let (p, epoch) = (of.partition.index, of.epoch);
        if self.check.had.get(&(id, p, epoch)).is_none_or(|at| *at < to.offset) {
            self.broken(format!("a commit of partition {p} was confirmed that the store never had"));
        }
    }

    /// A commit for a hold that is over was answered.
    pub(super) fn check_late(&mut self, of: &Assignment, outcome: CommitOutcome) {
        if outcome != CommitOutcome::NotOwner {
            self.broken(format!("a commit for {of}, which is over, came to {outcome:?}"));
        }
    }

    pub(super) fn check_held(&mut self, n: usize) {
        let id = self.procs[n].id;
        let renewed = |p: &i32| self.check.renewed.get(&(id, *p)).copied().unwrap_or_default();
        let held = self.procs[n].held.keys().filter(|_| !self.procs[n].leaving);
        let late = held.copied().find(|p| self.now >= renewed(p) + TIMEOUT);
        if let Some(p) = late {
            self.broken(format!("a member continues with partition {p} although it could not renew"));
        }
        let missing = |p: &&i32| self.check.missing.get(p).is_some_and(|noticed| self.now >= *noticed);
        if let Some(p) = self.procs[n].held.keys().find(missing).copied().filter(|_| !self.procs[n].leaving) {
            self.broken(format!("a member holds partition {p} although its topic is missing"));
        }
    }

    /// Checks all running members.
    pub(super) fn check_shared(&mut self) {
        if let Some((p, _)) = self.check.orphans.iter().find(|(_, (_, until))| *until < self.now) {
            return self.broken(format!("partition {p} was not taken over in time"));
        }
        if !self.check.is_settled(self.now) {
            return;
        }
        let mut holders: BTreeMap<i32, usize> = BTreeMap::new();
        let running = self.procs.iter().filter(|p| !p.is_paused(self.now) && !p.leaving);
        running.flat_map(|p| p.held.keys()).for_each(|p| *holders.entry(*p).or_default() += 1);
        if let Some(p) = holders.into_iter().find(|(_, n)| *n > 1).map(|(p, _)| p) {
            self.broken(format!("two members hold partition {p}"));
        }
    }

    /// Checks the members that have just left.
    pub(super) fn check_left(&mut self) {
        if !self.check.is_settled(self.now) {
            return;
        }
        let left = self.procs.iter().filter(|p| p.group.has_left() && p.left_in_peace);
        let held: Vec<_> =
            left.flat_map(|p| p.held.iter().filter_map(|(p, h)| Some((*p, h.confirmed?)))).collect();
        for (p, confirmed) in held {
            let topic = &self.topics[&p];
            let kept = self.checkpoints.get(&p).filter(|c| topic.made(**c)).map_or(0, |c| c.offset);
            if topic.made(confirmed) && kept < confirmed.offset {
                let at = confirmed.offset;
                self.broken(format!(
                    "a leaving member has committed {at} of partition {p}, but the log has \
                    {kept}"
                ));
            }
        }
    }

    pub(super) fn check_rest(&mut self) {
        let loads: Vec<usize> = self.procs.iter().map(|p| p.held.len()).collect();
        let held: Vec<i32> = self.procs.iter().flat_map(|p| p.held.keys().copied()).collect();
        if !self.topics.keys().all(|p| held.iter().filter(|h| *h == p).count() == 1) {
            return self.broken(format!("not every partition has one owner at rest: {held:?}"));
        }
        let (most, least) = (loads.iter().max().unwrap_or(&0), loads.iter().min().unwrap_or(&0));
        if most - least > 1 {
            self.broken(format!("the members are not in balance at rest: {loads:?}"));
        }
        for (p, topic) in self.topics.clone() {
            let unread = topic.unread(topic.first(), topic.next());
            if unread > 0 {
                self.broken(format!("{unread} records of partition {p} were never read"));
            }
            let at = self.stored(p).and_then(|v| v.cursor).filter(|c| topic.made(*c)).map_or(0, |c| c.offset);
            if at != topic.next() && topic.first() < topic.next() {
                self.broken(format!("partition {p} was committed to {at} of {} at rest", topic.next()));
            }
        }
    }
}
