//! What the consumer tells: assignments come and go, records arrive.

use super::{
    Alarm, Fault, Machine, Now,
    item::{Place, Stage},
    open,
    slab::Ref,
    window::{Pushed, Slot, Window},
};
use crate::{Assignment, Batch, Commit, ErrorKind, Event, Result, Wall};
use std::cmp::Reverse;

impl Machine {
    /// What the consumer told.
    pub fn handle_event(&mut self, now: Now, event: Event) {
        self.observe_time(now);
        match event {
            Event::Assigned(assignments) => assignments.into_iter().for_each(|a| self.assigned(a)),
            Event::Records(assignment, batch) => self.records(&assignment, batch),
            Event::Revoking(assignments) => assignments.iter().for_each(|a| self.revoking(a)),
            Event::Lost(assignments) => {
                for a in &assignments {
                    if let Some(w) = self.by_assignment.get(a).copied() {
                        self.drop_window(w);
                    }
                }
                self.recall_ready();
            }
        }
    }

    /// The outcome of a commit.
    pub fn handle_committed(&mut self, now: Now, commit: &Commit, outcome: Result<()>) {
        self.observe_time(now);
        let interval = self.config.settings.commit_interval;
        let Some(w) = self.by_assignment.get(&commit.assignment) else { return };
        let Some(window) = self.windows.get_mut(*w) else { return };
        window.committing = false;
        window.commit_after = now.mono.plus(interval);
        match outcome {
            Ok(()) => {
                window.committed = window.committed.max(Some(commit.offset));
                window.commit_failed = false;
            }
            // It isn't ours under this epoch: whoever owns it commits.
            Err(e) if e.kind() == ErrorKind::NotOwner => {
                window.committed = window.committed.max(Some(commit.offset));
            }
            Err(_) => window.commit_failed = true,
        }
    }

    fn assigned(&mut self, assignment: Assignment) {
        // An adapter that forgot to tell of the loss does not leave two windows of one partition.
        let older: Vec<Ref> = self
            .by_assignment
            .iter()
            .filter(|(a, _)| a.partition == assignment.partition)
            .map(|(_, w)| *w)
            .collect();
        if !older.is_empty() {
            older.into_iter().for_each(|w| self.drop_window(w));
            self.recall_ready();
        }
        let is_wait = assignment.partition.topic == self.config.layout.wait;
        let w = self.windows.insert(Window::new(assignment.clone(), is_wait, self.clock.mono()));
        self.by_assignment.insert(assignment, w);
        self.order.push(w);
    }

    fn records(&mut self, assignment: &Assignment, batch: Batch) {
        let Some(w) = self.by_assignment.get(assignment).copied() else { return };
        let latest = self.latest_in_lane(assignment.partition.index);
        let (believed, ignored) =
            (self.config.has_fault(Fault::DueBelieved), self.config.has_fault(Fault::OtherLogIgnored));
        let Some(window) = self.windows.get_mut(w) else { return };
        for record in batch.records {
            let lane_due = if window.is_wait { open::lane_due(&record) } else { Wall(0) };
            let offset = record.offset;
            match window.push(record) {
                Pushed::New(seq) if window.is_wait => {
                    // What wasn't meant for this lane, or comes from a wrong clock, hops on after the longest stay.
                    let leaves = if believed { lane_due } else { lane_due.min(latest) };
                    if leaves == lane_due {
                        window.last_due = leaves;
                    }
                    self.due.push(Reverse((leaves, Place { window: w, seq })));
                }
                Pushed::New(_) | Pushed::Repeated => {}
                Pushed::OtherLog if ignored => {}
                Pushed::OtherLog => return self.log_replaced(w, offset),
            }
        }
        if batch.end.is_some() {
            window.end = batch.end;
        }
        window.moved_on(batch.next);
    }

    /// The topic was cut, or deleted and recreated: nothing that was read before holds for what comes now.
    fn log_replaced(&mut self, w: Ref, offset: i64) {
        let Some(window) = self.windows.get(w) else { return };
        let assignment = window.assignment.clone();
        self.alarm(Alarm::LogReplaced { assignment: assignment.clone(), offset });
        self.drop_window(w);
        self.recall_ready();
        self.reassigns.push(assignment);
    }

    /// No record of the partition's lane can stay longer than this.
    fn latest_in_lane(&self, partition: i32) -> Wall {
        self.clock
            .wall()
            .plus(self.config.ladder.longest_stay(partition))
            .plus(self.config.settings.clock_skew)
    }

    /// Times that were read while the clock was ahead may lie too far away now.
    pub(super) fn clock_was_set_back(&mut self) {
        if self.config.has_fault(Fault::ClockBackIgnored) {
            return;
        }
        for Reverse((lane_due, place)) in std::mem::take(&mut self.due) {
            if let Some(window) = self.windows.get(place.window) {
                let latest = self.latest_in_lane(window.assignment.partition.index);
                self.due.push(Reverse((lane_due.min(latest), place)));
            }
        }
    }

    fn revoking(&mut self, assignment: &Assignment) {
        let Some(w) = self.by_assignment.get(assignment).copied() else { return };
        let by = self.clock.mono().plus(self.config.settings.release_hold);
        if let Some(window) = self.windows.get_mut(w) {
            window.release_by.get_or_insert(by);
        }
        self.due.retain(|Reverse((_, place))| place.window != w);
        self.drop_unstarted(Some(w));
        self.recall_ready();
    }

    /// Ready jobs that nobody has taken come back, to be given back or to become ready again.
    pub(super) fn recall_ready(&mut self) {
        if self.config.has_fault(Fault::NoRecall) {
            return;
        }
        self.recall = true;
        for r in std::mem::take(&mut self.ready_out) {
            self.come_back(r, false);
        }
    }

    /// Intake ends, of one window or of all: what has not been started is dropped.
    pub(super) fn drop_unstarted(&mut self, of: Option<Ref>) {
        for r in self.items.refs().collect::<Vec<_>>() {
            let Some(item) = self.items.get(r) else { continue };
            if of.is_some() && item.place.map(|p| p.window) != of {
                continue;
            }
            match item.stage {
                Stage::OnDemand(_) | Stage::Waiting => self.remove(r),
                Stage::Considered if item.sent.is_none() && item.append.is_none() => self.remove(r),
                Stage::Held => self.go_on(r),
                _ => {}
            }
        }
        self.on_demand.retain(|r| self.items.get(*r).is_some());
    }

    /// The partition is another member's now. Running jobs may finish, their records are the next owner's.
    pub(super) fn drop_window(&mut self, w: Ref) {
        let Some(window) = self.windows.remove(w) else { return };
        self.by_assignment.remove(&window.assignment);
        self.order.retain(|o| *o != w);
        self.due.retain(|Reverse((_, place))| place.window != w);
        let open: Vec<Ref> = window
            .unfinished()
            .filter_map(|(_, slot)| if let Slot::Open(r) = slot { Some(*r) } else { None })
            .collect();
        for r in open {
            if let Some(item) = self.items.get_mut(r) {
                item.gone = true;
            }
        }
        self.drop_unstarted(Some(w));
        for r in self.items.refs().collect::<Vec<_>>() {
            let Some(item) = self.items.get_mut(r) else { continue };
            if item.place.is_some_and(|p| p.window == w) {
                item.place = None;
                self.go_on(r);
            }
        }
    }
}
