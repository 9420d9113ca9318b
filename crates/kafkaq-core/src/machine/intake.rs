//! Intake: which record is considered next, and what the record rule decides.

use super::{
    Alarm, Content, Fault, Machine, News,
    item::{AppendOp, Copies, Item, Place, Purpose, Stage, SwapOp},
    items::NewItem,
    open::{self, Opened},
    rule::{self, Meta, Take, Verdict},
    slab::Ref,
    suspects::Suspect,
    window::Slot,
};
use crate::{History, ID_HEADER, Position};
use std::sync::Arc;

/// The maximum number of concurrent lease reads.
const MAX_READS: usize = 1024;
/// The maximum number of consecutive records taken from one partition: a store handles neighbors more cheaply together.
/// Bounded, also by the number of jobs wanted at once, so that no partition waits for long.
const MAX_RUN: usize = 128;
/// Redeliveries that wait for a caller, or whose leases are being read.
pub(super) const MAX_ON_DEMAND: usize = 4096;

impl Machine {
    /// Does everything that inputs have made possible. Runs once before outputs are polled, however many inputs there
    /// were.
    pub(super) fn process_inputs(&mut self) {
        if std::mem::replace(&mut self.news, News::Nothing) == News::Nothing {
            return;
        }
        self.retry_appends();
        self.sweep();
        for i in 0..self.windows.len() {
            if let Some(w) = self.windows.nth(i) {
                self.check_window(w);
            }
        }
        if !self.shutting_down {
            self.retry_reads();
            self.leave_lanes();
            self.start_takes();
        }
    }

    /// Applies flow control, copies records that take too long, and copies the head of a window that is paused because
    /// of it.
    fn check_window(&mut self, w: Ref) {
        self.windows.control_flow(w, &self.config, self.clock.wall());
        if self.config.settings.track_after.is_some() {
            self.prepare_handover(w);
        }
        let Some(window) = self.windows.get(w).filter(|window| !window.is_revoked()) else { return };
        let is_blocked = window.is_blocked_by_head();
        let mut late = Vec::new();
        let mut hop = None;
        for (seq, slot) in window.unfinished() {
            let in_the_way = is_blocked && late.is_empty();
            match slot {
                Slot::Open(r) if in_the_way || self.items.get(*r).is_some_and(|item| self.is_late(item)) => {
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
            self.open_record(place, None);
        }
    }

    /// Prepares a partition to move to another process. Jobs that run here without a lease get one. If jobs behind them
    /// are done without the store knowing, they also get a copy, so that the done ones can be committed.
    fn prepare_handover(&mut self, w: Ref) {
        let Some(window) = self.windows.get(w).filter(|window| self.shutting_down || window.is_revoked())
        else {
            return;
        };
        if self.config.has_fault(Fault::MovedUnleased) {
            return;
        }
        let last = window.last_held_back();
        let open = window.unfinished().filter_map(|(seq, slot)| match slot {
            Slot::Open(r) => Some((*r, last.is_some_and(|last| seq < last))),
            _ => None,
        });
        for (r, is_in_the_way) in open.collect::<Vec<_>>() {
            if is_in_the_way { self.park_held(r) } else { self.lease_unleased(r) }
        }
    }

    /// Returns whether its record would hold back the commit for too long.
    pub(super) fn is_late(&self, item: &Item) -> bool {
        item.since.plus(self.config.settings.park_after) <= self.clock.mono()
    }

    /// Retries failed reads. They take at most half of the limit, so that others have room.
    fn retry_reads(&mut self) {
        while self.store.reads_begun() < MAX_READS / 2
            && let Some(r) = self.store.pop_failed_read()
        {
            self.retry(r);
        }
    }

    /// Opens records of the wait topic whose time in their lane has passed. Those that wait for a caller are bounded,
    /// since they take more memory than records in a lane. At the bound, all lanes wait: whatever else is in them is
    /// due later.
    fn leave_lanes(&mut self) {
        while self.store.reads_begun() < MAX_READS
            && self.store.reads_begun() + self.store.failed_reads() + self.dispatch.waiting_on_demand()
                < MAX_ON_DEMAND
            && let Some(place) = self.lanes.pop(self.clock.wall())
        {
            self.open_record(place, None);
        }
    }

    /// Takes leases for waiting callers, and a bounded number in advance.
    fn start_takes(&mut self) {
        let prefetch = self.config.settings.prefetch;
        // Prefetched jobs would delay a suspect that may be started.
        let ahead = if self.has_no_callers() || self.dispatch.has_suspects() { 0 } else { prefetch };
        let run = self.dispatch.wanted(self.store.takes_begun(), ahead).clamp(1, MAX_RUN);
        loop {
            let takes = self.store.takes_begun();
            let for_caller = self.dispatch.wanted(takes, 0) > 0;
            let (items, settings, now) = (&self.items, &self.config.settings, self.clock.mono());
            let apart = !self.config.has_fault(Fault::SuspectsTogether);
            let is_watched =
                |r: Ref| apart && items.get(r).is_some_and(|item| item.is_watched(settings.lease, now));
            if for_caller && let Some(r) = self.dispatch.redeliver(prefetch, is_watched) {
                if let Some(Stage::OnDemand(take)) = self.items.get(r).map(|item| item.stage) {
                    self.take_for_job(r, take, Purpose::Caller);
                }
                continue;
            }
            if self.dispatch.wanted(takes, ahead) == 0 || self.store.reads_begun() >= MAX_READS {
                return;
            }
            if let Some(r) = self.store.pop_failed_take_in_turn() {
                self.retry(r);
                continue;
            }
            let may_begin = self.dispatch.spend_credit(self.config.has_fault(Fault::NoFairShare), is_watched);
            if let Some(place) = may_begin.then(|| self.windows.next_queued(run)).flatten() {
                let purpose = if for_caller { Purpose::Caller } else { Purpose::Prefetch };
                self.open_record(place, Some(purpose));
            } else if let Some(r) = self.store.pop_failed_take() {
                self.retry(r);
            } else {
                return;
            }
        }
    }

    /// Queues a redelivery, which is taken as soon as a caller waits.
    pub(super) fn wait_for_caller(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        let Stage::OnDemand(take) = item.stage else { return };
        if take.ran_out || item.history.last() == Some(History::LEASE_RAN_OUT) {
            let last_chance = take.failures + 1 >= self.config.limits.max_failures;
            self.dispatch.push_suspect(Suspect { item: r, last_chance });
        } else {
            self.dispatch.push_on_demand(r);
        }
    }

    /// Starts to consider a record. With a purpose, its first attempt may be taken at once, without reading the lease.
    pub(super) fn open_record(&mut self, place: Place, take: Option<Purpose>) {
        let Some(window) = self.windows.get_mut(place.window) else { return };
        let Some(record) = window.take_queued(place.seq) else { return };
        let partition = window.assignment.partition.clone();
        let at = Position { partition, offset: record.offset };
        let is_named = self.config.settings.track_after.is_some() && record.headers.get(ID_HEADER).is_some();
        match open::open(&self.config.layout, &at, record) {
            Opened::Newer(record, version, origin) => {
                self.alarm(Alarm::Newer { at: at.clone(), version });
                if self.config.has_fault(Fault::NewerStays) {
                    return;
                }
                let content = Content { origin, ..open::unreadable(&at, &record) };
                let r = self.insert_opaque(content, place, at);
                self.forward(r, record);
            }
            Opened::Unreadable(record, reason) => {
                let content = open::unreadable(&at, &record);
                let r = self.insert_opaque(content, place, at);
                self.start_append(r, AppendOp::Unreadable { record: Box::new(record), reason });
            }
            Opened::Task(content, mut meta, history) => {
                if self.config.has_fault(Fault::AttemptsForgotten) {
                    meta.attempt = 0;
                }
                let (content, copies) = (Arc::new(content), Copies::default());
                let r = self.insert_item(NewItem { content, meta, history, place, at, copies });
                match take {
                    Some(purpose) if meta == Meta::NONE && !is_named && self.may_begin_unleased(r) => {
                        self.begin_take(r);
                        if let Some(item) = self.items.get_mut(r) {
                            item.stage = Stage::Looking(purpose);
                        }
                        self.start_read(r);
                    }
                    Some(purpose) if meta == Meta::NONE => {
                        self.take_for_job(r, Take::FIRST, purpose);
                    }
                    _ => self.start_read(r),
                }
            }
        }
    }

    /// Returns whether the record's first attempt may start without a lease in the store.
    fn may_begin_unleased(&self, r: Ref) -> bool {
        let settings = &self.config.settings;
        let Some(item) = self.items.get(r).filter(|_| settings.track_after.is_some()) else { return false };
        let Some(window) = item.place().and_then(|place| self.windows.get(place.window)) else {
            return false;
        };
        let range = window.unleased(settings.unleased_span);
        let is_far = range.start <= item.at.offset || self.config.has_fault(Fault::UnleasedFromTheStart);
        let is_near = item.at.offset < range.end || self.config.has_fault(Fault::UnleasedAnyDistance);
        is_far && is_near && item.content.id.is_numbered()
    }

    /// Inserts an item for a record that this process can't read and that is passed on unchanged.
    fn insert_opaque(&mut self, content: Content, place: Place, at: Position) -> Ref {
        let (content, meta, history, copies) =
            (Arc::new(content), Meta::NONE, History::new(), Copies::default());
        let r = self.insert_item(NewItem { content, meta, history, place, at, copies });
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Closing;
        }
        r
    }

    /// Takes the lease for a job. From here on it counts as supply.
    fn take_for_job(&mut self, r: Ref, take: Take, purpose: Purpose) {
        self.begin_take(r);
        self.take(r, take, purpose);
    }

    fn take(&mut self, r: Ref, take: Take, purpose: Purpose) {
        let token = self.store.new_token();
        let now = self.clock.wall();
        if let Some(item) = self.items.get_mut(r) {
            item.stage = Stage::Considered;
            if take.ran_out {
                item.history = item.history.with(now, take.attempt - 1, History::LEASE_RAN_OUT);
            }
        }
        self.start_swap(r, SwapOp::Take { take, token, purpose });
    }

    /// Applies the record rule to the lease as it was just observed.
    pub(super) fn apply_rule(&mut self, r: Ref) {
        let Some(item) = self.items.get(r) else { return };
        let mut verdict = rule::consider(item.meta, &item.observed, self.clock.wall(), self.config.limits);
        verdict = self.break_verdict(r, verdict);
        if verdict == Verdict::Finish {
            self.finish_record(r);
            self.release_key(r);
            return self.close(r);
        }
        if !self.is_ours(r) {
            return self.remove(r);
        }
        match verdict {
            Verdict::Finish => {}
            Verdict::Reset => self.start_swap(r, SwapOp::Reset),
            Verdict::Park { due } => self.park(r, due),
            Verdict::Take(take) => {
                self.release_key(r);
                if take.attempt > 1 && self.config.has_fault(Fault::LateAttemptPrefetched) {
                    return self.take_for_job(r, take, Purpose::Caller);
                }
                if let Some(item) = self.items.get_mut(r) {
                    item.stage = Stage::OnDemand(take);
                }
                self.wait_for_caller(r);
            }
            Verdict::DeadLetter(take) => self.take(r, take, Purpose::DeadLetter),
        }
    }
}
