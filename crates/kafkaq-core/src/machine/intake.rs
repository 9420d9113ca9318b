//! Intake: which record comes to its turn, and what the record rule makes of it.

use super::{
    Alarm, Content, Fault, Machine, Now, OpId,
    item::{AppendOp, Place, Sent, Stage, StoreOp},
    open::{self, Opened},
    rule::{self, Seen, Take, Verdict},
    slab::Ref,
};
use crate::{History, Position, Record, Result, Wall};
use bytes::Bytes;
use std::sync::Arc;

/// Looks under way at once.
const MOST_LOOKS: usize = 1024;
/// Redeliveries that wait for a caller or are looked at.
pub(super) const MOST_ON_DEMAND: usize = 4096;

/// Whether a take is ahead of demand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefetched(bool);

impl Machine {
    /// Everything that inputs have made possible. Runs once before outputs are polled, however many inputs came.
    pub(super) fn work(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        self.retry_appends();
        self.sweep();
        for i in 0..self.windows.len() {
            if let Some(w) = self.windows.nth(i) {
                self.tend_window(w);
            }
        }
        if !self.shutting {
            self.leave_lanes();
            self.takes();
        }
    }

    /// Records of the wait topic whose time in their lane has passed. Those that wait for a caller are bounded, since they
    /// take more memory than records that wait for their time. Everything else in the lanes comes later than they, so it
    /// waits with them.
    fn leave_lanes(&mut self) {
        while self.store.reads_begun() < MOST_LOOKS
            && self.store.reads_begun() + self.dispatch.waiting_on_demand() < MOST_ON_DEMAND
            && let Some(place) = self.lanes.pop(self.clock.wall())
        {
            self.begin_turn(place, None);
        }
    }

    /// Leases for those who wait, and a bounded number ahead of them.
    fn takes(&mut self) {
        let ahead = if self.is_deserted() { 0 } else { self.config.settings.prefetch };
        loop {
            let takes = self.store.takes_begun();
            let for_caller = self.dispatch.missing(takes) > 0;
            if for_caller && let Some(r) = self.dispatch.redeliver(self.config.settings.prefetch) {
                self.take_on_demand(r);
                continue;
            }
            if !self.dispatch.wants_more(takes, ahead)
                || self.store.reads_begun() >= MOST_LOOKS
                || !self.dispatch.spend_credit(self.config.has_fault(Fault::NoFairShare))
            {
                return;
            }
            match self.windows.next_queued() {
                Some(place) => self.begin_turn(place, Some(Prefetched(!for_caller))),
                None => return,
            }
        }
    }

    /// A record comes to its turn. `take`: its first attempt may be taken at once, without a look at the lease.
    pub(super) fn begin_turn(&mut self, place: Place, take: Option<Prefetched>) {
        let Some(window) = self.windows.get_mut(place.window) else { return };
        let Some(record) = window.take_queued(place.seq) else { return };
        let from = window.assignment.partition.clone();
        let at = crate::Position { partition: from.clone(), offset: record.offset };
        match open::open(&self.config.layout, &from, record) {
            Opened::Newer(record, version, first) => {
                self.alarm(Alarm::Newer { at: at.clone(), version });
                if self.config.has_fault(Fault::NewerStays) {
                    return;
                }
                let r = self.whole_item(record, first, place, at);
                self.forward(r);
            }
            Opened::Unreadable(record, reason) => {
                let r = self.whole_item(record, at.clone(), place, at);
                self.start_append(r, AppendOp::Whole { reason });
            }
            Opened::Task(content, mut meta, history) => {
                if self.config.has_fault(Fault::AttemptsForgotten) {
                    meta.attempt = 0;
                }
                let r = self.new_item(Arc::new(content), meta, history, place, at);
                match take {
                    Some(Prefetched(prefetched)) if meta == rule::Meta::NONE => {
                        let first = Take { attempt: 1, failures: 0, ran_out: false };
                        self.start_take(r, first, prefetched);
                    }
                    _ => self.start(r, StoreOp::Look),
                }
            }
        }
    }

    /// An item for a record that this process can't read, to be passed on as it is.
    fn whole_item(&mut self, record: Record, origin: Position, place: Place, at: Position) -> Ref {
        let content = Content { origin, ..open::unreadable(&at, &record) };
        let r = self.new_item(Arc::new(content), rule::Meta::NONE, History::new(), place, at);
        if let Some(item) = self.items.get_mut(r) {
            item.whole = Some(Box::new(record));
            item.stage = Stage::Closing;
        }
        r
    }

    fn take_on_demand(&mut self, r: Ref) {
        if let Some(Stage::OnDemand(take)) = self.items.get(r).map(|i| i.stage) {
            self.start_take(r, take, false);
        }
    }

    fn start_take(&mut self, r: Ref, take: Take, prefetched: bool) {
        self.begin_taking(r);
        self.take(r, take, prefetched, false);
    }

    fn take(&mut self, r: Ref, take: Take, prefetched: bool, bury: bool) {
        let token = self.store.new_token();
        let now = self.clock.wall();
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Considered;
            if take.ran_out {
                item.history = item.history.with(now, take.attempt - 1, History::LEASE_RAN_OUT);
            }
        }
        self.start(r, StoreOp::Take { take, token, prefetched, bury });
    }

    /// The outcome of a get.
    pub fn handle_got(&mut self, now: Now, op: OpId, outcome: Result<Option<Bytes>>) {
        self.observe_time(now);
        let r = Ref::from(op);
        let Some(item) = self.items.get_mut(r) else { return };
        if !matches!(item.sent, Some(Sent::Look)) {
            return;
        }
        item.sent = None;
        match outcome {
            Err(error) => {
                self.store_failed(r, error);
                if self.is_ours(r) { self.queue(r) } else { self.remove(r) }
            }
            Ok(value) => {
                item.store = None;
                item.see(Seen::of(value));
                self.store.read_ends();
                self.store.succeeded();
                self.decide(r);
            }
        }
    }

    /// The record rule, over the lease as it was just seen.
    pub(super) fn decide(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        let mut verdict = rule::consider(item.meta, &item.seen, self.clock.wall(), self.config.limits);
        verdict = self.break_verdict(r, verdict);
        if verdict == Verdict::Finish {
            self.finish_record(r);
            self.let_go(r);
            return self.close(r);
        }
        if !self.is_ours(r) {
            return self.remove(r);
        }
        match verdict {
            Verdict::Finish => {}
            Verdict::Reset => self.start(r, StoreOp::Reset),
            Verdict::Park { due } => self.park(r, due),
            Verdict::Take(take) => {
                self.let_go(r);
                if take.attempt > 1 && self.config.has_fault(Fault::LateAttemptPrefetched) {
                    return self.start_take(r, take, false);
                }
                if let Some(item) = self.items.get_mut(r) {
                    item.stage = Stage::OnDemand(take);
                }
                self.dispatch.push_on_demand(r);
            }
            Verdict::DeadLetter(take) => self.take(r, take, false, true),
        }
    }

    fn break_verdict(&self, r: Ref, mut verdict: Verdict) -> Verdict {
        let Some(item) = self.items.get(r) else { return verdict };
        if self.config.has_fault(Fault::RunOutUncounted)
            && let Verdict::Take(take) | Verdict::DeadLetter(take) = &mut verdict
            && std::mem::take(&mut take.ran_out)
        {
            take.failures -= 1;
        }
        let lease = item.seen.lease().cloned();
        let consider = |seen| rule::consider(item.meta, &seen, self.clock.wall(), self.config.limits);
        match (verdict, lease) {
            (Verdict::Take(_), None) if self.config.has_fault(Fault::MissingIsDone) => Verdict::Finish,
            (Verdict::Finish, Some(mut lease)) if lease.state.is_terminal() => {
                if self.config.has_fault(Fault::TerminalIgnored) && lease.state == crate::LeaseState::Done {
                    lease.state = crate::LeaseState::Idle;
                    return consider(Seen::Lease(lease));
                }
                verdict
            }
            (Verdict::Finish, Some(mut lease)) if self.config.has_fault(Fault::CoverIgnored) => {
                lease.cover = 0;
                consider(Seen::Lease(lease))
            }
            (Verdict::Reset, Some(mut lease)) if self.config.has_fault(Fault::DeadlineBelieved) => {
                lease.length = lease.deadline.since(Wall(0));
                consider(Seen::Lease(lease))
            }
            (Verdict::Park { .. }, Some(lease))
                if self.config.has_fault(Fault::ParkWithoutSkew) && item.meta.due <= self.clock.wall() =>
            {
                Verdict::Park { due: lease.deadline }
            }
            _ => verdict,
        }
    }
}
