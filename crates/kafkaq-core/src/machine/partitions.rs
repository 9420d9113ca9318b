//! The consumer's events: assignments come and go, records arrive.

use super::{
    Alarm, Fault, Machine, Recall,
    item::{Place, RecordState, Stage},
    open,
    slab::Ref,
    window::Pushed,
};
use crate::{Assignment, Batch, Wall};

impl Machine {
    pub(super) fn assigned(&mut self, assignment: Assignment) {
        // Even if an adapter didn't report the loss, a partition never has two windows.
        let older: Vec<Ref> = self.windows.of_partition(&assignment.partition).collect();
        if !older.is_empty() {
            older.into_iter().for_each(|w| self.drop_window(w));
            self.recall_ready();
        }
        let is_lane = assignment.partition.topic == self.config.layout.wait;
        self.windows.insert(assignment, is_lane, self.clock.mono());
    }

    pub(super) fn records(&mut self, assignment: &Assignment, batch: Batch) {
        let Some(w) = self.windows.find(assignment) else { return };
        let latest = self.latest_in_lane(assignment.partition.index);
        let has_fault = |fault| self.config.has_fault(fault);
        let Some(window) = self.windows.get_mut(w) else { return };
        for record in batch.records {
            let lane_due = if window.is_lane() { open::lane_due(&record) } else { Wall(0) };
            let offset = record.offset;
            match window.push(record) {
                Pushed::New(seq) if window.is_lane() => {
                    // A record that wasn't meant for this lane, or whose time was set by a wrong clock, hops on after
                    // the longest stay.
                    let leaves = if has_fault(Fault::DueBelieved) { lane_due } else { lane_due.min(latest) };
                    if leaves == lane_due {
                        window.set_last_leaves(leaves);
                    }
                    self.lanes.push(leaves, Place { window: w, seq });
                }
                Pushed::New(_) | Pushed::Repeated => {}
                Pushed::OtherLog if has_fault(Fault::OtherLogIgnored) => {}
                Pushed::OtherLog => return self.log_replaced(w, offset),
            }
        }
        window.read_on(batch.next, batch.end);
    }

    /// The topic was truncated, or deleted and recreated: what was read before doesn't apply to what arrives now.
    fn log_replaced(&mut self, w: Ref, offset: i64) {
        let Some(window) = self.windows.get(w) else { return };
        let assignment = window.assignment.clone();
        self.alarm(Alarm::LogReplaced { assignment: assignment.clone(), offset });
        self.drop_window(w);
        self.recall_ready();
        self.windows.reassign(assignment);
    }

    /// No record of the partition's lane can stay longer than this.
    fn latest_in_lane(&self, partition: i32) -> Wall {
        let longest = self.config.ladder.longest_stay(partition);
        self.clock.wall().plus(longest).plus(self.config.settings.clock_skew)
    }

    /// Limits due times that were read while the clock was ahead.
    pub(super) fn clock_was_set_back(&mut self) {
        if self.config.has_fault(Fault::ClockBackIgnored) {
            return;
        }
        let mut lanes = std::mem::take(&mut self.lanes);
        lanes.limit(|w| Some(self.latest_in_lane(self.windows.get(w)?.assignment.partition.index)));
        self.lanes = lanes;
    }

    pub(super) fn revoking(&mut self, assignment: &Assignment) {
        let Some(w) = self.windows.find(assignment) else { return };
        let by = self.clock.mono().plus(self.config.settings.release_hold);
        if let Some(window) = self.windows.get_mut(w) {
            window.revoke(by);
        }
        self.lanes.remove_window(w);
        self.drop_unstarted(Some(w));
        self.recall_ready();
    }

    /// Writes the leases of all jobs without one, since the next owner has to know of them.
    fn lease_all_unleased(&mut self, w: Ref) {
        if self.config.has_fault(Fault::MovedUnleased) {
            return;
        }
        for r in self.items.refs() {
            if self.items.get(r).and_then(|item| item.place()).is_some_and(|place| place.window == w) {
                self.lease_unleased(r);
            }
        }
    }

    /// Recalls ready jobs that nobody has taken, to give them back or to make them ready again.
    pub(super) fn recall_ready(&mut self) {
        if self.config.has_fault(Fault::NoRecall) {
            return;
        }
        self.dispatch.recall(Recall::All);
        for r in self.dispatch.take_offers() {
            self.renew_or_offer(r, false);
        }
    }

    /// Ends intake for one window or for all: drops what has not been started.
    pub(super) fn drop_unstarted(&mut self, of: Option<Ref>) {
        let (now, lease) = (self.clock.mono(), self.config.settings.lease);
        for r in self.items.refs() {
            let Some(item) = self.items.get(r) else { continue };
            if of.is_some() && item.place().map(|place| place.window) != of {
                continue;
            }
            match item.stage {
                Stage::OnDemand(_) | Stage::Waiting { .. } => self.remove(r),
                Stage::Considered if item.may_have_lease(now, lease) => self.retry(r),
                Stage::Considered | Stage::Looking(_) if !item.store.is_sent() && item.append.is_none() => {
                    self.remove(r);
                }
                Stage::Held(_) => self.advance(r),
                _ => {}
            }
        }
        let items = &self.items;
        self.dispatch.retain_on_demand(|r| items.get(r).is_some());
        self.store.retain_failed(|r| items.get(r).is_some());
    }

    /// Drops the window of a partition that belongs to another member now. Running jobs may finish; their records
    /// belong to the next owner.
    pub(super) fn drop_window(&mut self, w: Ref) {
        if self.windows.remove(w).is_none() {
            return;
        }
        self.lease_all_unleased(w);
        self.lanes.remove_window(w);
        self.drop_unstarted(Some(w));
        for r in self.items.refs() {
            let Some(item) = self.items.get_mut(r) else { continue };
            if item.place().is_some_and(|place| place.window == w) {
                item.record = RecordState::Elsewhere;
                self.drop_pointless_append(r);
                self.advance(r);
            }
        }
    }
}
