//! Operations on leases: one at a time for a task, each sent again until its effect is known.

use super::{
    Alarm, Answer, DeadReason, Fault, Machine, Mono, Notice, Now, OpId,
    commands::unconfirmed,
    item::{Holder, Item, Own, Sent, Stage, StoreOp},
    rule::{self, Conflict, Seen, Take, Wish},
    slab::Ref,
};
use crate::{
    Effect, Error, History, Lease, LeaseState, LeaseToken, LostReason, Result, Retry, Swapped, Wall,
};
use std::time::Duration;

impl Machine {
    /// Begins an operation, at once or when the task's other items have ended theirs.
    pub(super) fn start(&mut self, r: Ref, op: StoreOp) {
        let Some(item) = self.items.get_mut(r) else { return };
        if matches!(op, StoreOp::Look) {
            self.store.read_begins();
        }
        debug_assert!(item.store.is_none(), "one operation at a time");
        item.store = Some(op);
        item.in_doubt = false;
        if !item.has_key {
            let Some(task) = self.tasks.get_mut(item.task) else { return };
            if task.busy {
                item.waits = true;
                task.waiting.push_back(r);
                return;
            }
            task.busy = true;
            item.has_key = true;
        }
        self.queue(r);
    }

    pub(super) fn queue(&mut self, r: Ref) {
        match self.items.get(r).and_then(|i| i.store.as_ref()) {
            Some(StoreOp::Look) => self.store.push_read(r),
            Some(_) => self.store.push_swap(r),
            None => {}
        }
    }

    /// The task's next item may begin its operation.
    pub(super) fn let_go(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        if !std::mem::take(&mut item.has_key) {
            return;
        }
        let Some(task) = self.tasks.get_mut(item.task) else { return };
        task.busy = false;
        while let Some(next) = task.waiting.pop_front() {
            if let Some(item) = self.items.get_mut(next)
                && std::mem::take(&mut item.waits)
            {
                task.busy = true;
                item.has_key = true;
                return self.queue(next);
            }
        }
    }

    /// Forgets an operation that has not been sent.
    pub(super) fn cancel_store_op(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        if matches!(item.store.take(), Some(StoreOp::Look)) {
            self.store.read_ends();
        }
        item.waits = false;
        self.end_taking(r);
    }

    pub(super) fn begin_taking(&mut self, r: Ref) {
        if let Some(item) = self.items.get_mut(r)
            && !std::mem::replace(&mut item.taking, true)
        {
            self.store.take_begins();
        }
    }

    fn end_taking(&mut self, r: Ref) {
        if self.config.has_fault(Fault::TakeNeverEnds) {
            return;
        }
        if let Some(item) = self.items.get_mut(r)
            && std::mem::take(&mut item.taking)
        {
            self.store.take_ends();
        }
    }

    /// What an operation writes.
    pub(super) fn lease_of(&self, item: &Item, op: &StoreOp) -> Option<Lease> {
        let now = self.clock.wall();
        let seen = item.seen.lease();
        let cover = seen.map_or(0, |l| l.cover).max(item.meta.cover);
        let own = item.own.map(|o| (o.token, o.attempt, o.failures));
        let write = |state, (token, attempt, failures): (LeaseToken, u32, u32), length: Duration| Lease {
            attempt,
            failures,
            cover,
            history: item.history.clone(),
            ..Lease::new(state, token, now.plus(length), length)
        };
        Some(match op {
            StoreOp::Look => return None,
            StoreOp::Take { take, token, prefetched, .. } => Lease {
                prefetched: *prefetched,
                ..write(LeaseState::Live, (*token, take.attempt, take.failures), self.config.settings.lease)
            },
            StoreOp::Reset => {
                let lease = seen?;
                // Sent again, it must not lengthen what somebody else has shortened meanwhile.
                Lease { deadline: now.plus(lease.length).min(lease.deadline), ..lease.clone() }
            }
            StoreOp::Raise { cover } => Lease { cover: *cover, ..seen?.clone() },
            StoreOp::Announce { cover, due, length, token } => Lease {
                cover: *cover,
                deadline: *due,
                length: *length,
                ..write(LeaseState::Idle, (*token, item.meta.attempt, item.meta.failures), Duration::ZERO)
            },
            // Nobody asks any more why it failed before.
            StoreOp::Done => {
                Lease { history: History::new(), ..write(LeaseState::Done, own?, Duration::ZERO) }
            }
            StoreOp::Dead => write(LeaseState::Dead, own?, Duration::ZERO),
            StoreOp::Idle { length, .. } => write(LeaseState::Idle, own?, *length),
            StoreOp::Keep { length, .. } => Lease {
                prefetched: !item.handed_out && seen.is_some_and(|l| l.prefetched),
                ..write(LeaseState::Live, own?, *length)
            },
            StoreOp::GiveBack => {
                let (token, attempt, failures) = own?;
                let back = if self.config.has_fault(Fault::GiveBackCounts) {
                    attempt
                } else {
                    attempt.saturating_sub(1)
                };
                write(LeaseState::Idle, (token, back, failures), Duration::ZERO)
            }
        })
    }

    /// Longer than any copy that may still be under way.
    pub(super) fn ttl(&self, lease: &Lease) -> Duration {
        lease.deadline.since(self.clock.wall())
            + self.config.settings.max_overdue
            + self.config.settings.done_retention
    }

    /// The outcome of a swap.
    pub fn handle_swapped(&mut self, now: Now, op: OpId, outcome: Result<Swapped>) {
        self.observe_time(now);
        let r = Ref::from(op);
        let Some(item) = self.items.get_mut(r) else { return };
        let Some(Sent::Swap(sent)) = item.sent.take() else { return };
        let outcome = match outcome {
            Err(e) if e.effect() == Effect::Unknown && self.config.has_fault(Fault::UnknownIsApplied) => {
                Ok(Swapped::Done)
            }
            outcome => outcome,
        };
        let Some(item) = self.items.get_mut(r) else { return };
        match outcome {
            Err(error) => self.swap_failed(r, error),
            Ok(swapped) => {
                let Some(op) = item.store.take() else { return };
                self.store.succeeded();
                let done = swapped == Swapped::Done;
                item.see(match swapped {
                    Swapped::Done => Seen::Lease(sent),
                    Swapped::Conflict(found) => Seen::of(found),
                });
                if done {
                    self.end_taking(r);
                    self.swapped(r, op);
                } else {
                    self.conflicted(r, op);
                }
            }
        }
    }

    /// Closes the gate; an error that no retry helps against is told to people, once for each time it closes.
    pub(super) fn store_failed(&mut self, r: Ref, error: Error) {
        if self.store.failed(self.clock.mono())
            && error.retry() == Retry::No
            && let Some(item) = self.items.get(r)
        {
            let at = item.at.clone();
            self.alarm(Alarm::StoreRefuses { at, error });
        }
    }

    /// The same operation again, with the same token: if the first one took effect after all, the conflict says so.
    fn swap_failed(&mut self, r: Ref, error: Error) {
        self.store_failed(r, error.clone());
        let ours = self.is_ours(r);
        let forgets_doubt = self.config.has_fault(Fault::DoubtForgotten);
        let Some(item) = self.items.get_mut(r) else { return };
        item.in_doubt |= error.effect() == Effect::Unknown && !forgets_doubt;
        item.last_error = Some(error);
        let over = item.own.is_some_and(|own| own.until <= self.clock.wall());
        match item.store {
            Some(StoreOp::Raise { .. } | StoreOp::Announce { .. }) => {
                // They only spare copies; the next copy tries again.
                item.store = None;
                self.let_go(r);
                self.go_on(r);
            }
            Some(StoreOp::Take { .. } | StoreOp::Reset) if !ours => self.remove(r),
            Some(StoreOp::Done | StoreOp::Dead | StoreOp::Idle { .. } | StoreOp::Keep { .. }) if over => {
                item.store = None;
                let error = unconfirmed(item.last_error.as_ref(), item.in_doubt);
                // A copy that is under way covers the record.
                let covered = item.copy().is_some();
                self.end_taking(r);
                self.let_go(r);
                self.answer(r, Answer::Failed(error));
                if covered { self.close(r) } else { self.reconsider(r) }
            }
            _ => self.queue(r),
        }
    }

    fn swapped(&mut self, r: Ref, op: StoreOp) {
        match op {
            StoreOp::Look => {}
            StoreOp::Take { take, token, bury, .. } => self.taken(r, token, take, bury),
            StoreOp::Reset => self.decide(r),
            StoreOp::Raise { .. } | StoreOp::Announce { .. } => {
                self.let_go(r);
                self.go_on(r);
            }
            StoreOp::Done => {
                self.finish_record(r);
                self.let_go(r);
                self.answer(r, Answer::Ok);
                self.close(r);
            }
            StoreOp::Dead => {
                self.finish_record(r);
                self.let_go(r);
                self.answer_dead(r);
                self.close(r);
            }
            StoreOp::Idle { released, .. } => {
                self.let_go(r);
                self.answer(r, Answer::Ok);
                if self.config.has_fault(Fault::RetryFinishesAtSwap) {
                    self.finish_record(r);
                }
                let Some(item) = self.items.get_mut(r) else { return };
                item.own = None;
                item.stage = Stage::Closing;
                if released && item.place.is_some() {
                    // The record is still here: whoever asks next may have it, without a copy.
                    return self.reconsider(r);
                }
                if let Some(lease) = item.seen.lease() {
                    let due = rule::end(lease, self.clock.wall(), self.config.limits);
                    self.start_copy(r, due, false);
                }
            }
            StoreOp::Keep { renewal, .. } => {
                self.let_go(r);
                let Some(item) = self.items.get(r) else { return };
                let (until, ends) = self.end_of_own(item);
                let Some(item) = self.items.get_mut(r) else { return };
                if let Some(own) = &mut item.own {
                    (own.until, own.ends) = (until, ends);
                }
                if renewal {
                    return self.come_back(r, true);
                }
                // Nobody waits for it any more if the lease had ended before.
                if item.command.is_some() {
                    self.answer(r, Answer::Extended(until));
                }
                self.go_on(r);
            }
            StoreOp::GiveBack => {
                self.let_go(r);
                self.given_back(r);
            }
        }
    }

    /// Nobody has had the job. Its record, if it still is here, is for whoever asks next.
    fn given_back(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r) else { return };
        item.own = None;
        let parked = item.place.is_none() && !item.gone;
        if parked {
            // Its copy comes only when the lease would have ended; another one is due at once.
            item.stage = Stage::Closing;
            item.holder = Holder::None;
            if item.append.is_none() {
                return self.start_copy(r, self.clock.wall(), false);
            }
            return self.go_on(r);
        }
        if item.place.is_some() && self.is_ours(r) { self.reconsider(r) } else { self.remove(r) }
    }

    /// When the lease ends that the store holds for us, by both clocks. The wall clock may have been set back since the
    /// swap was sent, but a lease is no longer than its length.
    fn end_of_own(&self, item: &Item) -> (Wall, Mono) {
        let Some(lease) = item.seen.lease() else { return (Wall(0), self.clock.mono()) };
        (lease.deadline, self.clock.mono_at(lease.deadline).min(self.clock.mono().plus(lease.length)))
    }

    /// I2: only here a job becomes ready, after its lease was won.
    fn taken(&mut self, r: Ref, token: LeaseToken, take: Take, bury: bool) {
        self.let_go(r);
        let Some(item) = self.items.get(r) else { return };
        let (until, ends) = self.end_of_own(item);
        let Some(item) = self.items.get_mut(r) else { return };
        item.own = Some(Own { token, attempt: take.attempt, failures: take.failures, until, ends });
        item.stage = Stage::Held;
        if !bury {
            if self.config.has_fault(Fault::CommitBeforeCover) {
                self.finish_record(r);
            }
            return self.come_back(r, false);
        }
        let last = item.history.last().map_or_else(String::new, |last| format!(", at last: {last}"));
        if self.is_ours(r) {
            let (reason, why) = if take.failures >= self.config.limits.max_failures {
                (format!("failed {} times{last}", take.failures), DeadReason::Failures)
            } else {
                (format!("handed out {} times", self.config.limits.max_handouts), DeadReason::Handouts)
            };
            self.bury(r, reason, why);
        } else {
            self.start(r, StoreOp::GiveBack);
        }
    }

    /// A held job that nobody has: ready, unless it is stale or has to be given back. `renewed`: just now; if its lease
    /// is short all the same, the store is slow, and another renewal gains nothing.
    pub(super) fn come_back(&mut self, r: Ref, renewed: bool) {
        let ours = self.is_ours(r);
        let deserted = self.is_deserted() && self.partition_elsewhere(None).is_some();
        let Some(item) = self.items.get_mut(r) else { return };
        if item.own.is_none() {
            return self.go_on(r);
        }
        item.holder = Holder::None;
        if item.store.is_some() {
            item.renew = true;
            return self.begin_taking(r);
        }
        let parked = item.place.is_none() && !item.gone;
        if self.shutting || deserted || !(ours || parked) {
            return self.start(r, StoreOp::GiveBack);
        }
        let left = item.seen.lease().map_or(Duration::ZERO, |l| l.deadline.since(self.clock.wall()));
        if left <= self.config.settings.lease / 2 && (!renewed || left.is_zero()) {
            self.begin_taking(r);
            return self.start(r, StoreOp::Keep { length: self.config.settings.lease, renewal: true });
        }
        item.holder = Holder::Driver;
        self.dispatch.offer(r);
    }

    fn conflicted(&mut self, r: Ref, op: StoreOp) {
        let Some(item) = self.items.get(r) else { return };
        match op {
            StoreOp::Look => {}
            StoreOp::Take { take, token, bury, .. } => {
                if item.seen.lease().is_some_and(|l| l.token == token && l.state == LeaseState::Live) {
                    self.end_taking(r);
                    return self.taken(r, token, take, bury);
                }
                self.end_taking(r);
                self.decide(r);
            }
            StoreOp::Reset => self.decide(r),
            StoreOp::Raise { .. } => {
                let lost = item.own.and_then(|own| match conflict(item, own, Wish::Keep) {
                    Conflict::Lost(_) if may_be_done_over(item, own) => None,
                    Conflict::Lost(reason) => Some(reason),
                    _ => None,
                });
                // What was found is not to be taken for the own lease by the next swap.
                if let Some(reason) = lost
                    && !self.config.has_fault(Fault::LossAtRaiseIgnored)
                {
                    return self.lost(r, reason);
                }
                // It only spares copies; the next copy tries again.
                self.let_go(r);
                self.go_on(r);
            }
            StoreOp::Announce { .. } => {
                self.let_go(r);
                self.go_on(r);
            }
            StoreOp::Done => self.resolve(r, op, Wish::Done),
            StoreOp::Idle { .. } | StoreOp::GiveBack => self.resolve(r, op, Wish::Idle),
            StoreOp::Dead => self.resolve(r, op, Wish::Dead),
            StoreOp::Keep { .. } => self.resolve(r, op, Wish::Keep),
        }
    }

    fn resolve(&mut self, r: Ref, op: StoreOp, wish: Wish) {
        let Some(item) = self.items.get(r) else { return };
        let Some(own) = item.own else { return self.close(r) };
        let mut means = conflict(item, own, wish);
        let goes_on = matches!(op, StoreOp::Keep { .. }) && may_be_done_over(item, own);
        if wish == Wish::Done && self.config.has_fault(Fault::DoneWithoutToken) {
            means = Conflict::Again;
        }
        if wish == Wish::Done
            && self.config.has_fault(Fault::DoneOverLowerRefused)
            && item.token_differs(own.token)
        {
            means = Conflict::Lost(LostReason::TakenOver);
        }
        match (means, &op) {
            // A store that forgot the lease needs no word of it.
            (Conflict::Again, StoreOp::GiveBack) if matches!(item.seen, Seen::Missing) => self.swapped(r, op),
            (Conflict::Again, _) => {
                // An earlier try may have taken effect and been lost with what the store lost.
                let in_doubt = item.in_doubt;
                self.start(r, op);
                if let Some(item) = self.items.get_mut(r) {
                    item.in_doubt = in_doubt;
                }
            }
            (Conflict::AlreadySo, _) => self.swapped(r, op),
            (Conflict::Lost(_), StoreOp::GiveBack) => self.swapped(r, op),
            (Conflict::Lost(reason), _) if goes_on => {
                self.answer_alone(r, Answer::Lost(reason));
                self.let_go(r);
                self.go_on(r);
            }
            (Conflict::Lost(reason), _) => self.lost(r, reason),
        }
    }

    /// Never finishes the record: whoever took the lease may die, and this record may be the last of the task.
    fn lost(&mut self, r: Ref, reason: LostReason) {
        self.end_taking(r);
        self.let_go(r);
        let Some(item) = self.items.get(r) else { return };
        let asked = item.command.is_some() || item.next_command.is_some();
        let held = item.holder == Holder::Driver;
        if asked {
            self.answer(r, Answer::Lost(reason));
        } else if held {
            self.notices.push(Notice::LeaseLost(r.into(), reason));
        }
        if self.config.has_fault(Fault::ConflictFinishes) {
            self.finish_record(r);
        }
        let Some(item) = self.items.get(r) else { return };
        // A copy is on its way and will cover the record.
        if item.copy().is_some() { self.close(r) } else { self.reconsider(r) }
    }
}

fn conflict(item: &Item, own: Own, wish: Wish) -> Conflict {
    rule::conflict(own.token, own.attempt, wish, &item.seen)
}

/// `done` waits, and may go over what ends other wishes.
fn may_be_done_over(item: &Item, own: Own) -> bool {
    item.is_to_be_done() && conflict(item, own, Wish::Done) == Conflict::Again
}
