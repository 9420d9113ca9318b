//! What is to be done, by kind.

use super::{
    Fault, FlowControl, Machine, Mono, Notice, OpId, Ready,
    copies::record_of,
    item::{Sent, Stage},
    slab::Ref,
    window::Slot,
};
use crate::{Assignment, Commit, Key, NewRecord, Partition, Swap, Wall, lease};
use bytes::BytesMut;
use std::time::Duration;

/// The wall clock may be set while the machine sleeps, so it never sleeps longer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

impl Machine {
    /// Swaps, of distinct keys.
    pub fn poll_swaps(&mut self, max: usize, out: &mut Vec<(OpId, Swap)>) {
        self.work();
        let now = self.clock.mono();
        let mut arena = BytesMut::with_capacity(2 * lease::SIZE * self.store.swaps_waiting().min(max));
        while out.len() < max
            && let Some(r) = self.store.pop_swap(now)
        {
            let Some(item) = self.items.get(r).filter(|i| i.sent.is_none() && i.has_key) else { continue };
            let Some(lease) = item.store.as_ref().and_then(|op| self.lease_of(item, op)) else { continue };
            let (expect, new) = (item.seen.value(&mut arena), lease.encode_in(&mut arena));
            let swap = Swap::new(item.key.clone(), expect, Some(new), Some(self.ttl(&lease)));
            out.push((OpId::from(r), swap));
            if let Some(item) = self.items.get_mut(r) {
                item.sent = Some(Sent::Swap(lease));
            }
        }
    }

    /// Gets.
    pub fn poll_gets(&mut self, max: usize, out: &mut Vec<(OpId, Key)>) {
        self.work();
        let now = self.clock.mono();
        while out.len() < max
            && let Some(r) = self.store.pop_read(now)
        {
            let waiting = |i: &&mut super::item::Item| i.sent.is_none() && i.has_key && i.store.is_some();
            if let Some(item) = self.items.get_mut(r).filter(waiting) {
                item.sent = Some(Sent::Look);
                out.push((OpId::from(r), item.key.clone()));
            }
        }
    }

    /// Appends of one partition.
    pub fn poll_appends(&mut self, max: usize, out: &mut Vec<(OpId, NewRecord)>) -> Option<Partition> {
        self.work();
        let items = &self.items;
        self.appends.next(self.clock.mono(), max, out, |r| record_of(items.get(r)?))
    }

    /// At most one commit an assignment; call it when no earlier commit call is under way.
    pub fn poll_commits(&mut self, out: &mut Vec<Commit>) {
        self.work();
        for i in 0..self.windows.len() {
            let Some(window) = self.windows.nth(i).and_then(|w| self.windows.get_mut(w)) else { continue };
            if let Some(mut offset) = window.begin_commit(self.clock.mono(), self.shutting) {
                let assignment = window.assignment.clone();
                if self.config.has_fault(Fault::PrefixOffByOne) {
                    offset += 1;
                }
                out.push(Commit { assignment, offset });
            }
        }
    }

    /// What to release: all that is finished is committed, and what was not handed out is given back; or it is time.
    pub fn poll_releases(&mut self, out: &mut Vec<Assignment>) {
        self.work();
        for w in self.windows.refs() {
            if self.may_release(w)
                && let Some(window) = self.windows.get(w)
            {
                out.push(window.assignment.clone());
                self.drop_window(w);
            }
        }
    }

    fn may_release(&self, w: Ref) -> bool {
        let Some(window) = self.windows.get(w) else { return false };
        let Some(by) = window.release_by() else { return false };
        let idle = |slot: &Slot| match slot {
            Slot::Open(r) => self.items.get(*r).is_none_or(|i| i.store.is_none()),
            _ => true,
        };
        let settled = !self.dispatch.is_recalling()
            && window.is_committed_or_failed()
            && window.unfinished().all(|(_, slot)| idle(slot));
        settled || by <= self.clock.mono()
    }

    /// Assignments to give up and take again: their log is another one.
    pub fn poll_reassigns(&mut self, out: &mut Vec<Assignment>) {
        self.windows.take_reassigns(out);
    }

    /// Partitions that are read no further for now, or read on.
    pub fn poll_flow(&mut self) -> Option<(Assignment, FlowControl)> {
        self.work();
        self.windows.pop_flow()
    }

    /// Jobs to hand out.
    pub fn poll_ready(&mut self, out: &mut Vec<Ready>) {
        self.work();
        for r in self.dispatch.take_offers() {
            let Some(item) = self.items.get(r) else { continue };
            let Some(own) = item.own else { continue };
            let left = own.until.since(self.clock.wall());
            out.push(Ready {
                job: r.into(),
                content: item.content.clone(),
                attempt: own.attempt,
                failures: own.failures,
                history: item.history.clone(),
                token: own.token,
                deadline: own.until,
                // Short already when a slow store has confirmed it: then most of what is left is for a caller.
                stale_at: self
                    .clock
                    .mono()
                    .plus(left.saturating_sub(self.config.settings.lease / 2).max(left / 4)),
            });
            self.dispatch.handed_to_driver();
        }
    }

    /// Whether all ready jobs that nobody has taken must come back through [`Machine::handle_untaken`].
    pub fn poll_recall(&mut self) -> bool {
        self.dispatch.take_recall()
    }

    /// Answers, losses, and operator alerts.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.notices.pop()
    }

    /// When [`Machine::handle_timeout`] wants to be called; changes with every input.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        if self.dirty {
            return Some(self.clock.mono());
        }
        let mut wake = None;
        // What is possible already waits for the driver to have room, not for a time.
        let mut at = |when: Mono| {
            if when > self.clock.mono() {
                wake = Some(wake.map_or(when, |w: Mono| w.min(when)));
            }
        };
        let now = self.clock.mono();
        let times =
            [self.store.opens_at(now), self.appends.opens_at(now), self.appends.retry_at(), self.sweep_at()];
        times.into_iter().flatten().for_each(&mut at);
        if let Some(leaves) = self.lanes.next_at()
            && leaves > self.clock.wall()
            && !self.config.has_fault(Fault::LostWakeup)
        {
            at(self.mono_of(leaves));
        }
        for window in self.windows.iter() {
            if let Some(by) = window.release_by() {
                at(by);
                continue;
            }
            if let Some(commit) = window.commit_at() {
                at(commit);
            }
            if let Some((_, Slot::Open(r))) = window.unfinished().next()
                && let Some(item) = self.items.get(*r)
                && item.stage == Stage::Held
                && item.append.is_none()
                && item.command.is_none()
                && !self.is_late(item)
            {
                at(item.turn.plus(self.config.settings.park_after));
            }
        }
        wake
    }

    fn mono_of(&self, wall: Wall) -> Mono {
        self.clock.mono().plus(wall.since(self.clock.wall()).min(LONGEST_SLEEP))
    }
}
