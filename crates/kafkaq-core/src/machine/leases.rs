//! Operations on leases: one at a time per task, each sent again until its effect is known.

use super::{
    Alarm, Answer, DeadReason, Fault, Machine, Mono, Notice,
    commands::unconfirmed,
    config::Config,
    item::{Held, Item, Operation, OwnLease, Phase, Purpose, RecordState, Stage, SwapOp},
    rule::{self, Conflict, Intent, ObservedLease, Take},
    slab::Ref,
};
use crate::{
    Effect, Error, History, Lease, LeaseState, LeaseToken, LostReason, Result, Retry, Swapped, Wall,
};
use bytes::Bytes;
use std::time::Duration;

impl Machine {
    pub(super) fn start_read(&mut self, r: Ref) {
        if self.items.get(r).is_some() {
            self.store.read_begins();
            self.start(r, Operation::Read(Phase::Queued));
        }
    }

    pub(super) fn start_swap(&mut self, r: Ref, op: SwapOp) {
        self.start(r, Operation::swap(op));
    }

    /// Begins an operation, at once or when the task's other items have ended theirs.
    #[inline]
    fn start(&mut self, r: Ref, operation: Operation) {
        if let Some(item) = self.items.get_mut(r) {
            item.store.in_doubt = false;
        }
        if self.items.begin(r, operation) {
            self.queue(r);
        }
    }

    fn queue(&mut self, r: Ref) {
        match self.items.get(r).and_then(|item| item.store.operation.as_ref()) {
            Some(Operation::Read(_)) => self.store.push_read(r),
            Some(Operation::Swap(..)) => self.store.push_swap(r),
            None => {}
        }
    }

    /// Sends a swap again. Whether an earlier attempt may have taken effect stays as it is.
    fn resend_swap(&mut self, r: Ref, op: SwapOp) {
        if let Some(item) = self.items.get_mut(r) {
            item.store.operation = Some(Operation::swap(op));
            self.store.push_swap(r);
        }
    }

    /// Lets the task's next item begin its operation.
    pub(super) fn release_key(&mut self, r: Ref) {
        if let Some(next) = self.items.release_key(r) {
            self.queue(next);
        }
    }

    /// Counts the item among those whose jobs will be ready.
    pub(super) fn begin_take(&mut self, r: Ref) {
        if let Some(item) = self.items.get_mut(r)
            && !std::mem::replace(&mut item.store.is_counted, true)
        {
            self.store.take_begins();
        }
    }

    pub(super) fn end_take(&mut self, r: Ref) {
        if self.config.has_fault(Fault::TakeNeverEnds) {
            return;
        }
        if let Some(item) = self.items.get_mut(r)
            && std::mem::take(&mut item.store.is_counted)
        {
            self.store.take_ends();
        }
    }

    // ---- what came of it

    pub(super) fn read_ended(&mut self, r: Ref, outcome: Result<Option<Bytes>>) {
        let Some(item) = self.items.get_mut(r) else { return };
        if !item.store.end_read() {
            return;
        }
        match outcome {
            Ok(value) => {
                item.observe(ObservedLease::of(value));
                let stage = item.stage;
                self.store.read_ends();
                self.store.succeeded();
                match stage {
                    Stage::Looking(purpose) => self.on_lease_read(r, purpose),
                    _ => self.apply_rule(r),
                }
            }
            Err(error) => {
                self.store.read_ends();
                self.store_failed(r, error);
                if !self.is_ours(r) {
                    return self.remove(r);
                }
                let Some(item) = self.items.get_mut(r) else { return };
                item.store.operation = Some(Operation::Read(Phase::Failed));
                self.wait_for_retry(r);
            }
        }
    }

    pub(super) fn swap_ended(&mut self, r: Ref, outcome: Result<Swapped>) {
        let Some(item) = self.items.get_mut(r) else { return };
        let Some((op, written)) = item.store.end_swap() else { return };
        let outcome = match outcome {
            Err(e) if e.effect() == Effect::Unknown && self.config.has_fault(Fault::UnknownIsApplied) => {
                Ok(Swapped::Done)
            }
            outcome => outcome,
        };
        match outcome {
            Err(error) => self.swap_failed(r, op, error),
            Ok(Swapped::Done) => {
                item.observe(ObservedLease::Lease(written));
                item.may_be_leased();
                self.store.succeeded();
                self.end_take(r);
                self.swap_succeeded(r, op);
            }
            Ok(Swapped::Conflict(found)) => {
                item.observe(ObservedLease::of(found));
                if item.own().is_some_and(|own| item.observed.lease().is_some_and(|l| l.token == own.token)) {
                    item.may_be_leased();
                }
                self.store.succeeded();
                self.swap_conflicted(r, op);
            }
        }
    }

    /// Closes the gate. An error that a retry doesn't fix raises an alarm, once for each time the gate closes.
    fn store_failed(&mut self, r: Ref, error: Error) {
        if self.store.failed(self.clock.mono())
            && error.retry() == Retry::No
            && let Some(item) = self.items.get(r)
        {
            let at = item.at.clone();
            self.alarm(Alarm::StoreRefuses { at, error });
        }
    }

    /// Sends the same swap again, with the same token: if the first one took effect after all, the conflict shows it.
    fn swap_failed(&mut self, r: Ref, op: SwapOp, error: Error) {
        self.store_failed(r, error.clone());
        let ours = self.is_ours(r);
        let forgets_doubt = self.config.has_fault(Fault::DoubtForgotten);
        let Some(item) = self.items.get_mut(r) else { return };
        item.store.in_doubt |= error.effect() == Effect::Unknown && !forgets_doubt;
        if item.store.in_doubt {
            item.may_be_leased();
        }
        item.last_error = Some(error);
        let is_over = item.own().is_some_and(|own| own.until <= self.clock.wall());
        let may_have_lease = item.may_have_lease(self.clock.mono(), self.config.settings.lease);
        match op {
            SwapOp::Raise { .. } | SwapOp::Announce { .. } => {
                // They only save copies; the next copy tries again.
                self.release_key(r);
                self.advance(r);
            }
            SwapOp::Take { .. } if !ours && may_have_lease => self.resend_swap(r, op),
            SwapOp::Take { .. } | SwapOp::Reset if !ours => self.remove(r),
            SwapOp::Done
            | SwapOp::Dead
            | SwapOp::Idle { .. }
            | SwapOp::Extend { .. }
            | SwapOp::Renew { .. }
            | SwapOp::GiveBack
                if is_over =>
            {
                let in_doubt = item.store.in_doubt || item.commands.is_in_doubt();
                let error = unconfirmed(item.last_error.as_ref(), in_doubt);
                // A copy that is under way covers the record.
                let covered = item.copy().is_some();
                self.end_take(r);
                self.release_key(r);
                self.answer(r, Answer::Failed(error));
                if covered { self.close(r) } else { self.reconsider(r) }
            }
            // Whoever has the job may still end it.
            SwapOp::Lease if is_over => {
                let is_left = ours && item.commands.is_empty();
                self.release_key(r);
                if is_left { self.reconsider_at(r, self.clock.mono()) } else { self.advance(r) }
            }
            SwapOp::Take { take, purpose: Purpose::Caller | Purpose::Prefetch, .. }
                if take == Take::FIRST =>
            {
                item.store.operation = Some(Operation::Swap(op, Phase::Failed));
                self.wait_for_retry(r);
            }
            SwapOp::Take { take, purpose: Purpose::Caller, .. } if !item.store.in_doubt => {
                item.stage = Stage::OnDemand(take);
                self.end_take(r);
                self.release_key(r);
                self.wait_for_caller(r);
            }
            op => self.resend_swap(r, op),
        }
    }

    /// Queues a failed operation to be sent again, in turn with others, and a take only when a job is wanted: it may
    /// concern a part of the store that is down. Meanwhile the task's other items may go ahead.
    fn wait_for_retry(&mut self, r: Ref) {
        self.end_take(r);
        self.release_key(r);
        match self.items.get(r) {
            Some(item) if is_take(item) => self.store.push_failed_take(r),
            _ => self.store.push_failed_read(r),
        }
    }

    /// Begins an operation again whose last attempt failed. Whether an earlier one may have taken effect stays as it
    /// is.
    pub(super) fn retry(&mut self, r: Ref) {
        let Some(item) = self.items.get_mut(r).filter(|item| item.store.has_failed()) else { return };
        let is_take = is_take(item);
        let Some(mut operation) = item.store.operation.take() else { return };
        operation.set_queued();
        if matches!(operation, Operation::Read(_)) {
            self.store.read_begins();
        }
        if is_take {
            self.begin_take(r);
        }
        if self.items.begin(r, operation) {
            self.queue(r);
        }
    }

    fn swap_succeeded(&mut self, r: Ref, op: SwapOp) {
        match op {
            SwapOp::Take { take, token, purpose } => self.lease_taken(r, token, take, purpose),
            SwapOp::Reset => self.apply_rule(r),
            SwapOp::Raise { .. } | SwapOp::Announce { .. } => {
                self.release_key(r);
                self.advance(r);
            }
            SwapOp::Done => {
                self.finish_record(r);
                self.release_key(r);
                self.answer(r, Answer::Ok);
                self.close(r);
            }
            SwapOp::Dead => {
                self.finish_record(r);
                self.release_key(r);
                self.answer_dead_lettered(r);
                self.close(r);
            }
            SwapOp::Idle { released, .. } => self.became_idle(r, released),
            SwapOp::Lease | SwapOp::Extend { .. } => {
                self.release_key(r);
                let until = self.hold_until_observed(r);
                // Nobody waits for it: it was the machine's own, or the lease had ended before.
                if self.items.get(r).is_some_and(|item| item.commands.current().is_some()) {
                    self.answer(r, Answer::Extended(until));
                }
                self.advance(r);
            }
            SwapOp::Renew { .. } => {
                self.release_key(r);
                self.hold_until_observed(r);
                self.renew_or_offer(r, true);
            }
            SwapOp::GiveBack => {
                self.release_key(r);
                self.given_back(r);
            }
        }
    }

    /// I2: a job becomes ready here, after its lease was won, or in [`Machine::on_lease_read`].
    fn lease_taken(&mut self, r: Ref, token: LeaseToken, take: Take, purpose: Purpose) {
        self.release_key(r);
        let Some(item) = self.items.get(r) else { return };
        let (until, ends) = self.end_of_own(item);
        let lease = OwnLease { token, attempt: take.attempt, failures: take.failures, until, ends };
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Held(Held::new(lease));
        if purpose != Purpose::DeadLetter {
            if self.config.has_fault(Fault::CommitBeforeCover) {
                self.finish_record(r);
            }
            return self.renew_or_offer(r, false);
        }
        let last = item.history.last().map_or_else(String::new, |last| format!(", most recently: {last}"));
        if self.is_ours(r) {
            let limits = self.config.limits;
            let (reason, why) = if take.failures >= limits.max_failures {
                (format!("failed {} times{last}", take.failures), DeadReason::Failures)
            } else {
                (format!("handed out {} times", limits.max_handouts), DeadReason::Handouts)
            };
            self.dead_letter(r, reason, why);
        } else {
            self.start_swap(r, SwapOp::GiveBack);
        }
    }

    /// The lease of a first attempt was read. If the store has none, the job is ready.
    fn on_lease_read(&mut self, r: Ref, purpose: Purpose) {
        let token = self.store.new_token();
        let (now, wall, length) = (self.clock.mono(), self.clock.wall(), self.config.settings.lease);
        let ours = self.is_ours(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Considered;
        let is_new = item.has_no_lease() && ours;
        if is_new {
            let (until, ends) = (wall.plus(length), now.plus(length));
            let lease = OwnLease { token, attempt: 1, failures: 0, until, ends };
            item.stage = Stage::Held(Held { unleased: Some(purpose), ..Held::new(lease) });
        }
        self.end_take(r);
        if !is_new {
            return self.apply_rule(r);
        }
        self.release_key(r);
        self.renew_or_offer(r, false);
    }

    /// Writes the lease of a job that was started without one.
    pub(super) fn lease_unleased(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        let goes_on = item.is_held() && item.append.is_none() && item.commands.is_empty();
        if goes_on && item.is_unleased() && item.store.is_idle() {
            self.start_swap(r, SwapOp::Lease);
        }
    }

    /// The holder has ended the job, but not the task.
    fn became_idle(&mut self, r: Ref, released: bool) {
        self.release_key(r);
        self.answer(r, Answer::Ok);
        if self.config.has_fault(Fault::RetryFinishesAtSwap) {
            self.finish_record(r);
        }
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Closing;
        if released && item.place().is_some() {
            // The record is still here: the next caller may have it, without a copy.
            return self.reconsider(r);
        }
        if let Some(lease) = item.observed.lease() {
            let due = rule::end(lease, self.clock.wall(), self.config.limits);
            self.start_copy(r, due);
        }
    }

    /// Nobody has had the job. Its record, if it is still here, goes to the next caller.
    fn given_back(&mut self, r: Ref) {
        let ours = self.is_ours(r);
        let Some(item) = self.items.get_mut(r) else { return };
        item.stage = Stage::Closing;
        match item.record {
            // Its copy comes only when the lease would have ended; another one is due at once.
            RecordState::Finished if item.append.is_none() => self.start_copy(r, self.clock.wall()),
            RecordState::Finished => self.advance(r),
            RecordState::Here(_) if ours => self.reconsider(r),
            RecordState::Here(_) | RecordState::Elsewhere => self.remove(r),
        }
    }

    /// Takes the end of the own lease from what the store holds.
    fn hold_until_observed(&mut self, r: Ref) -> Wall {
        let Some(item) = self.items.get(r) else { return Wall(0) };
        let (until, ends) = self.end_of_own(item);
        if let Some(held) = self.items.get_mut(r).and_then(|item| item.held_mut()) {
            (held.lease.until, held.lease.ends) = (until, ends);
        }
        until
    }

    /// Returns when our lease in the store ends, by both clocks. The wall clock may have been set back since the swap
    /// was sent, but a lease is no longer than its length.
    fn end_of_own(&self, item: &Item) -> (Wall, Mono) {
        let now = self.clock.mono();
        let Some(lease) = item.observed.lease() else { return (Wall(0), now) };
        (lease.deadline, self.clock.mono_at(lease.deadline).min(now.plus(lease.length)))
    }

    /// Offers a held job that nobody has, unless it is stale or has to be given back. `renewed`: the lease was renewed
    /// just now; if it is short nevertheless, the store is slow, and another renewal gains nothing.
    pub(super) fn renew_or_offer(&mut self, r: Ref, renewed: bool) {
        let ours = self.is_ours(r);
        let unwanted =
            self.shutting_down || (self.has_no_callers() && self.partition_elsewhere(None).is_some());
        let Some(item) = self.items.get_mut(r) else { return };
        let (is_idle, is_parked) = (item.store.is_idle(), item.record == RecordState::Finished);
        let Some(held) = item.held_mut() else { return self.advance(r) };
        // The wall clock may have been set back since.
        let left = held.lease.until.since(self.clock.wall()).min(held.lease.ends.since(self.clock.mono()));
        let unleased = held.unleased.is_some();
        held.with_driver = false;
        if !is_idle {
            held.came_back = true;
            return self.begin_take(r);
        }
        if unwanted || !(ours || is_parked) {
            if unleased {
                return self.given_back(r);
            }
            return self.start_swap(r, SwapOp::GiveBack);
        }
        let fresh = left.saturating_sub(self.config.settings.lease / 2);
        if fresh.is_zero() && (!renewed || left.is_zero()) {
            // If the process dies, a first attempt that nobody has had is charged no failure.
            let ahead = held.lease.attempt == 1 && self.dispatch.wanted(self.store.takes_begun(), 0) == 0;
            self.begin_take(r);
            return self.start_swap(r, SwapOp::Renew { ahead });
        }
        let now = self.clock.mono();
        (held.with_driver, held.offered_at) = (true, Some(now));
        // A slow store confirmed it so late that it is short already: then most of what is left is for the caller.
        held.renew_at = now.plus(fresh.max(left / 8));
        self.dispatch.offer(r);
    }

    // ---- conflicts

    fn swap_conflicted(&mut self, r: Ref, op: SwapOp) {
        let Some(item) = self.items.get(r) else { return };
        match op {
            SwapOp::Take { take, token, purpose } => {
                let found = item.observed.lease();
                let is_taken = found.is_some_and(|l| l.token == token && l.state == LeaseState::Live);
                self.end_take(r);
                if is_taken { self.lease_taken(r, token, take, purpose) } else { self.apply_rule(r) }
            }
            SwapOp::Reset => self.apply_rule(r),
            SwapOp::Raise { .. } => {
                let lost = item.own().and_then(|own| match conflict(item, own, Intent::Keep) {
                    Conflict::Lost(_) if done_may_overwrite(item, own) => None,
                    Conflict::Lost(reason) => Some(reason),
                    _ => None,
                });
                // The next swap must not mistake what was found for our own lease.
                if let Some(reason) = lost
                    && !self.config.has_fault(Fault::LossAtRaiseIgnored)
                {
                    return self.lease_lost(r, reason);
                }
                // It only saves copies; the next copy tries again.
                self.release_key(r);
                self.advance(r);
            }
            SwapOp::Announce { .. } => {
                self.release_key(r);
                self.advance(r);
            }
            SwapOp::Done => self.resolve(r, op, Intent::Done),
            SwapOp::Idle { .. } | SwapOp::GiveBack => self.resolve(r, op, Intent::Idle),
            SwapOp::Dead => self.resolve(r, op, Intent::Dead),
            SwapOp::Lease | SwapOp::Extend { .. } | SwapOp::Renew { .. } => self.resolve(r, op, Intent::Keep),
        }
    }

    fn resolve(&mut self, r: Ref, op: SwapOp, intent: Intent) {
        let Some(item) = self.items.get(r) else { return };
        let Some(own) = item.own() else { return self.close(r) };
        let mut means = conflict(item, own, intent);
        let keeps = matches!(op, SwapOp::Lease | SwapOp::Extend { .. } | SwapOp::Renew { .. });
        let goes_on = keeps && done_may_overwrite(item, own);
        if intent == Intent::Done && self.config.has_fault(Fault::DoneWithoutToken) {
            means = Conflict::Again;
        }
        if intent == Intent::Done
            && self.config.has_fault(Fault::DoneOverLowerRefused)
            && item.observed.lease().is_some_and(|l| l.token != own.token)
        {
            means = Conflict::Lost(LostReason::TakenOver);
        }
        match (means, op) {
            // A store that has lost the lease needs no update.
            (Conflict::Again, SwapOp::GiveBack) if item.has_no_lease() => self.swap_succeeded(r, op),
            // An earlier attempt may have taken effect and been lost with the store's data.
            (Conflict::Again, _) => self.resend_swap(r, op),
            (Conflict::AlreadySo, _) => self.swap_succeeded(r, op),
            (Conflict::Lost(_), SwapOp::GiveBack) => self.swap_succeeded(r, op),
            (Conflict::Lost(reason), _) if goes_on => {
                self.answer_current(r, Answer::Lost(reason));
                self.release_key(r);
                self.advance(r);
            }
            (Conflict::Lost(reason), _) => self.lease_lost(r, reason),
        }
    }

    /// Never finishes the record: whoever took the lease may die, and this record may be the last of the task.
    fn lease_lost(&mut self, r: Ref, reason: LostReason) {
        self.end_take(r);
        self.release_key(r);
        let Some(item) = self.items.get(r) else { return };
        if !item.commands.is_empty() {
            self.answer(r, Answer::Lost(reason));
        } else if item.is_with_driver() {
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

/// Returns what a swap writes; `None` if it has become pointless.
#[inline]
pub(super) fn lease_of(item: &Item, op: SwapOp, config: &Config, now: Wall) -> Option<Lease> {
    let settings = &config.settings;
    let observed = item.observed.lease();
    let cover = observed.map_or(0, |l| l.cover).max(item.meta.cover);
    let own = item.own().map(|own| (own.token, own.attempt, own.failures));
    let write = |state, (token, attempt, failures): (LeaseToken, u32, u32), length: Duration| Lease {
        attempt,
        failures,
        cover,
        history: item.history.clone(),
        ..Lease::new(state, token, now.plus(length), length)
    };
    Some(match op {
        SwapOp::Take { take, token, purpose } => Lease {
            prefetched: purpose == Purpose::Prefetch,
            ..write(LeaseState::Live, (token, take.attempt, take.failures), settings.lease)
        },
        SwapOp::Reset => {
            let lease = observed?;
            // Sent again, it must not lengthen what somebody else has shortened meanwhile.
            Lease { deadline: now.plus(lease.length).min(lease.deadline), ..lease.clone() }
        }
        SwapOp::Raise { cover } => Lease { cover, ..observed?.clone() },
        SwapOp::Announce { cover, due, length, token } => Lease {
            cover,
            deadline: due,
            length,
            ..write(LeaseState::Idle, (token, item.meta.attempt, item.meta.failures), Duration::ZERO)
        },
        // Until when it was promised to its holder.
        SwapOp::Lease => Lease {
            prefetched: is_prefetched(item),
            deadline: item.own()?.until,
            length: settings.lease,
            ..write(LeaseState::Live, own?, Duration::ZERO)
        },
        // The reasons of earlier failures are no longer needed.
        SwapOp::Done => Lease { history: History::new(), ..write(LeaseState::Done, own?, Duration::ZERO) },
        SwapOp::Dead => write(LeaseState::Dead, own?, Duration::ZERO),
        SwapOp::Idle { length, .. } => write(LeaseState::Idle, own?, length),
        SwapOp::Extend { length } => {
            Lease { prefetched: is_prefetched(item), ..write(LeaseState::Live, own?, length) }
        }
        SwapOp::Renew { ahead } => Lease {
            prefetched: ahead || is_prefetched(item),
            ..write(LeaseState::Live, own?, settings.lease)
        },
        SwapOp::GiveBack => {
            let (token, attempt, failures) = own?;
            let counts = config.has_fault(Fault::GiveBackCounts);
            let attempt = if counts { attempt } else { attempt.saturating_sub(1) };
            write(LeaseState::Idle, (token, attempt, failures), Duration::ZERO)
        }
    })
}

/// Returns whether a failed operation was a take for a job: no other swap waits for a retry.
fn is_take(item: &Item) -> bool {
    matches!(item.stage, Stage::Looking(_)) || matches!(item.store.operation, Some(Operation::Swap(..)))
}

/// Whether nobody has the job, as far as is known.
fn is_prefetched(item: &Item) -> bool {
    let ahead = match item.held().and_then(|held| held.unleased) {
        Some(purpose) => purpose == Purpose::Prefetch,
        None => item.observed.lease().is_some_and(|l| l.prefetched),
    };
    ahead && !item.handed_out
}

fn conflict(item: &Item, own: OwnLease, intent: Intent) -> Conflict {
    rule::conflict(own.token, own.attempt, intent, &item.observed)
}

/// Returns whether `done` waits: it may overwrite a lease that ends other intents.
fn done_may_overwrite(item: &Item, own: OwnLease) -> bool {
    item.commands.end_with_done() && conflict(item, own, Intent::Done) == Conflict::Again
}
