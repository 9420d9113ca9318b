//! Copies and dead letters: what is appended, and what its acknowledgement allows.

use super::{
    Alarm, Answer, DeadReason, Fault, Machine, Notice, Now, OpId,
    item::{AppendOp, Copy, Item, Place, Stage, StoreOp},
    open, rule,
    rule::Seen,
    slab::Ref,
    window::Slot,
};
use crate::{Effect, Error, LeaseState, NewRecord, Partition, Result, Retry, Wall, partitioner};
use std::time::Duration;

/// How long a copy that is due may wait for its acknowledgement before its record is considered again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused append waits before it is tried again: until then a person may have mended it.
const STUCK_PAUSE: Duration = Duration::from_secs(30);

impl Machine {
    /// The record rule says: copy it, to be considered again at `due`.
    pub(super) fn park(&mut self, r: Ref, due: Wall) {
        // The append may take long; the task's other items must not wait for it.
        self.let_go(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Closing;
        let announce = matches!(item.seen, Seen::Missing);
        if let Seen::Newer(version, _) = item.seen {
            let at = item.at.clone();
            self.alarm(Alarm::Newer { at, version });
        }
        self.start_copy(r, due, announce);
    }

    /// A job that takes long must not hold back the commit.
    pub(super) fn park_held(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        // An end that nobody waits for any more may still be on its way to the store.
        let ending = matches!(
            item.store,
            Some(StoreOp::Done | StoreOp::Dead | StoreOp::Idle { .. } | StoreOp::GiveBack)
        );
        let parks = item.stage == Stage::Held
            && !ending
            && item.place.is_some()
            && item.append.is_none()
            && item.command.is_none()
            && item.no_park_before <= self.clock.mono();
        let Some(lease) = item.seen.lease().filter(|_| parks) else { return };
        let mut due = rule::end(lease, self.clock.wall(), self.config.limits);
        if self.config.has_fault(Fault::ParkWithoutSkew) {
            due = lease.deadline;
        }
        self.start_copy(r, due, false);
    }

    pub(super) fn start_copy(&mut self, r: Ref, due: Wall, announce: bool) {
        self.start_copy_to(r, due, announce, false);
    }

    pub(super) fn start_copy_to(&mut self, r: Ref, due: Wall, announce: bool, elsewhere: bool) {
        let Some(item) = self.items.get(r) else { return };
        let cover = item.next_cover();
        let ahead = due.since(self.clock.wall());
        // Under a live lease the copy waits for its end; if the lease is gone by then, its attempt has failed.
        let lease = item.seen.lease().filter(|l| l.state == LeaseState::Live);
        let running = lease.is_some_and(|l| !l.prefetched);
        // The log gets some time to acknowledge it, also if it is due at once.
        let patience = self.clock.mono().plus(self.config.settings.lease.min(PATIENCE));
        let turn = self.clock.mono_at(due).max(patience);
        let copy = Copy { cover, due, ahead, lane_due: due, turn, announce, running, elsewhere };
        self.start_append(r, AppendOp::Copy(copy));
        if self.config.has_fault(Fault::FinishBeforeAck) {
            self.finish_record(r);
        }
        if self.config.has_fault(Fault::RaiseBeforeAck)
            && let Some(item) = self.items.get_mut(r)
        {
            item.raise = Some((cover, due));
            self.go_on(r);
        }
    }

    pub(super) fn bury(&mut self, r: Ref, reason: String, why: DeadReason) {
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Burying;
        }
        self.start_append(r, AppendOp::DeadLetter { reason, why });
    }

    /// A record that only a later version can read waits elsewhere, for a lease's time.
    pub(super) fn forward(&mut self, r: Ref) {
        let due = self.clock.wall().plus(self.config.settings.lease);
        self.start_append(r, AppendOp::Forward { due, lane_due: due });
    }

    pub(super) fn start_append(&mut self, r: Ref, op: AppendOp) {
        let Some(item) = self.items.get_mut(r) else { return };
        debug_assert!(item.append.is_none(), "one append at a time");
        item.append = Some(op);
        self.queue_append(r);
    }

    fn queue_append(&mut self, r: Ref) {
        let elsewhere = self.items.get(r).and_then(|item| {
            let copy = item.copy().filter(|copy| copy.elsewhere)?;
            self.partition_elsewhere(Some((&item.content.id, copy.cover)))
        });
        let Some(item) = self.items.get_mut(r) else { return };
        let id = &item.content.id;
        let live = item.seen.lease().is_some_and(|l| l.state == LeaseState::Live);
        let Some(append) = &mut item.append else { return };
        let to = match (append, elsewhere) {
            (AppendOp::Copy(_), Some(index)) => Partition::new(self.config.layout.wait.clone(), index),
            (AppendOp::Copy(Copy { due, lane_due, .. }) | AppendOp::Forward { due, lane_due }, _) => {
                let (index, leaves) = match live {
                    true => self.config.ladder.place_park(self.clock.wall(), *due, id),
                    false => self.config.ladder.place(self.clock.wall(), *due, id),
                };
                *lane_due = leaves;
                Partition::new(self.config.layout.wait.clone(), index)
            }
            (AppendOp::DeadLetter { .. } | AppendOp::Whole { .. }, _) => {
                let index = partitioner::for_key(id.as_str().as_bytes(), self.config.layout.dead_partitions);
                Partition::new(self.config.layout.dead.clone(), index)
            }
        };
        self.appends.push(to, r);
    }

    /// The outcome of an append.
    pub fn handle_appended(&mut self, now: Now, op: OpId, outcome: Result<i64>) {
        self.observe_time(now);
        let r = Ref::from(op);
        let refused = |e: &Error| e.effect() == Effect::NotApplied && e.retry() == Retry::No;
        self.appends.answered(r, now.mono, outcome.as_ref().map_or_else(refused, |_| true));
        let Some(item) = self.items.get_mut(r) else { return };
        match outcome {
            Ok(_) => {
                if let Some(op) = item.append.take() {
                    self.appended(r, op);
                }
            }
            Err(error) if refused(&error) => self.append_refused(r, error),
            // An append of unknown effect is repeated with the same number.
            Err(error) => {
                item.last_error = Some(error);
                self.queue_append(r);
            }
        }
    }

    fn appended(&mut self, r: Ref, op: AppendOp) {
        match op {
            AppendOp::Copy(Copy { cover, due, ahead, announce, .. }) => {
                self.finish_record(r);
                if let Some(item) = self.items.get_mut(r) {
                    item.copies = item.copies.max(cover);
                    if !announce {
                        item.raise = Some((cover, due));
                    }
                }
                if announce {
                    let token = self.store.new_token();
                    self.start(r, StoreOp::Announce { cover, due, length: ahead, token });
                } else {
                    self.go_on(r);
                }
            }
            AppendOp::DeadLetter { why, .. } => {
                self.notices.push(Notice::DeadLettered(why));
                self.start(r, StoreOp::Dead);
            }
            AppendOp::Whole { reason } => {
                self.notices.push(Notice::DeadLettered(DeadReason::Unreadable));
                self.finish_record(r);
                if let Some(item) = self.items.get(r) {
                    let at = item.at.clone();
                    self.alarm(Alarm::Undecodable { at, why: reason });
                }
                self.close(r);
            }
            AppendOp::Forward { .. } => {
                self.finish_record(r);
                self.close(r);
            }
        }
    }

    /// The log takes the record at no time: too large, denied, no such topic. What it was for goes on without it.
    fn append_refused(&mut self, r: Ref, error: Error) {
        let Some(item) = self.items.get_mut(r) else { return };
        let at = item.at.clone();
        self.alarm(Alarm::Stuck { at, error: error.clone() });
        let forgotten = self.config.has_fault(Fault::RefusedCopyForgotten);
        let Some(item) = self.items.get_mut(r) else { return };
        match item.append.take() {
            None => {}
            Some(AppendOp::Copy(copy)) => {
                let due = self.clock.mono().plus(copy.due.since(self.clock.wall()).min(copy.ahead));
                item.no_park_before = self.clock.mono().plus(STUCK_PAUSE);
                if forgotten {
                    item.append = Some(AppendOp::Copy(copy));
                    return;
                }
                // A held job is looked after by the sweep.
                if item.stage == Stage::Held { self.go_on(r) } else { self.reconsider_at(r, due) }
            }
            Some(AppendOp::DeadLetter { .. }) => {
                if self.config.has_fault(Fault::DeadLetterUnchecked) {
                    return self.start(r, StoreOp::Dead);
                }
                // It is not finished in any other way: it comes back after a lease.
                self.answer(r, Answer::Failed(error));
                let length = self.config.settings.lease;
                self.start(r, StoreOp::Idle { length, released: false });
            }
            Some(whole @ (AppendOp::Whole { .. } | AppendOp::Forward { .. })) => {
                item.append = Some(whole);
                self.appends.retry(r, self.clock.mono().plus(STUCK_PAUSE));
            }
        }
    }

    pub(super) fn retry_appends(&mut self) {
        while let Some(r) = self.appends.pop_retry(self.clock.mono()) {
            self.queue_append(r);
        }
    }

    /// Tells the lease of a durable copy, if that is of use.
    pub(super) fn raise(&mut self, r: Ref, cover: u32, due: Wall) {
        if self.may_raise(r, cover, due) {
            self.start(r, StoreOp::Raise { cover });
        } else {
            self.go_on(r);
        }
    }

    /// Only for a copy that comes to its turn no later than the lease ends: a later one must not displace an earlier.
    pub(super) fn may_raise(&self, r: Ref, cover: u32, due: Wall) -> bool {
        let lease = self.items.get(r).and_then(|i| i.seen.lease());
        lease.is_some_and(|l| {
            // One whose turn has come displaces nothing either.
            let in_time = due <= rule::end(l, self.clock.wall(), self.config.limits).max(self.clock.wall());
            !l.state.is_terminal()
                && l.cover < cover
                && (in_time || self.config.has_fault(Fault::RaiseForLater))
        })
    }

    /// Keeps the flow within its limits, copies what takes too long, and makes room at the head of a window that is read no
    /// further.
    pub(super) fn tend_window(&mut self, w: Ref) {
        self.windows.control_flow(w, &self.config, self.clock.wall());
        let Some(window) = self.windows.get(w).filter(|w| !w.is_revoked()) else { return };
        let blocked = window.is_blocked_by_head();
        let mut late = Vec::new();
        let mut hop = None;
        for (seq, slot) in window.unfinished() {
            let in_the_way = blocked && late.is_empty();
            match slot {
                Slot::Open(r) if in_the_way || self.items.get(*r).is_some_and(|i| self.is_late(i)) => {
                    late.push(*r);
                }
                Slot::Queued(_) if in_the_way && window.is_lane() => {
                    hop = Some(Place { window: w, seq });
                    break;
                }
                _ => break,
            }
        }
        late.into_iter().for_each(|r| self.park_held(r));
        if let Some(place) = hop {
            self.begin_turn(place, None);
        }
    }

    pub(super) fn is_late(&self, item: &Item) -> bool {
        item.turn.plus(self.config.settings.park_after) <= self.clock.mono()
    }
}

/// What is appended for an item.
pub(super) fn record_of(item: &Item) -> Option<NewRecord> {
    Some(match item.append.as_ref()? {
        AppendOp::Copy(copy) => open::copy(item, copy),
        AppendOp::DeadLetter { reason, .. } => {
            // A take that was only for the dead letters was no hand-out.
            let attempts = item.own.map_or(0, |o| o.attempt).saturating_sub(u32::from(!item.handed_out));
            open::dead_letter(item, reason, attempts)
        }
        AppendOp::Whole { reason } => open::whole(item.whole.as_deref()?, reason, &item.at),
        AppendOp::Forward { lane_due, .. } => {
            open::forward(item.whole.as_deref()?, *lane_due, &item.content.origin)
        }
    })
}
