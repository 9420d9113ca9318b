//! Copies and dead letters: what is appended, and what happens once it is acknowledged.

use super::{
    Alarm, Answer, DeadReason, Fault, Machine, Notice,
    item::{AppendOp, Copy, Item, Raise, Stage, SwapOp},
    open, rule,
    rule::ObservedLease,
    slab::Ref,
};
use crate::{Effect, Error, LeaseState, NewRecord, Partition, Record, Result, Retry, Wall, partitioner};
use std::time::Duration;

/// How long a copy that is due may wait for its acknowledgement before its record is considered again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a refused append waits before it is tried again: by then an operator may have fixed the cause.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

impl Machine {
    /// The record rule says: copy it, to be considered again at `due`.
    pub(super) fn park(&mut self, r: Ref, due: Wall) {
        // The append may take long; the task's other items must not wait for it.
        self.release_key(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Closing;
        if let ObservedLease::Newer(version, _) = item.observed {
            let at = item.at.clone();
            self.alarm(Alarm::Newer { at, version });
        }
        self.start_first_copy(r, due, false);
    }

    /// Parks the record of a long-running job, so that it doesn't hold back the commit.
    pub(super) fn park_held(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        // A final command that nobody waits for any more may still be on its way to the store.
        let is_ending = matches!(
            item.store.swap(),
            Some(SwapOp::Done | SwapOp::Dead | SwapOp::Idle { .. } | SwapOp::GiveBack)
        );
        let parks = item.is_held()
            && !is_ending
            && item.place().is_some()
            && item.append.is_none()
            && item.commands.current().is_none()
            && item.copies.not_before <= self.clock.mono();
        if parks && item.is_unleased() {
            return self.lease_unleased(r);
        }
        let Some(lease) = item.observed.lease().filter(|_| parks) else { return };
        let mut due = rule::reconsider_at(lease, self.clock.wall(), self.config.limits);
        if self.config.has_fault(Fault::ParkWithoutSkew) {
            due = lease.deadline;
        }
        if self.config.has_fault(Fault::ParkedTooLong) {
            due = rule::end(lease, self.clock.wall(), self.config.limits);
        }
        self.start_copy(r, due);
    }

    /// Starts a copy of a task that has a lease.
    pub(super) fn start_copy(&mut self, r: Ref, due: Wall) {
        self.append_copy(r, due, false, false);
    }

    /// Starts a copy of a task that may have no lease yet: then the copy's acknowledgement gives it one. `elsewhere`:
    /// to a partition of another process.
    pub(super) fn start_first_copy(&mut self, r: Ref, due: Wall, elsewhere: bool) {
        let announce = self.items.get(r).is_some_and(Item::has_no_lease);
        self.append_copy(r, due, announce, elsewhere);
    }

    fn append_copy(&mut self, r: Ref, due: Wall, announce: bool, elsewhere: bool) {
        let Some(item) = self.items.get(r) else { return };
        let cover = item.next_cover();
        let ahead = due.since(self.clock.wall());
        // Under a live lease the copy waits for its end; if the lease is gone by then, its attempt has failed.
        let lease = item.observed.lease().filter(|l| l.state == LeaseState::Live);
        let running = lease.is_some_and(|l| !l.prefetched);
        // The log gets some time to acknowledge it, even if it is due at once.
        let patience = self.clock.mono().plus(self.config.settings.lease.min(PATIENCE));
        let give_up_at = self.clock.mono_at(due).max(patience);
        let copy = Copy { cover, due, ahead, leaves: due, give_up_at, announce, running, elsewhere };
        self.start_append(r, AppendOp::Copy(copy));
        if self.config.has_fault(Fault::FinishBeforeAck) {
            self.finish_record(r);
        }
        if self.config.has_fault(Fault::RaiseBeforeAck)
            && let Some(item) = self.items.get_mut(r)
        {
            item.raise = Some(Raise { cover, due });
            self.advance(r);
        }
    }

    /// Dead-letters the task of a held lease.
    pub(super) fn dead_letter(&mut self, r: Ref, reason: String, why: DeadReason) {
        if let Some(item) = self.items.get_mut(r)
            && let Stage::Held(held) = item.stage
        {
            item.stage = Stage::DeadLettering(held);
        }
        self.start_append(r, AppendOp::DeadLetter { reason, why });
    }

    /// Forwards a record that only a later version can read to the wait topic, for one lease duration.
    pub(super) fn forward(&mut self, r: Ref, record: Record) {
        let due = self.clock.wall().plus(self.config.settings.lease);
        self.start_append(r, AppendOp::Forward { record: Box::new(record), due, leaves: due });
    }

    pub(super) fn start_append(&mut self, r: Ref, op: AppendOp) {
        let Some(item) = self.items.get_mut(r) else { return };
        debug_assert!(item.append.is_none(), "one append at a time");
        item.append = Some(op);
        self.queue_append(r);
    }

    fn queue_append(&mut self, r: Ref) {
        if let Some(to) = self.destination(r) {
            self.appends.push(to, r);
        }
    }

    /// Where the item's append goes. A lane depends on what remains until it is due.
    fn destination(&mut self, r: Ref) -> Option<Partition> {
        let item = self.items.get(r)?;
        let elsewhere = item.copy().filter(|copy| copy.elsewhere);
        if let Some(index) =
            elsewhere.and_then(|copy| self.partition_elsewhere(Some((&item.content.id, copy.cover))))
        {
            return Some(Partition::new(self.config.layout.wait.clone(), index));
        }
        let (layout, ladder, now) = (&self.config.layout, &self.config.ladder, self.clock.wall());
        let item = self.items.get_mut(r)?;
        let id = &item.content.id;
        match item.append.as_mut()? {
            AppendOp::Copy(Copy { due, leaves, .. }) | AppendOp::Forward { due, leaves, .. } => {
                let is_live = item.observed.lease().is_some_and(|l| l.state == LeaseState::Live);
                let (index, leaves_at) =
                    if is_live { ladder.place_park(now, *due, id) } else { ladder.place(now, *due, id) };
                *leaves = leaves_at;
                Some(Partition::new(layout.wait.clone(), index))
            }
            AppendOp::DeadLetter { .. } | AppendOp::Unreadable { .. } => {
                let index = partitioner::for_key(id.as_str().as_bytes(), layout.dead_partitions);
                Some(Partition::new(layout.dead.clone(), index))
            }
        }
    }

    pub(super) fn append_ended(&mut self, r: Ref, outcome: Result<i64>) {
        let is_refusal = |e: &Error| e.effect() == Effect::NotApplied && e.retry() == Retry::No;
        // A partition that refuses a record is available.
        let has_worked = outcome.as_ref().map_or_else(is_refusal, |_| true);
        self.appends.answered(r, self.clock.mono(), has_worked);
        if outcome.is_err() && self.drop_pointless_append(r) {
            return self.advance(r);
        }
        let Some(item) = self.items.get_mut(r) else { return };
        match outcome {
            Ok(_) => {
                if let Some(op) = item.append.take() {
                    self.appended(r, op);
                }
            }
            Err(error) if is_refusal(&error) => self.append_refused(r, error),
            // An append of unknown effect is repeated with the same cover number.
            Err(error) => {
                let is_letter = matches!(item.append, Some(AppendOp::DeadLetter { .. }));
                let in_doubt = is_letter && error.effect() == Effect::Unknown;
                item.last_error = Some(error);
                if in_doubt {
                    self.doubt(r);
                }
                self.queue_append(r);
            }
        }
    }

    fn appended(&mut self, r: Ref, op: AppendOp) {
        match op {
            AppendOp::Copy(copy) => self.copied(r, copy),
            AppendOp::DeadLetter { why, .. } => {
                self.notices.push(Notice::DeadLettered(why));
                self.doubt(r);
                self.start_swap(r, SwapOp::Dead);
            }
            AppendOp::Unreadable { reason, .. } => {
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

    /// Finishes the record of a copy. I1: the copy is durable.
    fn copied(&mut self, r: Ref, copy: Copy) {
        let Copy { cover, due, ahead: length, announce, .. } = copy;
        self.finish_record(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.copies.highest = item.copies.highest.max(cover);
        if announce {
            let token = self.store.new_token();
            self.start_swap(r, SwapOp::Announce { cover, due, length, token });
        } else {
            item.raise = Some(Raise { cover, due });
            self.advance(r);
        }
    }

    /// The log will not accept the record: it is too large or denied, or there is no such topic. The item continues
    /// without it.
    fn append_refused(&mut self, r: Ref, error: Error) {
        let Some(item) = self.items.get(r) else { return };
        let at = item.at.clone();
        self.alarm(Alarm::Stuck { at, error: error.clone() });
        let now = self.clock.mono();
        let Some(item) = self.items.get_mut(r) else { return };
        match item.append.take() {
            None => {}
            Some(AppendOp::Copy(copy)) => {
                item.copies.not_before = now.plus(REFUSED_PAUSE);
                if self.config.has_fault(Fault::RefusedCopyForgotten) {
                    item.append = Some(AppendOp::Copy(copy));
                    return;
                }
                // The sweep takes care of a held job.
                if item.is_held() {
                    return self.advance(r);
                }
                let due = now.plus(copy.due.since(self.clock.wall()).min(copy.ahead));
                self.reconsider_at(r, due);
            }
            Some(AppendOp::DeadLetter { .. }) => {
                if self.config.has_fault(Fault::DeadLetterUnchecked) {
                    return self.start_swap(r, SwapOp::Dead);
                }
                let error = if item.commands.is_in_doubt() { may_be_dead(error) } else { error };
                // It can't be finished in any other way, so it is considered again after a lease.
                self.answer(r, Answer::Failed(error));
                let length = self.config.settings.lease;
                self.start_swap(r, SwapOp::Idle { length, released: false });
            }
            Some(whole @ (AppendOp::Unreadable { .. } | AppendOp::Forward { .. })) => {
                item.append = Some(whole);
                self.appends.retry(r, now.plus(REFUSED_PAUSE));
            }
        }
    }

    /// Retries appends that the log has refused.
    pub(super) fn retry_appends(&mut self) {
        while let Some(r) = self.appends.pop_retry(self.clock.mono()) {
            self.queue_append(r);
        }
    }

    /// Returns whether the cover number may be raised: only for a copy that is due no later than the lease ends, since
    /// a later copy must not supersede an earlier one.
    pub(super) fn may_raise(&self, r: Ref, raise: Raise) -> bool {
        let lease = self.items.get(r).and_then(|item| item.observed.lease());
        lease.is_some_and(|l| {
            let now = self.clock.wall();
            // A copy that is already due supersedes nothing either.
            let in_time = raise.due <= rule::end(l, now, self.config.limits).max(now);
            let in_time = in_time || self.config.has_fault(Fault::RaiseForLater);
            !l.state.is_terminal() && l.cover < raise.cover && in_time
        })
    }
}

/// The error of a dead letter whose last attempt was refused, while an earlier one may have been appended.
fn may_be_dead(refusal: Error) -> Error {
    Error::unknown(refusal.kind(), "append the dead letter").with_source(refusal).with_advice(
        "An earlier attempt may have reached the log, so the task may be among the dead letters and still \
        run again",
    )
}

/// What is appended for an item.
pub(super) fn record_of(item: &Item) -> Option<NewRecord> {
    Some(match item.append.as_ref()? {
        AppendOp::Copy(copy) => open::copy(item, copy),
        AppendOp::DeadLetter { reason, .. } => {
            // A lease that was taken only to dead-letter the task doesn't count as a hand-out.
            let attempts =
                item.own().map_or(0, |own| own.attempt).saturating_sub(u32::from(!item.handed_out));
            open::dead_letter(item, reason, attempts)
        }
        AppendOp::Unreadable { record, reason } => open::whole(record, reason, &item.at),
        AppendOp::Forward { record, leaves, .. } => open::forward(record, *leaves, &item.content.origin),
    })
}
