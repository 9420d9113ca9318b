//! All outputs, in the order in which they are to be polled: see the [module's](super) documentation.

use super::{
    Fault, FlowControl, Machine, Mono, News, Notice, OpId, Ready, Recall,
    copies::record_of,
    item::{Operation, Phase},
    leases::lease_of,
    slab::Ref,
    suspects::watched_until,
    window::{Slot, Window},
};
use crate::{Assignment, Commit, Key, NewRecord, Partition, Swap, lease};
use bytes::BytesMut;
use std::time::Duration;

/// The wall clock may be set while the machine sleeps, so it never sleeps longer.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

// ---- calls of the store and of the log
impl Machine {
    /// Swaps, of distinct keys.
    pub fn poll_swaps(&mut self, max: usize, out: &mut Vec<(OpId, Swap)>) {
        self.process_inputs();
        let (now, wall) = (self.clock.mono(), self.clock.wall());
        let mut arena = BytesMut::with_capacity(2 * lease::SIZE * self.store.swaps_waiting().min(max));
        while out.len() < max
            && let Some(r) = self.store.pop_swap(now)
        {
            let Some(item) = self.items.get_mut(r) else { continue };
            let Some(Operation::Swap(op, Phase::Queued)) = item.store.operation else { continue };
            let Some(lease) = lease_of(item, op, &self.config, wall) else { continue };
            let ttl = self.config.ttl(&lease, wall);
            let (expect, new) = (item.observed.value(&mut arena), lease.encode_in(&mut arena));
            out.push((r.into(), Swap::new(item.key.clone(), expect, Some(new), Some(ttl))));
            item.store.operation = Some(Operation::Swap(op, Phase::Sent(lease)));
        }
    }

    /// Gets.
    pub fn poll_gets(&mut self, max: usize, out: &mut Vec<(OpId, Key)>) {
        self.process_inputs();
        let now = self.clock.mono();
        while out.len() < max
            && let Some(r) = self.store.pop_read(now)
        {
            if let Some(item) = self.items.get_mut(r)
                && let Some(Operation::Read(phase @ Phase::Queued)) = &mut item.store.operation
            {
                *phase = Phase::Sent(());
                out.push((r.into(), item.key.clone()));
            }
        }
    }

    /// Appends of one partition.
    pub fn poll_appends(&mut self, max: usize, out: &mut Vec<(OpId, NewRecord)>) -> Option<Partition> {
        self.process_inputs();
        let items = &self.items;
        self.appends.next(self.clock.mono(), max, out, |r| record_of(items.get(r)?))
    }

    /// At most one commit per assignment; call it when no earlier commit call is under way.
    pub fn poll_commits(&mut self, out: &mut Vec<Commit>) {
        self.process_inputs();
        let settings = &self.config.settings;
        let span = settings.track_after.map(|_| settings.unleased_span);
        for i in 0..self.windows.len() {
            let Some(window) = self.windows.nth(i).and_then(|w| self.windows.get_mut(w)) else { continue };
            if let Some(mut offset) = window.begin_commit(self.clock.mono(), self.shutting_down, span) {
                let assignment = window.assignment.clone();
                if self.config.has_fault(Fault::PrefixOffByOne) {
                    offset += 1;
                }
                out.push(Commit { assignment, offset });
            }
        }
    }
}

// ---- what the consumer is to do
impl Machine {
    /// What to release: all that is finished is committed, and what was not handed out is given back; or it is time.
    pub fn poll_releases(&mut self, out: &mut Vec<Assignment>) {
        self.process_inputs();
        let mut i = 0;
        while let Some(w) = self.windows.nth(i) {
            if self.may_release(w)
                && let Some(window) = self.windows.get(w)
            {
                out.push(window.assignment.clone());
                self.drop_window(w);
            } else {
                i += 1;
            }
        }
    }

    fn may_release(&self, w: Ref) -> bool {
        let Some(window) = self.windows.get(w) else { return false };
        let Some(by) = window.release_by() else { return false };
        let is_idle = |slot: &Slot| match slot {
            Slot::Open(r) => self.items.get(*r).is_none_or(|item| item.store.is_idle()),
            _ => true,
        };
        let is_settled = !self.dispatch.is_recalling()
            && (self.config.settings.track_after.is_none() || self.may_move(window))
            && window.is_committed_or_failed()
            && window.unfinished().all(|(_, slot)| is_idle(slot));
        is_settled || by <= self.clock.mono()
    }

    /// Returns whether the next owner can know of the jobs that run here, and everything that only this process knows
    /// to be done is committed.
    fn may_move(&self, window: &Window) -> bool {
        if self.config.has_fault(Fault::MovedUnleased) {
            return true;
        }
        let (last, now) = (window.last_held_back(), self.clock.mono());
        window.unfinished().all(|(seq, slot)| {
            let Slot::Open(r) = slot else { return true };
            let Some(item) = self.items.get(*r).filter(|item| item.is_held()) else { return true };
            // A copy that the log has refused is not waited for.
            let is_in_the_way = last.is_some_and(|last| seq < last) && item.copies.not_before <= now;
            !item.is_unleased() && !is_in_the_way
        })
    }

    /// Assignments to give up and take again, because their log was replaced.
    pub fn poll_reassigns(&mut self, out: &mut Vec<Assignment>) {
        self.assert_processed();
        self.windows.take_reassigns(out);
    }

    /// Partitions to pause or to resume.
    pub fn poll_flow(&mut self) -> Option<(Assignment, FlowControl)> {
        self.process_inputs();
        self.windows.pop_flow()
    }
}

// ---- jobs, and what becomes of them
impl Machine {
    /// Jobs to hand out.
    pub fn poll_ready(&mut self, out: &mut Vec<Ready>) {
        self.process_inputs();
        while let Some(r) = self.dispatch.pop_offer() {
            let Some(item) = self.items.get(r) else { continue };
            let Some(held) = item.held() else { continue };
            let own = held.lease;
            out.push(Ready {
                job: r.into(),
                content: item.content.clone(),
                attempt: own.attempt,
                failures: own.failures,
                history: item.history.clone(),
                token: own.token,
                deadline: own.until,
                renew_at: held.renew_at,
                stale_at: held.stale_at(),
            });
            self.dispatch.given_to_driver();
        }
    }

    /// Answers, losses, and operator alerts.
    pub fn poll_notice(&mut self) -> Option<Notice> {
        self.assert_processed();
        self.notices.pop()
    }

    /// Which ready jobs that nobody has taken must come back through [`Machine::handle_untaken`].
    pub fn poll_recall(&mut self) -> Option<Recall> {
        self.assert_processed();
        self.dispatch.take_recall()
    }

    /// Panics if the last inputs were not processed yet: the result would be incomplete.
    fn assert_processed(&self) {
        debug_assert!(self.news != News::Input, "poll the calls or the ready jobs first");
    }
}

// ---- time
impl Machine {
    /// Returns when the next suspect may start if the one before it is still running.
    fn suspect_may_begin_at(&self) -> Option<Mono> {
        let begun = self.items.get(self.dispatch.held_back_by()?)?.held()?.offered_at?;
        Some(watched_until(begun, self.config.settings.lease))
    }

    /// Returns when to call [`Machine::handle_timeout`]. Changes with every input and every other poll.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Mono> {
        let now = self.clock.mono();
        if self.news != News::Nothing {
            return Some(now);
        }
        let mut wake = None;
        // Whatever could be done already waits for room in the driver, not for a time.
        let mut at = |when: Mono| {
            if when > now {
                wake = Some(wake.map_or(when, |earliest: Mono| earliest.min(when)));
            }
        };
        let times = [
            self.store.opens_at(now),
            self.appends.opens_at(now),
            self.appends.retry_at(),
            self.suspect_may_begin_at(),
            self.sweep_at(),
        ];
        times.into_iter().flatten().for_each(&mut at);
        if let Some(leaves) = self.lanes.next_at()
            && leaves > self.clock.wall()
            && !self.config.has_fault(Fault::LostWakeup)
        {
            at(now.plus(leaves.since(self.clock.wall()).min(LONGEST_SLEEP)));
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
                && item.is_held()
                && item.append.is_none()
                && item.commands.current().is_none()
                && !self.is_late(item)
            {
                at(item.since.plus(self.config.settings.park_after));
            }
        }
        wake
    }
}
